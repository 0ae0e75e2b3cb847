//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use cabana_sandbox::Publish;

use crate::units::{self, DiskArg, Moment, ShareArg};

/// Hard-isolated Linux sandboxes that start in milliseconds.
#[derive(Debug, Parser)]
#[command(name = "cabana", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// [`Cli`] with the verb `run` alone. To build the others' options takes time and memory that a machine's
/// start has no use for.
#[derive(Debug, Parser)]
#[command(name = "cabana", version, max_term_width = 100)]
struct RunCli {
    #[command(subcommand)]
    verb: RunVerb,
}

#[derive(Debug, Subcommand)]
enum RunVerb {
    /// Run a command in a fresh Linux machine.
    Run(Box<RunArgs>),
}

impl Cli {
    /// Reads a command line, the program's name first.
    pub(crate) fn read(words: impl Iterator<Item = OsString>) -> Result<Self, clap::Error> {
        let words: Vec<_> = words.collect();
        match words.get(1).and_then(|verb| verb.to_str()) {
            Some("run") => {
                let RunVerb::Run(args) = RunCli::try_parse_from(words)?.verb;
                Ok(Self { verb: Verb::Run(args) })
            }
            // An engine calls it so, once for each machine.
            Some("worker") if words.len() == 2 => Ok(Self { verb: Verb::Worker }),
            _ => Self::try_parse_from(words),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a command in a fresh Linux machine.
    Run(Box<RunArgs>),
    /// Start a machine that stays up in the background.
    Up(UpArgs),
    /// List machines that are up, or what runs in the background of one.
    Ps(PsArgs),
    /// Run a command in a machine that is up.
    Exec(ExecArgs),
    /// Go on with a command that `exec --detach` left in the background.
    Attach(AttachArgs),
    /// Open a shell in a machine that is up.
    Shell(ShellArgs),
    /// Make, list, limit and remove sessions of a machine that is up.
    Session(SessionArgs),
    /// Copy files and folders between this host and a machine that is up.
    Cp(CopyArgs),
    /// Lead TCP ports of this host into a machine that is up, or its ports here.
    Forward(ForwardArgs),
    /// Show what a machine's console said last.
    Logs(NamedArgs),
    /// End a machine that is up.
    Down(NamedArgs),
    /// Boot any kernel, with its serial console on this terminal.
    Boot(BootArgs),
    /// Say what this host can do, and what to do about what it cannot.
    Doctor(DoctorArgs),
    /// Build, list and remove root images.
    Image(ImageArgs),
    /// Show folders in a machine that is up; see, undo and accept what guests did to those with a journal.
    Share(ShareArgs),
    /// Keep machines in files, to start from; see `run --from`.
    Snapshot(SnapshotArgs),
    /// Let a program drive machines by newline-delimited JSON.
    Serve(ServeArgs),
    /// Print completions for a shell.
    #[command(after_help = "Examples:
  cabana completions bash > ~/.local/share/bash-completion/completions/cabana
  cabana completions fish > ~/.config/fish/completions/cabana.fish")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Keep one machine up; `cabana up` calls this by itself.
    #[command(hide = true)]
    Hold(HoldArgs),
    /// Own one machine for an engine, which calls this by itself.
    #[command(hide = true)]
    Worker,
    /// Show what a machine's network did, or explain what a policy would do.
    Net(NetArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "The exit status is the command's: 128+N if signal N ended it, 126 or 127 if it could not be
started, 124 if --timeout passed, 125 if Cabana itself failed.

Examples:
  cabana run -- uname -a
  cabana run --share .:/src -- sh -c 'ls /src && git -C /src status'
  cabana run -it -- bash
  cabana run --disk work.disk --memory 2G --cpus 4 -- make -C /root/project"
)]
pub(crate) struct RunArgs {
    /// Go on where a machine was kept by `cabana snapshot save`, with another identity. Processors,
    /// memory, disk and what runs are in the snapshot.
    #[arg(long, value_name = "SNAPSHOT", conflicts_with_all = ["cpus", "memory", "image", "disk", "kernel", "cmdline"])]
    pub(crate) from: Option<String>,

    /// Show a folder of the host in the guest, by default under the same path.
    #[arg(long = "share", value_name = "HOST[:GUEST][:ro|:journal[=SIZE]]", value_parser = units::share)]
    pub(crate) shares: Vec<ShareArg>,

    #[command(flatten)]
    pub(crate) network: NetworkArgs,

    /// Number of vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) cpus: u32,

    /// RAM; the host gives it as it is used.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = units::size)]
    pub(crate) memory: u64,

    /// Set a variable in the command's environment; without a value, pass this one's on.
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,

    /// The command's working directory in the guest.
    #[arg(short = 'w', long, value_name = "DIR")]
    pub(crate) workdir: Option<OsString>,

    /// End the command, or the start, after this time (30s, 5m, 1h).
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    pub(crate) timeout: Option<Duration>,

    /// Keep standard input open (it is when it is a pipe or a file; this is for -it).
    #[arg(short, long)]
    pub(crate) interactive: bool,

    /// Give the command a terminal.
    #[arg(short, long)]
    pub(crate) tty: bool,

    /// The root image; see `cabana image list`.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(crate) image: String,

    /// Keep the guest's changes of its root file system in this file, made when missing.
    #[arg(long, value_name = "FILE")]
    pub(crate) disk: Option<PathBuf>,

    /// Write a timeline of the start to FILE (JSON) and to FILE with the ending .svg.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace_boot: Option<PathBuf>,

    /// Another guest kernel than the store's.
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,

    /// More words for the kernel's command line.
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub(crate) cmdline: String,

    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "A name without a slash stands in the store; any other is the path of a file.

Examples:
  cabana snapshot save warm -- python3 -c 'import json, asyncio'
  cabana run --from warm --share .:/src -w /src -- python3 main.py
  cabana snapshot ls"
)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    pub(crate) verb: SnapshotVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotVerb {
    /// Run a command in a fresh machine and keep the machine when the command has ended well.
    Save(Box<SaveArgs>),
    /// List the snapshots in the store.
    #[command(name = "ls", alias = "list")]
    List {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Remove a snapshot; machines that came out of it go on.
    #[command(name = "rm", alias = "remove")]
    Remove {
        /// Its name or path.
        name: String,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// Its name or path; what was there is replaced.
    pub(crate) name: String,

    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The exit status is what the guest writes to I/O port 0xf4; 0 if it resets itself; 124 if
--timeout passed; 125 if Cabana or the guest's processor failed; 128 after Ctrl-], which ends the
machine on a terminal.

Examples:
  cabana boot --kernel vmlinuz --initrd initrd.img --cmdline 'console=ttyS0'
  cabana boot --kernel vmlinux --disk root.img --cmdline 'console=ttyS0 root=/dev/vda'"
)]
pub(crate) struct BootArgs {
    /// An uncompressed ELF kernel (vmlinux) or a bzImage.
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: PathBuf,

    /// Its initramfs.
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,

    /// A raw disk image, /dev/vda and so on.
    #[arg(long = "disk", value_name = "FILE[:ro]", value_parser = units::disk)]
    pub(crate) disks: Vec<DiskArg>,

    /// The kernel's command line.
    #[arg(long, value_name = "WORDS", default_value = "console=ttyS0")]
    pub(crate) cmdline: String,

    /// Write the serial console to FILE in place of the terminal.
    #[arg(long, value_name = "FILE")]
    pub(crate) serial: Option<PathBuf>,

    /// Number of vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) cpus: u32,

    /// RAM.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = units::size)]
    pub(crate) memory: u64,

    /// End the machine after this time.
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
#[command(after_help = "The exit status is 0 if machines can run here, else 1.")]
pub(crate) struct DoctorArgs {
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    pub(crate) verb: ImageVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// Build an image from Debian packages.
    Build {
        /// A flavour (default, dev, tiny) or the path of a .list file that defines one.
        #[arg(default_value = "default")]
        flavour: String,
        /// Build it anew, with the newest packages, even if it is there.
        #[arg(long)]
        rebuild: bool,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// List images, kernels and agents in the store.
    List {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Remove an image; machines that run from it go on.
    Remove {
        /// Its name.
        name: String,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "FOLDER is the shared folder or its journal's id. A MOMENT is the number of a record, a time
ago (10m, 2h) or @SECONDS since 1970.

Examples:
  cabana up work --share-root ~/src
  cabana share add work ~/src/project:/project
  cabana share add work --session chat-1 ~/src/docs:/mnt/docs:ro
  cabana share rm work /project

  cabana run --share ~/project:/src:journal -w /src -- ./agent
  cabana share diff ~/project
  cabana share rollback ~/project notes.txt src
  cabana share rollback ~/project --to 10m
  cabana share accept ~/project"
)]
pub(crate) struct ShareArgs {
    #[command(subcommand)]
    pub(crate) verb: ShareVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ShareVerb {
    /// Show folders of this host in a machine that is up.
    Add(ShareAddArgs),
    /// List what a machine that is up shows of this host, or without one the folders that have a journal.
    Ls(ShareLsArgs),
    /// Take folders away that were added. Programs that have files of them open get errors.
    Rm(ShareRmArgs),
    /// Say what happened, record by record.
    Log {
        /// The folder.
        folder: PathBuf,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Say how the folder differs from what it was.
    Diff(DiffArgs),
    /// Bring the folder back to what it was. What is there now is kept, and comes back by rolling back
    /// to the record that this prints.
    Rollback {
        #[command(flatten)]
        what: DiffArgs,
        /// Bring also back what the host has changed since; what it made of it is kept.
        #[arg(long)]
        force: bool,
    },
    /// Take the changes for good: what was kept for them goes.
    Accept {
        /// The folder.
        folder: PathBuf,
        /// Only those up to this moment.
        #[arg(long, value_name = "MOMENT", value_parser = units::moment)]
        to: Option<Moment>,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "A folder has to lie below one that the machine shares or one of its --share-root."
)]
pub(crate) struct ShareAddArgs {
    /// The machine.
    pub(crate) machine: String,

    /// Folders of this host, and where they appear.
    #[arg(value_name = "HOST[:GUEST][:ro]", value_parser = units::share, required = true)]
    pub(crate) shares: Vec<ShareArg>,

    /// In this session, in place of the machine.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) session: Option<String>,

    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShareLsArgs {
    /// The machine.
    pub(crate) machine: Option<String>,

    /// Of this session, in place of the machine.
    #[arg(short, long, value_name = "NAME", requires = "machine")]
    pub(crate) session: Option<String>,

    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShareRmArgs {
    /// The machine.
    pub(crate) machine: String,

    /// Where in the guest.
    #[arg(value_name = "GUEST", required = true)]
    pub(crate) guests: Vec<String>,

    /// Of this session, in place of the machine.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) session: Option<String>,

    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The folder.
    pub(crate) folder: PathBuf,
    /// Only these paths in it, and what is below them.
    pub(crate) paths: Vec<PathBuf>,
    /// What it was at this moment; before the journal's first record if left out.
    #[arg(long, value_name = "MOMENT", value_parser = units::moment)]
    pub(crate) to: Option<Moment>,
    /// Only what this session did.
    #[arg(long, value_name = "N")]
    pub(crate) session: Option<u32>,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "One JSON object a line in each direction; docs/serve.md tells what they say. With --stdio it
ends with its standard input, and so do its machines.

Examples:
  cabana serve --stdio
  cabana serve --socket /run/user/1000/my-app.sock"
)]
#[group(required = true, multiple = false)]
pub(crate) struct ServeArgs {
    /// Speak over standard input and output.
    #[arg(long)]
    pub(crate) stdio: bool,

    /// Listen on a Unix socket, made for this user alone; others are turned away.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The machine belongs to a background process of yours, spoken to over a socket in
$XDG_RUNTIME_DIR/cabana, and ends with `cabana down`.

Examples:
  cabana up
  cabana up work --share .:/src --disk work.disk --memory 2G
  cabana up work --allow pypi --publish 8080:80
  cabana up --suspend-after 5m --json"
)]
pub(crate) struct UpArgs {
    /// Its name.
    #[arg(default_value = "default")]
    pub(crate) name: String,

    /// Show a folder of the host in the guest, by default under the same path.
    #[arg(long = "share", value_name = "HOST[:GUEST][:ro]", value_parser = units::share)]
    pub(crate) shares: Vec<ShareArg>,

    #[command(flatten)]
    pub(crate) network: NetworkArgs,

    /// Ask about what no rule decides, in place of denying it: see `cabana net answer`. Implies --net.
    #[arg(long)]
    pub(crate) ask: bool,

    /// Number of vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) cpus: u32,

    /// RAM; the host gives it as it is used.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = units::size)]
    pub(crate) memory: u64,

    /// Let sessions share folders below this one while the machine runs; its worker can reach them.
    #[arg(long = "share-root", value_name = "DIR")]
    pub(crate) share_roots: Vec<PathBuf>,

    /// The root image; see `cabana image list`.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(crate) image: String,

    /// Keep the guest's changes of its root file system in this file, made when missing.
    #[arg(long, value_name = "FILE")]
    pub(crate) disk: Option<PathBuf>,

    /// Let its processors stand still after this time without a command (30s, 5m, 1h).
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    pub(crate) suspend_after: Option<Duration>,

    /// Another guest kernel than the store's.
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,

    /// More words for the kernel's command line.
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub(crate) cmdline: String,

    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cabana ps\n  cabana ps --json | jq -r '.[].name'\n  cabana ps work"
)]
pub(crate) struct PsArgs {
    /// List the commands in the background of this machine.
    pub(crate) machine: Option<String>,

    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "The exit status is the command's, as for `cabana run`.

Examples:
  cabana exec default -- uname -a
  cabana exec -it work -w /src -- bash
  cabana exec --session chat-1 work -- id
  tar c . | cabana exec work -- tar x -C /tmp
  cabana exec --detach work -- ./server")]
pub(crate) struct ExecArgs {
    /// The machine.
    pub(crate) name: String,

    /// Run it in this session of the machine's, in place of as the machine's root.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) session: Option<String>,

    /// Set a variable in the command's environment; without a value, pass this one's on.
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,

    /// The command's working directory in the guest.
    #[arg(short = 'w', long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,

    /// Keep standard input open (it is when it is a pipe or a file; this is for -it).
    #[arg(short, long)]
    pub(crate) interactive: bool,

    /// Give the command a terminal.
    #[arg(short, long)]
    pub(crate) tty: bool,

    /// Leave it running in the background, and print the number to attach by. With -i it waits for input that
    /// comes from who attaches.
    #[arg(short, long, conflicts_with = "tty")]
    pub(crate) detach: bool,

    /// With --detach, for programs.
    #[arg(long, requires = "detach")]
    pub(crate) json: bool,

    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "What the command has written meanwhile comes first. Ctrl-\\ leaves it running; other signals are the
command's. The exit status is the command's, as for `cabana exec`, and 0 if it was left.

Examples:
  cabana ps work
  cabana attach work 1
  echo reload | cabana attach -i work 1"
)]
pub(crate) struct AttachArgs {
    /// The machine.
    pub(crate) name: String,

    /// The command's number, as `exec --detach` and `ps` print it.
    pub(crate) number: u64,

    /// Give it standard input, which it takes if it was started with -i.
    #[arg(short, long)]
    pub(crate) interactive: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cabana shell\n  cabana shell work -w /src\n  cabana shell work --session chat-1\n  echo uptime | cabana shell"
)]
pub(crate) struct ShellArgs {
    /// The machine.
    #[arg(default_value = "default")]
    pub(crate) name: String,

    /// Open it in this session of the machine's, in place of as the machine's root.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) session: Option<String>,

    /// Set a variable in the shell's environment; without a value, pass this one's on.
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,

    /// The shell's working directory in the guest.
    #[arg(short = 'w', long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cabana logs\n  cabana down work\n  cabana down --json")]
pub(crate) struct NamedArgs {
    /// The machine.
    #[arg(default_value = "default")]
    pub(crate) name: String,

    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "A session is a user of the machine with a home, /tmp, processes and limits of its own. It sees
nothing of others, and goes with `session rm` or the machine.

Examples:
  cabana session add work chat-1 --memory 256M --pids 200 --disk 2G
  cabana exec --session chat-1 work -- id
  cabana session ls work
  cabana session set work chat-1 --cpus 0.5
  cabana session rm work chat-1"
)]
pub(crate) struct SessionArgs {
    #[command(subcommand)]
    pub(crate) verb: SessionVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SessionVerb {
    /// Make a session.
    #[command(after_help = "Examples:
  cabana session add work chat-1
  cabana session add work chat-3 --allow pypi
  cabana session add work chat-2 --cpus 1.5 --memory 512M --share ./data:/data:ro --json")]
    Add(SessionMakeArgs),
    /// List a machine's sessions and what they use.
    #[command(after_help = "Examples:
  cabana session ls work
  cabana session ls work --json | jq -r '.[].name'")]
    Ls {
        /// The machine.
        #[arg(default_value = "default")]
        machine: String,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Give a session other limits; those that are not named stay.
    #[command(after_help = "Examples:
  cabana session set work chat-1 --memory 1G --pids 500")]
    Set {
        #[command(flatten)]
        which: SessionNamedArgs,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// End a session's processes and delete what it has.
    #[command(after_help = "Examples:
  cabana session rm work chat-1")]
    Rm(SessionNamedArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SessionNamedArgs {
    /// The machine.
    pub(crate) machine: String,
    /// The session.
    pub(crate) session: String,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SessionMakeArgs {
    #[command(flatten)]
    pub(crate) which: SessionNamedArgs,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,

    /// Show a folder of the host to the session, by default under the same path. It lies below a folder that
    /// the machine shares, or a --share-root of `cabana up`.
    #[arg(long = "share", value_name = "HOST[:GUEST][:ro]", value_parser = units::share)]
    pub(crate) shares: Vec<ShareArg>,

    /// Give it a network card with addresses of its own, beside its loopback interface. What may leave is what may
    /// leave the machine, unless rules are given.
    #[arg(long)]
    pub(crate) network: bool,

    #[command(flatten)]
    pub(crate) rules: RulesArgs,
}

/// What a session may use.
#[derive(Clone, Debug, Args)]
pub(crate) struct LimitArgs {
    /// Memory, with files in /dev/shm and cached files of its disk.
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) memory: Option<u64>,

    /// Processes and threads at a time.
    #[arg(long, value_name = "N")]
    pub(crate) pids: Option<u32>,

    /// Processors, also a part of one.
    #[arg(long, value_name = "N", value_parser = units::processors)]
    pub(crate) cpus: Option<f64>,

    /// Its part of busy processors in relation to other sessions, 1 to 10000; each has 100.
    #[arg(long, value_name = "N")]
    pub(crate) cpu_weight: Option<u16>,

    /// Bytes on the machine's disk: home, /tmp and /var/tmp together.
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) disk: Option<u64>,

    /// Bytes a second read from the machine's disk.
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) io_read: Option<u64>,

    /// Bytes a second written to it.
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) io_write: Option<u64>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "MACHINE:PATH is in the machine; a path of this host's that has a colon begins with ./ or /. A
destination that ends with a slash is a folder to copy into, otherwise the copy's name; so is a folder
of this host's that is there. Missing folders of the machine's are made.

Examples:
  cabana cp data.csv work:/root/
  cabana cp work:/root/result .
  cabana cp --session chat-1 src/ work:project
  cabana cp --session chat-1 work:project/report.pdf ~/Documents/"
)]
pub(crate) struct CopyArgs {
    /// A file or a folder, with all that is in it.
    #[arg(value_name = "PATH|MACHINE:PATH")]
    pub(crate) from: String,

    /// Where to.
    #[arg(value_name = "PATH|MACHINE:PATH")]
    pub(crate) to: String,

    /// With the view and the rights of this session; paths that do not begin with a slash begin at its home.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) session: Option<String>,

    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Ports lead to loopback addresses unless another is given. They lead until this command ends.
Port 0 is any free one; what it became is printed.

Examples:
  cabana forward work 8080:80
  cabana forward work --session chat-1 0:3000 --json
  cabana forward work --back 5432:5432"
)]
pub(crate) struct ForwardArgs {
    /// The machine.
    pub(crate) machine: String,

    /// A port of this host's, and the port of the machine's that it leads to.
    #[arg(value_name = "[ADDRESS:]PORT:GUEST", value_parser = units::publish, required_unless_present = "back")]
    pub(crate) forwards: Vec<Publish>,

    /// A port of the machine's, and the port that this host reaches it leads to.
    #[arg(long, value_name = "GUEST:[ADDRESS:]PORT", value_parser = units::back)]
    pub(crate) back: Vec<Publish>,

    /// The ports of this session, in place of the machine's.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) session: Option<String>,

    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct HoldArgs {
    /// The machine, as JSON.
    pub(crate) spec: String,
}

/// A machine's network.
#[derive(Clone, Debug, Args)]
pub(crate) struct NetworkArgs {
    /// Give the machine a network card. What leaves through it is decided on the host: nothing does
    /// unless it is allowed.
    #[arg(long)]
    pub(crate) net: bool,

    #[command(flatten)]
    pub(crate) policy: PolicyArgs,

    /// Give the guest a placeholder for a secret, which only requests in TLS to HOST turn into the value; without
    /// a value, take this environment's. The variable NAME holds the placeholder. Implies --net.
    #[arg(long = "secret", value_name = "NAME[=VALUE]@HOST[,HOST...][/HEADER,...]")]
    pub(crate) secrets: Vec<String>,

    /// The proxy through which this host reaches the rest: `env` for the environment's, `none`, or one URL.
    #[arg(long, value_name = "env|none|URL", default_value = "env")]
    pub(crate) proxy: String,

    /// Make programs in the guest trust whom this host trusts, as a company whose proxy looks into TLS needs.
    #[arg(long)]
    pub(crate) host_trust: bool,

    /// Write every verdict about the network to FILE, a line of JSON each; implies --net.
    #[arg(long, value_name = "FILE")]
    pub(crate) net_log: Option<PathBuf>,

    /// Lead a port of the host's, of its loopback unless an address is given, to a TCP port of the
    /// guest's; implies --net.
    #[arg(long = "publish", value_name = "[ADDRESS:]PORT:GUEST", value_parser = units::publish)]
    pub(crate) publish: Vec<Publish>,

    /// Write what the guest sends and receives to FILE, for Wireshark or tcpdump; implies --net.
    #[arg(long, value_name = "FILE")]
    pub(crate) pcap: Option<PathBuf>,
}

impl NetworkArgs {
    /// Whether a network is asked for.
    pub(crate) fn any(&self) -> bool {
        self.net
            || !self.policy.is_empty()
            || !self.secrets.is_empty()
            || !self.publish.is_empty()
            || self.pcap.is_some()
            || self.net_log.is_some()
    }
}

/// What may leave a machine that is up, or a session of one.
#[derive(Clone, Debug, Args)]
pub(crate) struct RulesArgs {
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,

    /// Ask about what no rule decides, in place of denying it: see `cabana net answer`.
    #[arg(long)]
    pub(crate) ask: bool,
}

/// What may leave a machine.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct PolicyArgs {
    /// Let the guest reach a host, a network or a set (pypi, npm, crates, debian, github...); implies --net.
    #[arg(long = "allow", value_name = "[SCHEME://]HOST[:PORT]|SET")]
    pub(crate) allow: Vec<String>,

    /// Deny a part of what is allowed.
    #[arg(long = "deny", value_name = "[SCHEME://]HOST[:PORT]|SET")]
    pub(crate) deny: Vec<String>,

    /// Read a policy, TOML or JSON; --allow and --deny add to it. A running machine follows the file when it
    /// changes. Implies --net.
    #[arg(long = "policy", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct NetArgs {
    #[command(subcommand)]
    pub(crate) verb: NetVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetVerb {
    /// Show what happened in a network: from a log that --net-log writes, or as it happens in a machine that is up.
    #[command(after_help = "Examples:
  cabana net log net.jsonl --denied
  cabana net log --machine work
  cabana net log --machine work --json | jq -r 'select(.what == \"flow\") | .host'")]
    Log(NetLogArgs),
    /// Explain what a policy would do with a connection, and why.
    Test(NetTestArgs),
    /// Say how the network of a machine that is up is: rules, published ports, figures.
    Status(NamedArgs),
    /// Put other rules in place of those of a machine that is up, or of one of its sessions, at once.
    #[command(
        after_help = "Without a rule nothing is allowed; for a session, without a rule the machine's hold again.

Examples:
  cabana net set work --allow pypi --allow github
  cabana net set work --session chat-1 --policy chat.toml"
    )]
    Set(NetSetArgs),
    /// Answer a question that `net log` shows.
    #[command(after_help = "Examples:
  cabana net answer work 3 yes
  cabana net answer work 4 no --remember session")]
    Answer(NetAnswerArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NetLogArgs {
    /// The log.
    #[arg(value_name = "FILE", required_unless_present = "machine")]
    pub(crate) file: Option<PathBuf>,

    /// A machine that is up, in place of a log: what happens in its network from now on.
    #[arg(short, long, value_name = "NAME", conflicts_with = "file")]
    pub(crate) machine: Option<String>,

    /// Go on showing what comes into the log, until interrupted.
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// Only what was denied or failed.
    #[arg(long)]
    pub(crate) denied: bool,

    /// For programs.
    #[arg(long, requires = "machine")]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct NetSetArgs {
    /// The machine.
    pub(crate) machine: String,

    /// One of its sessions.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) session: Option<String>,

    #[command(flatten)]
    pub(crate) rules: RulesArgs,

    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct NetAnswerArgs {
    /// The machine.
    pub(crate) machine: String,

    /// The question's number.
    pub(crate) ask: u64,

    /// May it pass?
    #[arg(value_parser = ["yes", "no"])]
    pub(crate) answer: String,

    /// For how long and for whom the answer holds: `once`, or as long as the machine runs for the `session` that
    /// asked or for all of the `machine`.
    #[arg(long, value_name = "once|session|machine", value_parser = ["once", "session", "machine"], default_value = "once")]
    pub(crate) remember: String,
}

#[derive(Debug, Args)]
#[command(after_help = "The exit status is 0 if the connection would be allowed, else 1.")]
pub(crate) struct NetTestArgs {
    /// A host name or an address, with a port unless it is 443.
    #[arg(value_name = "HOST[:PORT]")]
    pub(crate) host: String,

    #[command(flatten)]
    pub(crate) policy: PolicyArgs,

    /// With the rules of a machine that is up.
    #[arg(short, long, value_name = "NAME", conflicts_with_all = ["allow", "deny", "file"])]
    pub(crate) machine: Option<String>,

    /// As a session that the policy names.
    #[arg(long, value_name = "NAME")]
    pub(crate) session: Option<String>,

    /// UDP in place of TCP.
    #[arg(long)]
    pub(crate) udp: bool,
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory};

    use super::*;

    #[test]
    fn the_short_way_to_run_says_what_the_long_one_says() {
        let lines: [&[&str]; 6] = [
            &["run"],
            &["run", "--help"],
            &["run", "--memory", "much", "--", "true"],
            &["run", "--none", "--", "true"],
            &["run", "--from", "x", "--cpus", "2", "--", "true"],
            &["run", "--share"],
        ];
        for line in lines {
            let words = || std::iter::once(&"cabana").chain(line).map(OsString::from);
            let (short, long) = (Cli::read(words()), Cli::try_parse_from(words()));
            let text = |parsed: Result<Cli, clap::Error>| parsed.unwrap_err().to_string();
            assert_eq!(text(short), text(long), "{line:?}");
        }
        let words = ["cabana", "run", "--cpus", "2", "--", "ls", "-l"].map(OsString::from);
        let Verb::Run(args) = Cli::read(words.into_iter()).unwrap().verb else { panic!("no run") };
        assert_eq!((args.cpus, args.command.len()), (2, 2));
    }

    #[test]
    fn what_is_no_verb_is_said_so() {
        for line in [&["cabana", "rum"][..], &["cabana", "worker", "x"], &["cabana"]] {
            assert!(Cli::read(line.iter().map(OsString::from)).is_err(), "{line:?}");
        }
        let worker = ["cabana", "worker"].map(OsString::from);
        assert!(matches!(Cli::read(worker.into_iter()).unwrap().verb, Verb::Worker));
    }

    /// Verbs whose output is a command's, a protocol's or a shell's own, and those whose exit status says all.
    const NOT_FOR_PROGRAMS: &[&str] = &[
        "attach",
        "boot",
        "completions",
        "hold",
        "net answer",
        "net test",
        "run",
        "serve",
        "shell",
        "snapshot save",
        "worker",
    ];

    fn leaves<'a>(command: &'a Command, name: &str, into: &mut Vec<(String, &'a Command)>) {
        let mut is_leaf = true;
        for verb in command.get_subcommands() {
            is_leaf = false;
            leaves(verb, format!("{name} {}", verb.get_name()).trim(), into);
        }
        if is_leaf {
            into.push((name.to_owned(), command));
        }
    }

    #[test]
    fn every_verb_speaks_to_programs_too() {
        let cli = Cli::command();
        let mut all = Vec::new();
        leaves(&cli, "", &mut all);
        let silent = all.iter().filter(|(name, verb)| {
            !NOT_FOR_PROGRAMS.contains(&name.as_str())
                && !verb.get_arguments().any(|argument| argument.get_long() == Some("json"))
        });
        assert_eq!(silent.map(|(name, _)| name).collect::<Vec<_>>(), Vec::<&String>::new());
    }

    #[test]
    fn completions_know_every_verb_and_option() {
        let cli = Cli::command();
        let mut all = Vec::new();
        leaves(&cli, "", &mut all);
        for shell in
            [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish]
        {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "cabana", &mut script);
            let script = String::from_utf8(script).unwrap();
            for (name, verb) in all.iter().filter(|(_, verb)| !verb.is_hide_set()) {
                let last = name.rsplit(' ').next().unwrap();
                assert!(script.contains(last), "{shell}: {name}");
                let options = verb.get_arguments().filter(|argument| !argument.is_hide_set());
                for option in options.filter_map(clap::Arg::get_long) {
                    assert!(script.contains(option), "{shell}: {name} --{option}");
                }
            }
        }
    }
}

//! The command line.

mod machines;
mod network;
mod shares;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

pub(crate) use machines::*;
pub(crate) use network::*;
pub(crate) use shares::*;

use crate::units::{self, DiskArg, ShareArg};

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

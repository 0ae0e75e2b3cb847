//! Machines that stay up, and their sessions.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use cabana_sandbox::Publish;
use clap::{Args, Subcommand};

use super::{NetworkArgs, RulesArgs};
use crate::units::{self, ShareArg};

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
    #[arg(long = "share", value_name = "HOST[:GUEST][:ro|:journal[=SIZE]]", value_parser = units::share)]
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

    /// Let folders that are shared while the machine runs have journals; its worker can reach those of all folders.
    #[arg(long)]
    pub(crate) journals: bool,

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
    #[arg(long = "share", value_name = "HOST[:GUEST][:ro|:journal[=SIZE]]", value_parser = units::share)]
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

//! The developer's front door: `cargo xtask setup|run|lab|test|bench|check`.

mod artifacts;
mod bench;
mod cargo;
mod check;
mod failure;
mod in_lab;
mod kvm;
mod lines;
mod node;
mod packages;
mod progress;
mod run;
mod setup;
mod target;
mod test;
mod wheel;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;

/// Sets up, runs, tests and checks Cabana.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Brings everything that this machine lacks: packages, the guest's kernel, agent and image, the
    /// `cabana` binary, the lab. A second call finds nothing to do.
    Setup {
        /// The guests' processor. For another than this machine's, kernel, agent and image go into a store of
        /// their own within the user's, where the lab of that processor looks for them.
        #[arg(long, value_enum, default_value_t = Arch::host())]
        arch: Arch,
    },
    /// Sets up, then runs `cabana run` with these arguments, in the lab where this machine's KVM
    /// cannot run Linux.
    #[command(disable_help_flag = true)]
    Run {
        /// The arguments of `cabana run`: [OPTIONS] -- COMMAND…
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Runs any command in the lab, where a real KVM exists, with this machine's files.
    Lab(LabArguments),
    /// Builds and runs the tests, and ends with a summary.
    Test {
        /// Also runs the tests that take long.
        #[arg(long)]
        long: bool,
        /// The suites to run; all if none is named.
        suites: Vec<test::Suite>,
    },
    /// Measures Cabana beside QEMU, in the lab's instruction clock where this machine's KVM cannot
    /// run Linux, and prints a table.
    Bench {
        /// What to measure; everything if nothing is named.
        bench: Option<bench::Bench>,
        /// How often, besides a first, cold run of each kind.
        #[arg(long, value_name = "N", default_value_t = 7)]
        runs: usize,
        /// Fail if a figure is more than `benches/budget.toml` allows (`boot` alone has a budget).
        #[arg(long)]
        gate: bool,
        /// Measure this commit first, in a checkout of its own, and print what changed since.
        #[arg(long, value_name = "COMMIT", conflicts_with = "gate")]
        compare: Option<String>,
    },
    /// Checks what no test can: formatting, lints, layers, `unsafe`, licences.
    Check {
        /// The checks to make; all if none is named.
        checks: Vec<check::Check>,
    },
}

#[derive(Debug, clap::Args)]
struct LabArguments {
    /// The lab's processor. On arm64 none of this machine's programs run: the command must be a static one
    /// for that processor, as `cargo build --target aarch64-unknown-linux-musl` makes.
    #[arg(long, value_enum, default_value_t = Arch::X86_64)]
    arch: Arch,
    /// Lets time in the lab count executed instructions, one a nanosecond.
    #[arg(long)]
    instruction_clock: bool,
    /// A folder in which what the command writes stays, besides the current one.
    #[arg(long, value_name = "DIR")]
    writable: Vec<PathBuf>,
    /// The memory of the lab's machine in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    memory: u32,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// The processor of a lab.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Arch {
    #[value(name = "x86_64")]
    X86_64,
    #[value(name = "aarch64")]
    Aarch64,
}

impl Arch {
    fn host() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 }
    }
}

impl From<Arch> for cabana_kernel::Architecture {
    fn from(arch: Arch) -> Self {
        match arch {
            Arch::X86_64 => Self::X86_64,
            Arch::Aarch64 => Self::Aarch64,
        }
    }
}

impl From<Arch> for cabana_lab::Architecture {
    fn from(arch: Arch) -> Self {
        match arch {
            Arch::X86_64 => Self::X86_64,
            Arch::Aarch64 => Self::Arm64,
        }
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Setup { arch } => setup::everything(arch.into()).map(|()| ExitCode::SUCCESS),
        // Taken as they are: what stands before and after `--` is for `cabana` to tell apart.
        Task::Run { .. } => run::run(std::env::args_os().skip(2).collect()),
        Task::Lab(arguments) => lab(arguments),
        Task::Test { long, suites } => test::test(&suites, long),
        Task::Bench { bench, runs, gate, compare } => match compare {
            Some(commit) => bench::compare(bench, runs, &commit),
            None => bench::bench(bench, runs, gate),
        },
        Task::Check { checks } => check::check(&checks),
    };
    result.unwrap_or_else(|failure| {
        eprintln!("xtask: {failure}");
        failure.exit_code()
    })
}

fn lab(arguments: LabArguments) -> Result<ExitCode, Failure> {
    let mut options = cabana_lab::Options {
        instruction_clock: arguments.instruction_clock,
        writable: arguments.writable,
        memory_mib: arguments.memory,
        ..cabana_lab::Options::default()
    };
    options.writable.extend(in_lab::current_folder());
    in_lab::run(arguments.arch.into(), &options, &arguments.command)
}

//! The file server with no guest: its device beside bare system calls ([`device`]), and what a share's journal costs
//! ([`journal`]). Prints tables.

mod device;
mod driver;
mod journal;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures the file server in this process.
#[derive(Debug, Parser)]
struct Cli {
    /// Where to make the files.
    #[arg(long, global = true, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// The virtio-fs device alone beside bare system calls.
    Device {
        /// How often; the least counts.
        #[arg(long, value_name = "N", default_value_t = 15)]
        runs: usize,
    },
    /// What a share's journal costs.
    Journal {
        /// How often; the least counts.
        #[arg(long, value_name = "N", default_value_t = 7)]
        runs: usize,
    },
}

fn main() -> ExitCode {
    let Cli { folder, task } = Cli::parse();
    match measure(&folder, &task) {
        Ok(table) => {
            print!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cabana-bench-files: {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

fn measure(folder: &Path, task: &Task) -> io::Result<String> {
    let folder = tempfile::tempdir_in(folder)?;
    Ok(match task {
        Task::Device { runs } => device::markdown(&device::measure(folder.path(), *runs)?),
        Task::Journal { runs } => journal::markdown(&journal::measure(folder.path(), *runs)?),
    })
}

//! Measures the network stack beside plain loopback TCP, and prints figures as JSON and as a table.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use cabana_benches::{Error, net};
use clap::{Parser, Subcommand};

/// Measures the network stack.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// The stack alone, in this process, beside plain loopback TCP.
    Stack {
        /// How often, besides a first run.
        #[arg(long, value_name = "N", default_value_t = 5)]
        runs: usize,
        /// Where to write the figures as JSON.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// The host's end, which `stack` starts by itself.
    Peer,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Stack { runs, to } => stack(runs, to),
        Task::Peer => peer(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn stack(runs: usize, to: Option<PathBuf>) -> Result<(), Error> {
    let program = std::env::current_exe().map_err(Error::file("this program"))?;
    let mut child = Command::new(&program)
        .arg("peer")
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .map_err(Error::file(&program))?;
    let mut line = String::new();
    let result = match child.stdout.take() {
        Some(stdout) => BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(Error::file("the peer's address"))
            .and_then(|_| {
                let why =
                    |_| Error::Content { path: "the peer's address".into(), why: line.clone() };
                line.trim().parse::<SocketAddr>().map_err(why)
            })
            .and_then(|peer| net::measure(peer, runs, &|what| eprintln!("bench: {what}"))),
        None => Err(Error::Content { path: program, why: "no output".into() }),
    };
    let _ = child.kill();
    let _ = child.wait();
    let figures = result?;
    print!("{}", figures.markdown());
    if let Some(path) = to {
        let json = serde_json::to_string_pretty(&figures)
            .map_err(|error| Error::Content { path: path.clone(), why: error.to_string() })?;
        std::fs::write(&path, json + "\n").map_err(Error::file(&path))?;
    }
    Ok(())
}

fn peer() -> Result<(), Error> {
    let failed = || Error::file("the peer's socket");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
    println!("{}", listener.local_addr().map_err(failed())?);
    net::serve(&listener).map_err(failed())
}

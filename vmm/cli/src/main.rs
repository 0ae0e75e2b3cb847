//! The `cabana` command.

mod args;
mod boot;
mod doctor;
mod hold;
mod image;
mod machines;
mod net;
mod policy;
mod run;
mod serve;
mod sessions;
mod share;
mod shares;
mod signals;
mod snapshot;
mod terminal;
mod trace;
mod units;

use std::process::ExitCode;

use args::{Cli, Verb};
use clap::CommandFactory;

/// Cabana itself failed, or was called wrongly.
const FAILED: u8 = 125;
/// `--timeout` passed.
const TIMED_OUT: u8 = 124;

/// Why a command of `cabana` ended early, in one sentence for stderr.
#[derive(Debug)]
struct Failure {
    status: u8,
    sentence: String,
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { status: FAILED, sentence: error.to_string() }
    }
}

impl Failure {
    fn new(sentence: impl Into<String>) -> Self {
        Self { status: FAILED, sentence: sentence.into() }
    }
}

fn main() -> ExitCode {
    let started = trace::Start::now();
    #[cfg(panic = "unwind")]
    end_with_panics();
    cabana_sandbox::share_heap();
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { FAILED } else { 0 });
        }
    };
    let ended = match cli.verb {
        Verb::Run(args) => run::run(*args, started),
        Verb::Boot(args) => boot::boot(args),
        Verb::Doctor(args) => doctor::doctor(&args),
        Verb::Image(args) => image::image(args),
        Verb::Share(args) => share::share(args),
        Verb::Snapshot(args) => snapshot::snapshot(args, started),
        Verb::Up(args) => machines::up(&args),
        Verb::Ps(args) => machines::ps(&args),
        Verb::Exec(args) => machines::exec(args),
        Verb::Attach(args) => machines::attach(&args),
        Verb::Shell(args) => machines::shell(args),
        Verb::Session(args) => sessions::session(args),
        Verb::Cp(args) => sessions::copy(args),
        Verb::Forward(args) => sessions::forward(args),
        Verb::Logs(args) => machines::logs(&args),
        Verb::Down(args) => machines::down(&args),
        Verb::Serve(args) => serve::serve(args),
        Verb::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "cabana", &mut std::io::stdout());
            Ok(0)
        }
        Verb::Hold(args) => hold::hold(&args),
        Verb::Worker => Ok(cabana_worker::run()),
        Verb::Net(args) => net::net(args),
    };
    match ended {
        Ok(status) => ExitCode::from(status),
        Err(Failure { status, sentence }) => {
            eprintln!("cabana: {sentence}");
            ExitCode::from(status)
        }
    }
}

/// A panic in any thread ends the process where it unwinds, in builds for tests, as it does where it aborts.
#[cfg(panic = "unwind")]
fn end_with_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

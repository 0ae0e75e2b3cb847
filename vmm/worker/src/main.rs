//! `cabana-worker`: for applications that bring the engine and not the command `cabana`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(cabana_worker::run())
}

//! The program of the guests in `tests/linux_arm64.rs`, and of nobody else.

#[cfg(target_os = "linux")]
mod linux;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("this is a program for Linux guests");
    ExitCode::FAILURE
}

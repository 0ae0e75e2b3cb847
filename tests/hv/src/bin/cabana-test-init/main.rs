//! The program of the guests in `tests/linux_arm64.rs`, which are Linux.

#[cfg(target_os = "linux")]
mod init;

fn main() -> std::process::ExitCode {
    #[cfg(target_os = "linux")]
    return init::main();
    #[cfg(not(target_os = "linux"))]
    std::process::ExitCode::FAILURE
}

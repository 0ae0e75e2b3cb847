//! Standard libraries for other targets.

use std::process::{Command, Stdio};

use crate::cargo;
use crate::failure::{Failure, output};

/// Why there is no standard library for a target, after rustup was asked for it; `None` if there is one.
pub(crate) fn missing(target: &str) -> Result<Option<String>, Failure> {
    let is_there = installed(target)? || install(target);
    let why = || {
        format!("the standard library for {target} cannot be had (`rustup target add {target}`)")
    };
    Ok((!is_there).then(why))
}

/// The compilers of C for other targets, and whose packages they and their headers are in.
const COMPILERS: &[(&str, &str, &str)] = &[
    (
        "aarch64-unknown-linux-musl",
        "aarch64-linux-gnu-gcc",
        "gcc-aarch64-linux-gnu and libc6-dev-arm64-cross",
    ),
    ("x86_64-pc-windows-gnu", "x86_64-w64-mingw32-gcc", "gcc-mingw-w64-x86-64"),
];

/// Why nothing that has C in it can be built for a target; `None` if it can.
pub(crate) fn missing_c(target: &str) -> Option<String> {
    let Some((_, compiler, packages)) = COMPILERS.iter().find(|(of, ..)| *of == target) else {
        return Some(format!("nobody here compiles C for {target}"));
    };
    let mut command = Command::new(compiler);
    command.args(["-E", "-x", "c", "-include", "stdint.h", "/dev/null"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let works = command.status().is_ok_and(|status| status.success());
    (!works)
        .then(|| format!("{compiler} or its C library's headers are missing (Debian's {packages})"))
}

/// Is the target's standard library there?
fn installed(target: &str) -> Result<bool, Failure> {
    let folder =
        output(Command::new("rustc").args(["--print", "target-libdir", "--target", target]))?;
    Ok(std::path::Path::new(folder.trim()).exists())
}

/// Asks rustup for it, where there is one.
fn install(target: &str) -> bool {
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", target]).current_dir(cargo::workspace());
    rustup.stdout(Stdio::null()).stderr(Stdio::null());
    rustup.status().is_ok_and(|status| status.success())
}

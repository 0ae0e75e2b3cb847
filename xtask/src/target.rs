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

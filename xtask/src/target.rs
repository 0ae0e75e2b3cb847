//! Standard libraries for other targets.

use std::process::{Command, Stdio};

use crate::cargo;
use crate::failure::{Failure, output};

/// Is the target's standard library there?
pub(crate) fn installed(target: &str) -> Result<bool, Failure> {
    let folder =
        output(Command::new("rustc").args(["--print", "target-libdir", "--target", target]))?;
    Ok(std::path::Path::new(folder.trim()).exists())
}

/// Asks rustup for it, where there is one.
pub(crate) fn install(target: &str) -> bool {
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", target]).current_dir(cargo::workspace());
    rustup.stdout(Stdio::null()).stderr(Stdio::null());
    rustup.status().is_ok_and(|status| status.success())
}

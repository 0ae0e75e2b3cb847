//! Programs out of Python's package index, whose wheels need no compiler and no root.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::failure::{Failure, succeed};
use crate::progress::say;

/// Installs one wheel, and nothing that it depends on, into a folder, which is there only once it is whole.
pub(crate) fn install(wheel: &str, folder: &Path) -> Result<(), Failure> {
    if folder.exists() {
        return Ok(());
    }
    say(&format!("xtask: installing {wheel}"));
    let part = folder.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--root-user-action=ignore", wheel]);
    succeed(pip.arg("--target").arg(&part).stdout(Stdio::null()))?;
    fs::rename(&part, folder).map_err(Failure::file(folder))
}

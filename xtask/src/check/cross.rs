//! Clippy for the targets that nobody here runs, so that what is portable stays so.

use std::process::{Command, Stdio};

use crate::cargo;
use crate::failure::{Failure, output, succeed};
use crate::progress::say;

/// What compiles everywhere. A crate joins when it does.
const EVERYWHERE: &[&str] = &[
    "cabana-api",
    "cabana-bus",
    "cabana-egress",
    "cabana-hv",
    "cabana-hv-x86",
    "cabana-os",
    "cabana-platform",
    "cabana-protocol",
];

/// The targets, and what compiles there beside [`EVERYWHERE`].
const TARGETS: &[(&str, &[&str])] = &[
    ("x86_64-pc-windows-gnu", WINDOWS),
    ("aarch64-apple-darwin", MACOS),
    ("x86_64-apple-darwin", MACOS),
    ("aarch64-unknown-linux-gnu", LINUX),
    ("aarch64-unknown-linux-musl", LINUX),
];

/// The backend, beside what is everywhere.
const WINDOWS: &[&str] = &["cabana-hv-whp"];

/// On Windows `vm-memory` takes no memory that somebody else has mapped.
const MACOS: &[&str] = &["cabana-boot", "cabana-memory", "cabana-store"];

/// What is Linux's alone today, on every processor.
const LINUX: &[&str] = &[
    "cabana-boot",
    "cabana-hv-kvm",
    "cabana-memory",
    "cabana-netstack",
    "cabana-snapshot",
    "cabana-store",
    "cabana-virtio",
];

/// Lints every target that can be had, and names those that cannot.
pub(super) fn check() -> Result<(), Failure> {
    for (target, beside) in TARGETS {
        if !installed(target)? && !install(target) {
            say(&format!(
                "check Cross: SKIPPED {target}: its standard library cannot be had (`rustup target add {target}`)"
            ));
            continue;
        }
        let mut clippy = cargo::cargo();
        clippy.args(["clippy", "--quiet", "--all-targets", "--target", target]);
        for package in EVERYWHERE.iter().chain(*beside) {
            clippy.args(["--package", package]);
        }
        succeed(clippy.args(["--", "-D", "warnings"]))?;
        say(&format!("check Cross: {target}: {} crates", EVERYWHERE.len() + beside.len()));
    }
    Ok(())
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

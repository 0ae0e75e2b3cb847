//! Clippy for the targets that nobody here runs, so that what is portable stays so, and a link where nothing can run
//! (where it can, `cargo xtask test cross` links and runs the tests).

use super::apple;
use crate::cargo;
use crate::failure::{Failure, succeed};
use crate::progress::say;
use crate::target::missing;

/// What compiles everywhere. A crate joins when it does.
const EVERYWHERE: &[&str] = &[
    "cabana-api",
    "cabana-bus",
    "cabana-egress",
    "cabana-hv",
    "cabana-hv-hvf",
    "cabana-hv-x86",
    "cabana-os",
    "cabana-platform",
    "cabana-protocol",
    "cabana-test-hv",
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
    "cabana-agent",
    "cabana-boot",
    "cabana-hv-kvm",
    "cabana-lab",
    "cabana-machine",
    "cabana-memory",
    "cabana-netstack",
    "cabana-snapshot",
    "cabana-store",
    "cabana-virtio",
];

/// What compiles for a target.
pub(crate) fn crates(target: &str) -> impl Iterator<Item = &'static str> {
    let of = TARGETS.iter().find(|(name, _)| *name == target);
    EVERYWHERE.iter().chain(of.into_iter().flat_map(|(_, beside)| *beside)).copied()
}

/// Lints every target that can be had, and names those that cannot.
pub(super) fn check() -> Result<(), Failure> {
    for (target, _) in TARGETS {
        if let Some(why) = missing(target)? {
            say(&format!("check Cross: SKIPPED {target}: {why}"));
            continue;
        }
        let mut clippy = cargo::cargo();
        clippy.args(["clippy", "--quiet", "--all-targets", "--target", target]);
        for package in crates(target) {
            clippy.args(["--package", package]);
        }
        succeed(clippy.args(["--", "-D", "warnings"]))?;
        say(&format!("check Cross: {target}: {} crates", crates(target).count()));
        if target.ends_with("-apple-darwin") && !cfg!(target_os = "macos") {
            link(target)?;
        }
    }
    Ok(())
}

/// Links the tests for a Mac.
fn link(target: &str) -> Result<(), Failure> {
    let mut build = cargo::cargo();
    if let Err(why) = apple::link_with_stubs(&mut build, target) {
        say(&format!("check Cross: SKIPPED the link for {target}: {why}"));
        return Ok(());
    }
    build.args(["test", "--quiet", "--no-run", "--target", target]);
    build.args(crates(target).flat_map(|package| ["--package", package]));
    succeed(&mut build)?;
    say(&format!("check Cross: {target}: the tests link"));
    Ok(())
}

//! Clippy for the targets that nobody here runs, so that what is portable stays so, and a link where nothing can run
//! (where it can, `cargo xtask test cross` links and runs the tests).

use std::process::Command;

use super::apple;
use crate::cargo;
use crate::failure::{Failure, succeed};
use crate::progress::say;
use crate::target::{missing, missing_c};

/// What compiles everywhere. A crate joins when it does.
const EVERYWHERE: &[&str] = &[
    "cabana-api",
    "cabana-balloon",
    "cabana-block",
    "cabana-boot",
    "cabana-bus",
    "cabana-console",
    "cabana-egress",
    "cabana-fs",
    "cabana-hv",
    "cabana-hv-hvf",
    "cabana-hv-x86",
    "cabana-journal",
    "cabana-lapic",
    "cabana-machine",
    "cabana-memory",
    "cabana-net",
    "cabana-netstack",
    "cabana-os",
    "cabana-platform",
    "cabana-pmem",
    "cabana-protocol",
    "cabana-rng",
    "cabana-snapshot",
    "cabana-store",
    "cabana-test-hv",
    "cabana-virtio",
    "cabana-vsock",
];

/// The targets, with what compiles there beside [`EVERYWHERE`], and where C does, beside [`PRODUCT`].
const TARGETS: &[(&str, &[&str], &[&str])] = &[
    ("x86_64-pc-windows-gnu", WINDOWS, &[]),
    ("aarch64-apple-darwin", &[], &[]),
    ("x86_64-apple-darwin", &[], &[]),
    ("aarch64-unknown-linux-musl", LINUX, &["cabana-test-guest"]),
];

/// The backend, beside what is everywhere.
const WINDOWS: &[&str] = &["cabana-hv-whp"];

/// What is Linux's alone today, on every processor.
const LINUX: &[&str] = &["cabana-agent", "cabana-hv-kvm", "cabana-lab"];

/// What a machine is made of above its board, and the command, which has C in it.
const PRODUCT: &[&str] = &[
    "cabana-cli",
    "cabana-egress-host",
    "cabana-engine",
    "cabana-pac",
    "cabana-sandbox",
    "cabana-serve",
    "cabana-worker",
];

/// What compiles for a target.
pub(crate) fn crates(target: &str) -> impl Iterator<Item = &'static str> {
    let of = TARGETS.iter().find(|(name, ..)| *name == target);
    EVERYWHERE.iter().chain(of.into_iter().flat_map(|(_, beside, _)| *beside)).copied()
}

/// What of the product compiles for a target, where C does.
pub(crate) fn product(target: &str) -> impl Iterator<Item = &'static str> {
    let of = TARGETS.iter().find(|(name, ..)| *name == target);
    of.into_iter().flat_map(|(.., beside)| PRODUCT.iter().chain(*beside)).copied()
}

/// What of that is linked for Macs: the tests that a person with one runs first, and for today's all programs.
const LINKED: &[(&str, &[&str])] = &[
    ("aarch64-apple-darwin", &["cabana-cli", "cabana-hv-hvf", "cabana-pac", "cabana-test-hv"]),
    ("x86_64-apple-darwin", &["cabana-hv-hvf", "cabana-test-hv"]),
];

/// Lints every target that can be had, and names those that cannot.
pub(super) fn check() -> Result<(), Failure> {
    for (target, ..) in TARGETS {
        if let Some(why) = missing(target)? {
            say(&format!("check Cross: SKIPPED {target}: {why}"));
            continue;
        }
        lint(target)?;
        let linked = LINKED.iter().find(|(name, _)| name == target);
        if let Some((_, packages)) = linked
            && !cfg!(target_os = "macos")
        {
            link(target, packages)?;
        }
    }
    Ok(())
}

/// Lints what compiles for a target; without what has C in it where C does not.
fn lint(target: &str) -> Result<(), Failure> {
    let mut clippy = cargo::cargo();
    let mut packages: Vec<_> = crates(target).collect();
    match with_c(&mut clippy, target) {
        Ok(()) => packages.extend(product(target)),
        Err(why) => {
            say(&format!("check Cross: SKIPPED the engine and the command for {target}: {why}"));
        }
    }
    clippy.args(["clippy", "--quiet", "--all-targets", "--target", target]);
    clippy.args(packages.iter().flat_map(|package| ["--package", package]));
    succeed(clippy.args(["--", "-D", "warnings"]))?;
    say(&format!("check Cross: {target}: {} crates", packages.len()));
    Ok(())
}

/// Lets cargo compile C for a target, or says why it cannot.
fn with_c(cargo: &mut Command, target: &str) -> Result<(), String> {
    match (target.ends_with("-apple-darwin"), cfg!(target_os = "macos")) {
        (true, true) => Ok(()),
        (true, false) => apple::compile(cargo, target).map_err(|failure| failure.to_string()),
        (false, _) => missing_c(target).map_or(Ok(()), Err),
    }
}

/// Links packages for a Mac.
fn link(target: &str, packages: &[&str]) -> Result<(), Failure> {
    let mut build = cargo::cargo();
    let ready = apple::compile(&mut build, target);
    if let Err(why) = ready.and_then(|()| apple::link_with_stubs(&mut build, target)) {
        say(&format!("check Cross: SKIPPED the link for {target}: {why}"));
        return Ok(());
    }
    build.args(["test", "--quiet", "--no-run", "--target", target]);
    build.args(packages.iter().flat_map(|package| ["--package", package]));
    succeed(&mut build)?;
    say(&format!("check Cross: {target}: {} link", packages.join(", ")));
    Ok(())
}

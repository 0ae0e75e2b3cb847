//! `cargo xtask check`: what no test can check.

mod apple;
pub(crate) mod cross;
mod layers;
mod sources;

use std::process::{Command, ExitCode, Stdio};

use crate::cargo;
use crate::failure::{Failure, succeed};
use crate::progress::say;

/// A check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Check {
    /// The formatting is rustfmt's.
    Fmt,
    /// Imports point down only.
    Layers,
    /// `unsafe` and operating systems stay where they belong.
    Sources,
    /// Clippy warns of nothing.
    Clippy,
    /// Clippy warns of nothing on other operating systems and processors, and what is for Macs links.
    Cross,
    /// Licences and advisories of the dependencies, where cargo-deny is installed.
    Deny,
}

impl Check {
    /// All of them, the quick ones first.
    const ALL: [Self; 6] =
        [Self::Fmt, Self::Layers, Self::Sources, Self::Clippy, Self::Cross, Self::Deny];
}

/// Makes the checks, all if none is named; goes on after a failure, to show them all.
pub(crate) fn check(checks: &[Check]) -> Result<ExitCode, Failure> {
    let checks = if checks.is_empty() { &Check::ALL[..] } else { checks };
    let mut failed = false;
    for check in checks {
        let result = match check {
            Check::Fmt => succeed(cargo::cargo().args(["fmt", "--all", "--check"])),
            Check::Clippy => clippy(),
            Check::Cross => cross::check(),
            Check::Layers => layers::check(&cargo::metadata()?),
            Check::Sources => sources::check(cargo::workspace()),
            Check::Deny if !has_cargo_deny() => {
                let install = "cargo install cargo-deny";
                say(&format!("check Deny: skipped: cargo-deny is not installed (`{install}`)"));
                continue;
            }
            Check::Deny => deny(),
        };
        match result {
            Ok(()) => say(&format!("check {check:?}: fine")),
            Err(failure) => {
                failed = true;
                say(&format!("check {check:?}: {failure}"));
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn clippy() -> Result<(), Failure> {
    let mut command = cargo::cargo();
    command.args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    succeed(&mut command)
}

fn has_cargo_deny() -> bool {
    let mut version = Command::new("cargo-deny");
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn deny() -> Result<(), Failure> {
    let deny =
        |words: &[&str]| succeed(cargo::cargo().args(["deny", "--log-level", "error"]).args(words));
    deny(&["check", "bans", "licenses", "sources"])?;
    // The advisories come from a public repository; without a way there the rest still counts.
    if deny(&["fetch", "db"]).is_err() {
        say("check Deny: advisories skipped: their database cannot be fetched");
        return Ok(());
    }
    deny(&["check", "--disable-fetch", "advisories"])
}

/// All findings as one failure, or none.
fn findings(findings: &[String]) -> Result<(), Failure> {
    if findings.is_empty() {
        return Ok(());
    }
    Err(Failure::Sentence(format!("\n  {}", findings.join("\n  "))))
}

//! The portable crates' tests, built and linked for targets that this machine is not: Wine runs those for Windows,
//! QEMU's user mode those for arm64.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use super::build;
use super::libtest::Report;
use super::runner::{self, Place};
use super::summary::Row;
use crate::cargo;
use crate::check::cross::crates;
use crate::failure::{Failure, succeed};
use crate::progress::say;
use crate::target::missing;

/// Debian's, which are not on the path.
const WINE: &str = "/usr/lib/wine/wine64";
const QEMU: &str = "/usr/bin/qemu-aarch64-static";
const MINGW: &str = "x86_64-w64-mingw32-gcc";

/// What QEMU's user mode has not: packages that nothing of them would run without.
const NO_PACKAGE: &[(&str, &str)] = &[
    ("cabana-hv-kvm", "there is no KVM"),
    ("cabana-lab", "it starts this machine's QEMU"),
    ("cabana-test-hv", "there is no KVM; the Arm lab runs it"),
];

/// What QEMU's user mode has not: tests.
const NO_TEST: &[(&str, &str)] = &[
    ("no_link_leads_out_and_no_name_is_overwritten", "it has no openat2"),
    ("the_kernel_takes_the_program_and_every_jump_is_short", "it has no seccomp"),
    ("what_is_lent_arrives_whole_and_comes_back", "it drops what comes of error queues"),
];

/// What runs programs of another system or processor.
pub(super) struct Interpreter {
    /// For people.
    pub name: &'static str,
    pub program: &'static Path,
    pub environment: Vec<(&'static str, OsString)>,
    /// Tests that it cannot run, each with the reason.
    pub unable: &'static [(&'static str, &'static str)],
}

/// Runs both; what cannot be had skips its own, loudly.
pub(super) fn run() -> Result<Vec<Row>, Failure> {
    Ok(vec![windows()?, arm64()?])
}

fn windows() -> Result<Row, Failure> {
    let (name, target) = ("cross (Wine)", "x86_64-pc-windows-gnu");
    if let Some(why) = lacks(target, &[WINE, MINGW])? {
        return Ok(Row::skipped(name, &why));
    }
    let folder = cargo::target_folder().join("tools/wine");
    let interpreter = Interpreter {
        name,
        program: Path::new(WINE),
        environment: vec![
            ("WINEPREFIX", folder.join("prefix").into()),
            ("WINEDEBUG", "-all".into()),
            ("WINEPATH", random_bytes(&folder)?.into()),
        ],
        unable: &[],
    };
    test(interpreter, target, &crates(target).collect::<Vec<_>>(), &[])
}

fn arm64() -> Result<Row, Failure> {
    let (name, target) = ("cross (arm64)", "aarch64-unknown-linux-musl");
    if let Some(why) = lacks(target, &[QEMU])? {
        return Ok(Row::skipped(name, &why));
    }
    let interpreter =
        Interpreter { name, program: Path::new(QEMU), environment: Vec::new(), unable: NO_TEST };
    let packages = crates(target).filter(|package| {
        let unable = NO_PACKAGE.iter().find(|(unable, _)| unable == package);
        if let Some((package, why)) = unable {
            say(&format!("{name}: without {package}: {why}"));
        }
        unable.is_none()
    });
    // Tests in folders of their own start processes and have deadlines of a processor.
    test(interpreter, target, &packages.collect::<Vec<_>>(), &["--lib"])
}

fn test(
    interpreter: Interpreter,
    target: &str,
    packages: &[&str],
    which: &[&str],
) -> Result<Row, Failure> {
    let start = Instant::now();
    let name = interpreter.name;
    say(&format!("{name}: building the tests of {} crates", packages.len()));
    let mut words = vec!["--target", target];
    words.extend(which);
    words.extend(packages.iter().flat_map(|package| ["--package", package]));
    let mut report = Report::default();
    for (test, why) in interpreter.unable {
        report.skipped += 1;
        report.reasons.push(format!("{name}: {test}: {why}"));
    }
    let place = Place::Through(interpreter);
    for binary in build::of(&words)? {
        report.add(runner::run(&binary, &place, false)?.0);
    }
    Ok(Row { name, report, seconds: start.elapsed().as_secs_f64() })
}

/// What is missing of these programs and the target's library, if anything.
fn lacks(target: &str, programs: &[&str]) -> Result<Option<String>, Failure> {
    for program in programs {
        if Command::new(program).arg("--version").output().is_err() {
            return Ok(Some(format!("there is no {program}; `cargo xtask setup` installs it")));
        }
    }
    missing(target)
}

/// Builds the library of which Wine has none; returns the folder to look for it in.
fn random_bytes(folder: &Path) -> Result<PathBuf, Failure> {
    fs::create_dir_all(folder).map_err(Failure::file(folder))?;
    let source = folder.join("bcryptprimitives.c");
    fs::write(&source, include_bytes!("bcryptprimitives.c")).map_err(Failure::file(&source))?;
    let mut compiler = Command::new(MINGW);
    compiler.args(["-shared", "-o"]).arg(folder.join("bcryptprimitives.dll")).arg(source);
    succeed(compiler.arg("-ladvapi32"))?;
    Ok(folder.to_owned())
}

//! `cargo xtask test`: builds all test binaries once, runs each suite where it can run, and ends with
//! a summary.

mod arm;
mod build;
mod cases;
mod cross;
mod libtest;
mod runner;
mod summary;

use std::cell::RefCell;
use std::process::ExitCode;
use std::time::Instant;

use cabana_lab::{Architecture, Lab, Options, Parts};
use cabana_store::Store;

use crate::artifacts::{self, MUSL};
use crate::failure::{Failure, succeed};
use crate::progress::{Board, say};
use crate::{cargo, kvm, setup};
use build::Binary;
use cases::Cases;
use libtest::Report;
use runner::Place;
use summary::Row;

/// The version whose exceptions `devices/fs/tests/pjdfstest` lists.
const PJDFSTEST: &str = "0.2.2";

/// A suite of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Suite {
    /// What needs nothing but this machine.
    Unit,
    /// Bare-metal payloads on this machine's KVM, and in the lab where that is needed.
    Hv,
    /// Real Linux guests, in the lab where that is needed.
    Guest,
    /// The lab itself.
    Lab,
    /// What is portable, on other systems and processors.
    Cross,
}

impl Suite {
    const ALL: [Self; 5] = [Self::Unit, Self::Hv, Self::Guest, Self::Lab, Self::Cross];

    /// The suite of a test binary: by its package, and of the lab only what starts a machine.
    fn of(binary: &Binary) -> Self {
        match binary.package.as_str() {
            "cabana-test-hv" => Self::Hv,
            "cabana-test-guest" => Self::Guest,
            "cabana-lab" if binary.is_integration_test => Self::Lab,
            _ => Self::Unit,
        }
    }
}

/// Runs the suites, all if none is named. The exit status says whether all tests passed.
pub(crate) fn test(suites: &[Suite], long: bool) -> Result<ExitCode, Failure> {
    let suites = if suites.is_empty() { &Suite::ALL[..] } else { suites };
    if suites.contains(&Suite::Guest) {
        setup::cabana()?;
        if let Err(failure) = artifacts::tools_image(&Store::open()?, &Board::new()) {
            say(&format!(
                "xtask: no image for tools on shares, whose tests are skipped: {failure}"
            ));
        }
        // The guest suite boots it, wherever it runs.
        cabana_lab::debian_kernel(Architecture::default(), &mut |step| {
            say(&format!("guest suite: {step}"));
        })?;
    } else {
        setup::tools()?;
    }
    if suites.iter().any(|suite| matches!(suite, Suite::Unit | Suite::Guest)) {
        pjdfstest();
    }
    say("xtask: building the tests");
    let binaries = match suites {
        [Suite::Hv] => build::of(&["--package", "cabana-test-hv"])?,
        [Suite::Cross] => Vec::new(),
        _ => build::of(&["--workspace"])?,
    };
    let of = |suite| binaries.iter().filter(move |binary| Suite::of(binary) == suite);

    let (mut rows, mut cases) = (Vec::new(), Cases::default());
    let mut run = |name: &'static str, place: &Place, suite: Suite| -> Result<(), Failure> {
        let start = Instant::now();
        let mut report = Report::default();
        for binary in of(suite) {
            let (found, output) = runner::run(binary, place, long)?;
            report.add(found);
            cases.read(&binary.target, place.name(), &output);
        }
        rows.push(Row { name, report, seconds: start.elapsed().as_secs_f64() });
        Ok(())
    };
    if suites.contains(&Suite::Unit) {
        run("unit", &Place::Here, Suite::Unit)?;
    }
    if suites.contains(&Suite::Hv) {
        run("hv", &Place::Here, Suite::Hv)?;
    }
    if suites.contains(&Suite::Lab) {
        run("lab", &Place::Here, Suite::Lab)?;
    }
    // Last, because the lab's machine takes a processor while it lives.
    let needs_kvm = |suite: &&Suite| matches!(suite, Suite::Hv | Suite::Guest);
    if suites.iter().any(|suite| needs_kvm(&suite)) {
        match kvm::runs_linux() {
            Ok(()) if suites.contains(&Suite::Guest) => run("guest", &Place::Here, Suite::Guest)?,
            Ok(()) => {}
            Err(why) => {
                say(&format!("xtask: the tests that need KVM run in the lab, because {why}"));
                let architecture = Architecture::default();
                let lab = Place::Lab(architecture, RefCell::new(start_lab(architecture)?));
                if suites.contains(&Suite::Hv) {
                    run("hv (lab)", &lab, Suite::Hv)?;
                }
                if suites.contains(&Suite::Guest) {
                    run("guest (lab)", &lab, Suite::Guest)?;
                }
            }
        }
    }
    if suites.contains(&Suite::Hv) {
        rows.push(arm::run(&mut cases)?);
    }
    if suites.contains(&Suite::Cross) {
        rows.extend(cross::run()?);
    }
    print!("{}", cases.table());
    Ok(summary::print(&rows))
}

/// Installs the test suite of POSIX file systems into `target/tools`, static, so that it runs in any guest.
/// Where that fails, its tests say that they are skipped.
fn pjdfstest() {
    let root = cargo::target_folder().join("tools");
    if root.join("bin/pjdfstest").exists() {
        return;
    }
    say("xtask: installing pjdfstest");
    let mut install = cargo::cargo();
    install.args(["install", "--quiet", "--locked", "--version", PJDFSTEST, "--target", MUSL]);
    // What it builds vanishes; the workspace's own build is no business of it.
    install.arg("--root").arg(&root).arg("pjdfstest").env_remove("CARGO_TARGET_DIR");
    if let Err(failure) = succeed(&mut install) {
        say(&format!("xtask: no pjdfstest: {failure}"));
    }
}

/// One outer machine for all suites. The workspace is writable like here, and is there even if it
/// lies under `/tmp`, of which the machine has its own.
fn start_lab(architecture: Architecture) -> Result<Lab, Failure> {
    let parts = Parts::prepare_for(architecture, &mut |step| say(&format!("lab: {step}")))?;
    let writable = vec![cargo::workspace().to_owned(), cargo::target_folder()];
    let options = Options { writable, ..Options::default() };
    Ok(Lab::start(&parts, &options)?)
}

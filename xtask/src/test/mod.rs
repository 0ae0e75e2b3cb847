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
use std::panic::resume_unwind;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use cabana_kernel::Architecture as Processor;
use cabana_lab::{Architecture, Lab, Options, Parts};

use crate::artifacts::{self, Guests, musl};
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
        if let Err(failure) = artifacts::tools_image(&Guests::of(Processor::HOST)?, &Board::new()) {
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
    let of = |suite| -> Vec<&Binary> {
        binaries.iter().filter(|binary| Suite::of(binary) == suite).collect()
    };

    let mut results = Results::default();
    for (suite, name) in [(Suite::Unit, "unit"), (Suite::Hv, "hv"), (Suite::Lab, "lab")] {
        if suites.contains(&suite) {
            results.run(name, &Place::Here, &of(suite), long)?;
        }
    }
    // The lab's machine has one processor: what runs elsewhere has the others meanwhile.
    let (linux, elsewhere) = thread::scope(|scope| {
        let elsewhere = scope.spawn(|| elsewhere(suites));
        let linux = where_linux_runs(suites, &of(Suite::Hv), &of(Suite::Guest), long);
        (linux, elsewhere.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    results.add(linux?);
    results.add(elsewhere?);
    print!("{}", results.cases.table());
    Ok(summary::print(&results.rows))
}

/// What came of the suites so far.
#[derive(Default)]
struct Results {
    rows: Vec<Row>,
    cases: Cases,
}

impl Results {
    /// Runs a suite's binaries in a place.
    fn run(
        &mut self,
        name: &'static str,
        place: &Place,
        binaries: &[&Binary],
        long: bool,
    ) -> Result<(), Failure> {
        let start = Instant::now();
        let mut report = Report::default();
        for binary in binaries {
            let (found, output) = runner::run(binary, place, long)?;
            report.add(found);
            self.cases.read(&binary.target, place.name(), &output);
        }
        self.rows.push(Row { name, report, seconds: start.elapsed().as_secs_f64() });
        Ok(())
    }

    fn add(&mut self, other: Self) {
        self.rows.extend(other.rows);
        self.cases.add(other.cases);
    }
}

/// What needs KVM: on this machine if its KVM runs Linux, else in the lab.
fn where_linux_runs(
    suites: &[Suite],
    bare: &[&Binary],
    guest: &[&Binary],
    long: bool,
) -> Result<Results, Failure> {
    let mut results = Results::default();
    if !needs_kvm(suites) {
        return Ok(results);
    }
    let Err(why) = kvm::runs_linux() else {
        if suites.contains(&Suite::Guest) {
            results.run("guest", &Place::Here, guest, long)?;
        }
        return Ok(results);
    };
    say(&format!("xtask: the tests that need KVM run in the lab, because {why}"));
    let architecture = Architecture::default();
    let lab = Place::Lab(architecture, RefCell::new(start_lab(architecture)?));
    if suites.contains(&Suite::Hv) {
        results.run("hv (lab)", &lab, bare, long)?;
    }
    if suites.contains(&Suite::Guest) {
        results.run("guest (lab)", &lab, guest, long)?;
    }
    Ok(results)
}

/// What runs for other systems and processors; what has to meet deadlines in the lab goes before it.
fn elsewhere(suites: &[Suite]) -> Result<Results, Failure> {
    // Of this thread and what it starts. A refusal only makes it less considerate.
    let _ = rustix::process::nice(10);
    let mut results = Results::default();
    if needs_kvm(suites) {
        results.rows.extend(arm::run(suites, &mut results.cases)?);
    }
    if suites.contains(&Suite::Cross) {
        results.rows.extend(cross::run()?);
    }
    Ok(results)
}

fn needs_kvm(suites: &[Suite]) -> bool {
    suites.iter().any(|suite| matches!(suite, Suite::Hv | Suite::Guest))
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
    let target = musl(Processor::HOST);
    install.args(["install", "--quiet", "--locked", "--version", PJDFSTEST, "--target", &target]);
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

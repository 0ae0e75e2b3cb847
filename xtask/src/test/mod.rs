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
use std::sync::{Mutex, MutexGuard, PoisonError};
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
use runner::Place;
use summary::Row;

/// The version whose exceptions `devices/fs/tests/pjdfstest` lists.
const PJDFSTEST: &str = "0.2.2";

/// The suites that take long in a lab.
const LONG: [&str; 4] = ["snapshots", "tools", "torture", "shares"];

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
    } else {
        setup::tools()?;
    }
    // What the tests work with comes by the network while they are built.
    let (binaries, material) = thread::scope(|scope| {
        let material = scope.spawn(|| material(suites));
        say("xtask: building the tests");
        let binaries = match suites {
            [Suite::Hv] => build::of(&["--package", "cabana-test-hv"]),
            [Suite::Cross] => Ok(Vec::new()),
            _ => build::of(&["--workspace"]),
        };
        (binaries, material.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    material?;
    let binaries = binaries?;
    let of = |suite| -> Vec<&Binary> {
        binaries.iter().filter(|binary| Suite::of(binary) == suite).collect()
    };

    let mut results = Results::default();
    for (suite, name) in [(Suite::Unit, "unit"), (Suite::Hv, "hv"), (Suite::Lab, "lab")] {
        if suites.contains(&suite) {
            results.run(&Queue::of(name, &of(suite)), &Place::Here, long)?;
        }
    }
    let here = kvm::runs_linux();
    let kvm = Queue::default();
    let rows: &[_] = match here {
        Ok(()) => &[(Suite::Guest, "guest")],
        Err(_) => &[(Suite::Hv, "hv (lab)"), (Suite::Guest, "guest (lab)")],
    };
    for (suite, name) in rows {
        if suites.contains(suite) {
            kvm.add(name, &of(*suite));
        }
    }
    // A lab has one processor, so what runs elsewhere has the others meanwhile, and a second lab after that.
    let (first, elsewhere, second) = thread::scope(|scope| {
        let others = scope.spawn(|| {
            // In a thread of its own, which is the one that is considerate.
            let elsewhere = scope.spawn(|| elsewhere(suites)).join();
            (
                elsewhere.unwrap_or_else(|panic| resume_unwind(panic)),
                where_linux_runs(&kvm, &here, long),
            )
        });
        let first = where_linux_runs(&kvm, &here, long);
        let (elsewhere, second) = others.join().unwrap_or_else(|panic| resume_unwind(panic));
        (first, elsewhere, second)
    });
    results.add(first?);
    results.add(second?);
    results.add(elsewhere?);
    print!("{}", results.cases.table());
    Ok(summary::print(&results.rows))
}

/// Gets ready what the suites work with, beside what machines are made of.
fn material(suites: &[Suite]) -> Result<(), Failure> {
    if suites.contains(&Suite::Guest) {
        if let Err(failure) = artifacts::tools_image(&Guests::of(Processor::HOST)?, &Board::new()) {
            say(&format!(
                "xtask: no image for tools on shares, whose tests are skipped: {failure}"
            ));
        }
        // The guest suite boots it, wherever it runs.
        cabana_lab::debian_kernel(Architecture::default(), &mut |step| {
            say(&format!("guest suite: {step}"));
        })?;
    }
    if suites.iter().any(|suite| matches!(suite, Suite::Unit | Suite::Guest)) {
        pjdfstest();
    }
    Ok(())
}

/// Test binaries that wait for a place, each with its row in the summary.
#[derive(Default)]
struct Queue<'a>(Mutex<Vec<(&'static str, &'a Binary)>>);

impl<'a> Queue<'a> {
    fn of(row: &'static str, binaries: &[&'a Binary]) -> Self {
        let queue = Self::default();
        queue.add(row, binaries);
        queue
    }

    fn add(&self, row: &'static str, binaries: &[&'a Binary]) {
        self.lock().extend(binaries.iter().map(|binary| (row, *binary)));
    }

    /// The next one: first those that take long, so that two places end together.
    fn take(&self) -> Option<(&'static str, &'a Binary)> {
        let mut waiting = self.lock();
        let long = waiting.iter().position(|(_, binary)| LONG.contains(&binary.target.as_str()));
        (!waiting.is_empty()).then(|| waiting.remove(long.unwrap_or(0)))
    }

    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(&'static str, &'a Binary)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of the suites so far.
#[derive(Default)]
struct Results {
    rows: Vec<Row>,
    cases: Cases,
}

impl Results {
    /// Runs what waits in a place, until nothing does.
    fn run(&mut self, queue: &Queue<'_>, place: &Place, long: bool) -> Result<(), Failure> {
        while let Some((name, binary)) = queue.take() {
            let start = Instant::now();
            let (report, output) = runner::run(binary, place, long)?;
            self.cases.read(&binary.target, place.name(), &output);
            self.row(Row { name, report, seconds: start.elapsed().as_secs_f64() });
        }
        Ok(())
    }

    fn add(&mut self, other: Self) {
        other.rows.into_iter().for_each(|row| self.row(row));
        self.cases.add(other.cases);
    }

    /// Adds a row, or to the one that has its name.
    fn row(&mut self, row: Row) {
        match self.rows.iter_mut().find(|own| own.name == row.name) {
            Some(own) => {
                own.report.add(row.report);
                own.seconds += row.seconds;
            }
            None => self.rows.push(row),
        }
    }
}

/// What needs KVM: on this machine if its KVM runs Linux, else in a lab.
fn where_linux_runs(
    queue: &Queue<'_>,
    here: &Result<(), String>,
    long: bool,
) -> Result<Results, Failure> {
    let mut results = Results::default();
    if queue.is_empty() {
        return Ok(results);
    }
    let place = match here {
        Ok(()) => Place::Here,
        Err(why) => {
            say(&format!("xtask: a lab for the tests that need KVM, because {why}"));
            let architecture = Architecture::default();
            Place::Lab(architecture, RefCell::new(start_lab(architecture)?))
        }
    };
    results.run(queue, &place, long)?;
    Ok(results)
}

/// What runs for other systems and processors; what has to meet deadlines in a lab goes before it.
fn elsewhere(suites: &[Suite]) -> Result<Results, Failure> {
    // Of this thread and what it starts. A refusal only makes it less considerate.
    let _ = rustix::process::nice(10);
    let mut results = Results::default();
    if suites.iter().any(|suite| matches!(suite, Suite::Hv | Suite::Guest)) {
        results.rows.extend(arm::run(suites, &mut results.cases)?);
    }
    if suites.contains(&Suite::Cross) {
        results.rows.extend(cross::run()?);
    }
    Ok(results)
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

/// An outer machine for any number of suites. The workspace is writable like here, and is there even if it
/// lies under `/tmp`, of which the machine has its own.
fn start_lab(architecture: Architecture) -> Result<Lab, Failure> {
    let parts = Parts::prepare_for(architecture, &mut |step| say(&format!("lab: {step}")))?;
    let writable = vec![cargo::workspace().to_owned(), cargo::target_folder()];
    let options = Options { writable, ..Options::default() };
    Ok(Lab::start(&parts, &options)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(target: &str) -> Binary {
        Binary {
            package: "cabana-test-guest".into(),
            target: target.into(),
            is_integration_test: true,
            executable: "/nowhere".into(),
            folder: "/".into(),
        }
    }

    #[test]
    fn what_takes_long_comes_first_and_everything_once() {
        let binaries = ["boot", "tools", "run", "torture"].map(binary);
        let queue = Queue::of("guest", &binaries.iter().collect::<Vec<_>>());
        let taken: Vec<_> = std::iter::from_fn(|| queue.take()).collect();
        let names: Vec<_> = taken.iter().map(|(_, binary)| binary.target.as_str()).collect();
        assert_eq!(names, ["tools", "torture", "boot", "run"]);
        assert!(queue.is_empty());
    }

    #[test]
    fn what_two_places_ran_of_a_suite_is_one_row() {
        let row = |passed, seconds| {
            let report = libtest::Report { passed, ..libtest::Report::default() };
            Results { rows: vec![Row { name: "guest", report, seconds }], ..Results::default() }
        };
        let mut results = row(2, 1.0);
        results.add(row(3, 0.5));
        assert_eq!(results.rows.len(), 1);
        assert_eq!((results.rows[0].report.passed, results.rows[0].seconds), (5, 1.5));
    }
}

//! The suites for arm64 in the Arm lab: bare metal, Linux, and the command.

use std::cell::RefCell;
use std::time::Instant;

use cabana_kernel::Architecture as Processor;
use cabana_lab::{Architecture, Error};

use super::cases::Cases;
use super::libtest::Report;
use super::runner::{self, Place};
use super::summary::Row;
use super::{Suite, build};
use crate::artifacts::{self, Guests};
use crate::cargo;
use crate::failure::Failure;
use crate::progress::{Board, say};
use crate::target::{missing, missing_c};

/// The suites, and the tests that they have there.
const SUITES: [(Suite, &str, &[&str]); 2] = [
    (
        Suite::Hv,
        "hv (Arm lab)",
        &["-p", "cabana-test-hv", "--test", "arm64", "--test", "hvf_shim", "--test", "linux_arm64"],
    ),
    (Suite::Guest, "guest (Arm lab)", &["-p", "cabana-test-guest", "--test", "arm64"]),
];

/// Builds and runs those that are asked for; what cannot be had skips its own, loudly.
pub(super) fn run(suites: &[Suite], cases: &mut Cases) -> Result<Vec<Row>, Failure> {
    let architecture = Architecture::Arm64;
    let target = architecture.target();
    let wanted = SUITES.iter().filter(|(suite, ..)| suites.contains(suite));
    let skip = |why: &str| Ok(wanted.clone().map(|(_, name, _)| Row::skipped(name, why)).collect());
    if let Some(why) = missing(target)? {
        return skip(&why);
    }
    if let Err(why) = prepare() {
        say(&format!(
            "Arm lab: WITHOUT the guest's own kernel, agent and image, whose cases are skipped: {why}"
        ));
    }
    let lab = match super::start_lab(architecture) {
        Err(Failure::Lab(missing @ Error::Missing { .. })) => return skip(&missing.to_string()),
        lab => Place::Lab(architecture, RefCell::new(lab?)),
    };
    let mut rows = Vec::new();
    for &(suite, name, tests) in wanted {
        let start = Instant::now();
        if suite == Suite::Guest {
            if let Some(why) = missing_c(target) {
                rows.push(Row::skipped(name, &why));
                continue;
            }
            cargo::build_binary("cabana-cli", "cabana", &["--target", target])?;
        }
        let mut report = Report::default();
        for binary in build::of(&[tests, &["--target", target]].concat())? {
            let (found, output) = runner::run(&binary, &lab, false)?;
            report.add(found);
            cases.read(&binary.target, lab.name(), &output);
        }
        rows.push(Row { name, report, seconds: start.elapsed().as_secs_f64() });
    }
    Ok(rows)
}

/// What the cases with Cabana's own kernel boot. Of the images the smallest: finishing the others takes minutes of
/// QEMU's user mode.
fn prepare() -> Result<(), Failure> {
    let (guests, board) = (Guests::of(Processor::Aarch64)?, Board::new());
    artifacts::agent(&guests)?;
    artifacts::tiny_image(&guests, &board)?;
    artifacts::kernel(&guests, &board)
}

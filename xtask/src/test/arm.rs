//! The suites for arm64, bare metal and Linux, in the Arm lab.

use std::cell::RefCell;
use std::time::Instant;

use cabana_lab::{Architecture, Error};

use super::build;
use super::cases::Cases;
use super::libtest::Report;
use super::runner::{self, Place};
use super::summary::Row;
use crate::failure::Failure;
use crate::target::missing;

const NAME: &str = "hv (Arm lab)";

/// Builds and runs it; what cannot be had skips it, loudly.
pub(super) fn run(cases: &mut Cases) -> Result<Row, Failure> {
    let start = Instant::now();
    let architecture = Architecture::Arm64;
    let target = architecture.target();
    if let Some(why) = missing(target)? {
        return Ok(Row::skipped(NAME, &why));
    }
    let lab = match super::start_lab(architecture) {
        Err(Failure::Lab(missing @ Error::Missing { .. })) => {
            return Ok(Row::skipped(NAME, &missing.to_string()));
        }
        lab => Place::Lab(architecture, RefCell::new(lab?)),
    };
    let suite = [
        ["--package", "cabana-test-hv"],
        ["--test", "arm64"],
        ["--test", "hvf_shim"],
        ["--test", "linux_arm64"],
        ["--target", target],
    ];
    let mut report = Report::default();
    for binary in build::of(suite.as_flattened())? {
        let (found, output) = runner::run(&binary, &lab, false)?;
        report.add(found);
        cases.read(&binary.target, lab.name(), &output);
    }
    Ok(Row { name: NAME, report, seconds: start.elapsed().as_secs_f64() })
}

//! What this Mac's framework can do, found out by running a vCPU.

use std::time::Instant;

use cabana_hv::x86::trial;
use cabana_hv::{HvError, Hypervisor, Probe, Verdict};

use super::Hvf;
use crate::probe::{cannot_load, refused};

const NEWER: &str = "macOS 11 or later has it";

pub(crate) fn probe(hvf: &Hvf) -> Probe {
    let mut found = Probe {
        hypervisor: hvf.name(),
        verdict: Verdict::Works,
        instructions_per_second: None,
        max_vcpus: None,
        quirks: Vec::new(),
    };
    found.verdict = match hvf.framework() {
        Err(error) => cannot_load(&error, NEWER),
        Ok(_) => run(hvf, &mut found).unwrap_or_else(|error| refused(&error)),
    };
    found
}

fn run(hvf: &Hvf, found: &mut Probe) -> Result<Verdict, HvError> {
    let vm = hvf.create_x86_vm()?;
    let begin = Instant::now();
    trial::run(vm.as_ref(), || begin.elapsed(), found)
}

//! What this host's platform can do, found out by running a vCPU.

use std::time::Instant;

use cabana_hv::x86::trial;
use cabana_hv::{HvError, Hypervisor, Probe, Verdict};
use windows_sys::Win32::System::Hypervisor::{
    WHvCapabilityCodeFeatures, WHvCapabilityCodeHypervisorPresent,
};

use crate::{System, Whp};

/// `WHV_CAPABILITY_FEATURES`: what Cabana needs, bit by bit.
const NEEDED: [(u64, &str); 3] =
    [(1 << 1, "local APIC emulation"), (1 << 2, "XSAVE state"), (1 << 3, "dirty page tracking")];
/// CPUID leaf 1 ECX: the local APIC's timer takes deadlines.
const TSC_DEADLINE: u32 = 1 << 24;

const SWITCH_ON: &str = "turn on \"Windows Hypervisor Platform\" (Settings, Optional features, More Windows \
                         features; or, as an administrator, dism /online /enable-feature \
                         /featurename:HypervisorPlatform) and restart";
const START: &str = "the feature is on, but no hypervisor runs: enable virtualization (VT-x, SVM) in the firmware, \
                     run bcdedit /set hypervisorlaunchtype auto as an administrator, and restart";
const NEWER: &str = "Windows 11, Windows Server 2022 or later has it";

pub(crate) fn probe(whp: &Whp) -> Probe {
    let mut found = Probe {
        hypervisor: whp.name(),
        verdict: Verdict::Works,
        instructions_per_second: None,
        max_vcpus: None,
        quirks: Vec::new(),
    };
    found.verdict = match whp.system() {
        Err(error) => cannot_load(&error),
        Ok(system) => match lacking(system) {
            Ok(None) => run(whp, &mut found).unwrap_or_else(|error| broken(&error)),
            Ok(Some(verdict)) => verdict,
            Err(error) => broken(&error),
        },
    };
    found
}

fn cannot_load(error: &HvError) -> Verdict {
    match error {
        HvError::Refused { call, .. } if call.starts_with("LoadLibrary") => {
            Verdict::NoDevice { why: format!("this Windows has no WinHvPlatform.dll: {SWITCH_ON}") }
        }
        HvError::Unsupported(function) => {
            Verdict::TooOld { why: format!("it has no {function}: {NEWER}") }
        }
        error => broken(error),
    }
}

fn broken(error: &HvError) -> Verdict {
    Verdict::Broken { why: error.to_string() }
}

/// What the platform says of itself that keeps machines from running.
fn lacking(system: &System) -> Result<Option<Verdict>, HvError> {
    if system.functions.capability(WHvCapabilityCodeHypervisorPresent)? as u32 == 0 {
        return Ok(Some(Verdict::NoDevice { why: START.to_owned() }));
    }
    let features = system.functions.capability(WHvCapabilityCodeFeatures)?;
    let missing = NEEDED.iter().find(|(bit, _)| features & bit == 0);
    Ok(missing.map(|(_, name)| Verdict::TooOld { why: format!("it has no {name}: {NEWER}") }))
}

fn run(whp: &Whp, found: &mut Probe) -> Result<Verdict, HvError> {
    let vm = whp.create_x86_vm()?;
    let deadlines = (vm.supported_cpuid()?.iter())
        .any(|leaf| leaf.function == 1 && leaf.ecx & TSC_DEADLINE != 0);
    if !deadlines {
        let why = "its local APIC's timer takes no deadlines (TSC_DEADLINE)".to_owned();
        return Ok(Verdict::TooOld { why });
    }
    let begin = Instant::now();
    trial::run(vm.as_ref(), || begin.elapsed(), found)
}

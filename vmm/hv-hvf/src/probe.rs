//! What this host's framework can do, found out by running a vCPU.

use std::time::Instant;

use cabana_hv::arm64::{Gic, trial};
use cabana_hv::{HvError, Hypervisor, Probe, Verdict};

use crate::Hvf;
use crate::functions::{HV_DENIED, HV_NO_DEVICE, HV_UNSUPPORTED};

/// Where the trial's interrupt controller stands; nobody looks at it.
const TRIAL_GIC: Gic = Gic { distributor: 0x800_0000, redistributors: 0x80a_0000, lines: 32 };

const SIGN: &str = "this program is not signed with the entitlement com.apple.security.hypervisor: sign it with \
                    `codesign --force --sign - --entitlements hypervisor.entitlements PROGRAM` (the file is in \
                    Cabana's source, vmm/hv-hvf)";
const ABSENT: &str = "this Mac's processor or system offers no virtualization (`sysctl kern.hv_support` says 0, as it \
                      does in most virtual machines)";
const NEWER: &str = "macOS 15 or later has it";

pub(crate) fn probe(hvf: &Hvf) -> Probe {
    let mut found = Probe {
        hypervisor: hvf.name(),
        verdict: Verdict::Works,
        instructions_per_second: None,
        max_vcpus: None,
        quirks: Vec::new(),
    };
    found.verdict = match hvf.functions() {
        Err(error) => cannot_load(&error, NEWER),
        Ok(_) => run(hvf, &mut found).unwrap_or_else(|error| refused(&error)),
    };
    found
}

/// Why the functions cannot be had; `newer` says which macOS has all.
pub(crate) fn cannot_load(error: &HvError, newer: &str) -> Verdict {
    match error {
        HvError::Unsupported(function) => {
            Verdict::TooOld { why: format!("this macOS has no {function}: {newer}") }
        }
        HvError::Refused { call, .. } if call.starts_with("dlopen") => {
            Verdict::NoDevice { why: "this system has no Hypervisor.framework".to_owned() }
        }
        error => refused(error),
    }
}

pub(crate) fn refused(error: &HvError) -> Verdict {
    let HvError::Refused { code, .. } = error else {
        return Verdict::Broken { why: error.to_string() };
    };
    match code.cast_signed() {
        HV_DENIED => Verdict::NoPermission { why: SIGN.to_owned() },
        HV_UNSUPPORTED | HV_NO_DEVICE => Verdict::NoDevice { why: format!("{ABSENT}: {error}") },
        _ => Verdict::Broken { why: error.to_string() },
    }
}

fn run(hvf: &Hvf, found: &mut Probe) -> Result<Verdict, HvError> {
    let vm = hvf.create_arm64_vm(TRIAL_GIC)?;
    let begin = Instant::now();
    trial::run(vm.as_ref(), || begin.elapsed(), found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HV_BUSY;

    fn refusal(code: i32) -> HvError {
        HvError::Refused { call: "hv_vm_create", code: code as u32, meaning: "no" }
    }

    #[test]
    fn a_program_without_the_entitlement_is_told_so() {
        let Verdict::NoPermission { why } = refused(&refusal(HV_DENIED)) else { panic!() };
        assert!(why.contains("com.apple.security.hypervisor") && why.contains("codesign"));
        assert!(matches!(refused(&refusal(HV_UNSUPPORTED)), Verdict::NoDevice { .. }));
        assert!(matches!(refused(&refusal(HV_BUSY)), Verdict::Broken { .. }));
    }

    #[test]
    fn what_cannot_be_loaded_says_what_is_missing() {
        let probe = Hvf::over(|| Err(HvError::Unsupported("hv_gic_create"))).probe();
        let Verdict::TooOld { why } = &probe.verdict else { panic!("{probe:?}") };
        assert_eq!(why, "this macOS has no hv_gic_create: macOS 15 or later has it");
    }
}

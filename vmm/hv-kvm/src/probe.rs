//! What this host's KVM can do, found out by running a vCPU.

use std::io::ErrorKind;
use std::time::Duration;

use cabana_hv::{HvError, Hypervisor, Probe, Verdict};
use kvm_bindings::KVM_API_VERSION;

use crate::arch::{self, NEEDED};
use crate::{Kvm, System};

pub(crate) fn probe(kvm: &Kvm) -> Probe {
    let mut found = Probe {
        hypervisor: kvm.name(),
        verdict: Verdict::Works,
        instructions_per_second: None,
        max_vcpus: None,
        quirks: arch::quirks(),
    };
    found.verdict = match kvm.system() {
        Err(error) => cannot_open(kvm, &error),
        Ok(system) => match missing(kvm, system) {
            Some(why) => Verdict::TooOld { why },
            None => arch::try_out(kvm, thread_time, &mut found)
                .unwrap_or_else(|error| Verdict::Broken { why: error.to_string() }),
        },
    };
    found
}

fn cannot_open(kvm: &Kvm, error: &HvError) -> Verdict {
    let device = kvm.device.display();
    let HvError::Call { source, .. } = error else {
        return Verdict::Broken { why: error.to_string() };
    };
    match source.kind() {
        ErrorKind::PermissionDenied => Verdict::NoPermission {
            why: format!(
                "this user may not open {device}: join its group (sudo usermod -aG kvm $USER) and \
                 log in again"
            ),
        },
        ErrorKind::NotFound => {
            Verdict::NoDevice { why: format!("there is no {device}: {}", arch::what_to_do()) }
        }
        _ if matches!(source.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => {
            Verdict::NoDevice { why: format!("nothing is behind {device}: {}", arch::what_to_do()) }
        }
        _ => Verdict::Broken { why: format!("cannot open {device}: {source}") },
    }
}

/// The first thing that Cabana needs and this KVM lacks.
fn missing(kvm: &Kvm, system: &System) -> Option<String> {
    let version = system.kvm.get_api_version();
    if version < 0 {
        let device = kvm.device.display();
        return Some(format!("{device} is not KVM: something else stands in its place"));
    }
    if version != KVM_API_VERSION as i32 {
        return Some(format!("its API has version {version}, not {KVM_API_VERSION}"));
    }
    NEEDED
        .iter()
        .find(|need| system.kvm.check_extension_raw(u64::from(need.0)) <= 0)
        .map(|(_, name, since)| format!("it has no {name}, which Linux {since} or later provides"))
}

/// Time that this thread has had on a processor, guests included: a busy host does not disturb it.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills the structure.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_named_with_what_to_do() {
        let found = Kvm::at("/nonexistent/kvm").probe();
        let Verdict::NoDevice { why } = &found.verdict else { panic!("{found:?}") };
        assert!(why.contains("/nonexistent/kvm: "), "{why}");
        assert!(!found.verdict.runs_payloads());
    }

    #[test]
    fn something_else_than_kvm_is_broken_or_old_and_no_panic() {
        let found = Kvm::at("/dev/null").probe();
        assert!(matches!(found.verdict, Verdict::TooOld { .. }), "{found:?}");
    }

    #[test]
    fn the_probe_is_quick_and_tells_its_reason() {
        let before = std::time::Instant::now();
        let found = Kvm::new().probe();
        let spent = before.elapsed();
        println!("{found:?} after {spent:?}");
        assert!(spent < Duration::from_secs(2), "{spent:?}");
        match &found.verdict {
            Verdict::Works => {
                assert!(found.instructions_per_second >= Some(cabana_hv::trial::REAL));
            }
            other => assert!(other.why().is_some_and(|why| why.len() > 20), "{other:?}"),
        }
    }
}

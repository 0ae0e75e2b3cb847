//! The Mac: its processor and its clocks are this host's, as far as KVM carries them out for guests.

use std::sync::OnceLock;

use cabana_hv::x86::CpuidLeaf;
use cabana_hv_hvf::intel::Host;
use cabana_shim_x86::supported;
use kvm_ioctls::Kvm;

pub(crate) const HOST: Host = Host { cpuid, tsc_hertz };

fn cpuid(function: u32, index: u32) -> [u32; 4] {
    static LEAVES: OnceLock<Vec<CpuidLeaf>> = OnceLock::new();
    let leaves =
        LEAVES.get_or_init(|| Kvm::new().and_then(|kvm| supported(&kvm)).unwrap_or_default());
    let found = leaves
        .iter()
        .find(|leaf| leaf.function == function && leaf.index.is_none_or(|own| own == index));
    found.map_or([0; 4], |leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
}

fn tsc_hertz() -> u64 {
    let khz = || {
        let vm = Kvm::new().ok()?.create_vm().ok()?;
        vm.create_vcpu(0).ok()?.get_tsc_khz().ok()
    };
    khz().map_or(0, |khz| u64::from(khz) * 1000)
}

/// Nanoseconds, of which a tick of `mach_absolute_time` is one.
pub(crate) fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

//! What KVM can show guests of CPUID.

use std::arch::x86_64::__cpuid;

use cabana_hv::x86::CpuidLeaf;
use cabana_hv::x86::cpuid::hide_xsave;
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

/// All that it can.
pub fn supported(kvm: &Kvm) -> Result<Vec<CpuidLeaf>, kvm_ioctls::Error> {
    let list = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let mut leaves: Vec<_> = list.as_slice().iter().map(leaf).collect();
    if is_tcg() {
        // Its nested SVM mixes up XCR0.
        hide_xsave(&mut leaves);
    }
    Ok(leaves)
}

/// Is this host's processor QEMU's software one?
fn is_tcg() -> bool {
    let leaf = __cpuid(0x4000_0000);
    [leaf.ebx, leaf.ecx, leaf.edx] == [0x5447_4354, 0x4354_4743, 0x4743_5447]
}

fn leaf(entry: &kvm_cpuid_entry2) -> CpuidLeaf {
    CpuidLeaf {
        function: entry.function,
        index: (entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0).then_some(entry.index),
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

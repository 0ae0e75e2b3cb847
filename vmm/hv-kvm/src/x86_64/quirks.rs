//! Hosts whose KVM promises more than works.

use std::arch::x86_64::__cpuid;

use cabana_hv::x86::CpuidLeaf;
use cabana_hv::x86::cpuid::hide_xsave;
use kvm_bindings::kvm_segment;

/// Is this host's processor QEMU's software one (TCG), which emulates nested SVM?
fn is_tcg() -> bool {
    const HYPERVISOR: u32 = 1 << 31;
    const SIGNATURE: u32 = 0x4000_0000;
    if __cpuid(1).ecx & HYPERVISOR == 0 {
        return false;
    }
    let leaf = __cpuid(SIGNATURE);
    let mut name = Vec::with_capacity(12);
    for register in [leaf.ebx, leaf.ecx, leaf.edx] {
        name.extend_from_slice(&register.to_le_bytes());
    }
    name == b"TCGTCGTCGTCG"
}

/// Why guests of this host see a smaller processor than KVM offers; `None` on an honest host.
pub(crate) fn xsave_is_broken() -> Option<&'static str> {
    // TCG does not switch XCR0 between host and guest (target/i386/tcg/sysemu/svm_helper.c saves no
    // such register, and KVM's XSETBV for the guest changes what the emulated host has): state
    // components are lost between the two.
    is_tcg().then_some(
        "this host is QEMU's software CPU, whose nested SVM mixes up XCR0: guests get no XSAVE",
    )
}

/// Makes a saved task register one that this host's processor takes.
pub(crate) fn fix_task_register(tr: &mut kvm_segment) {
    // TCG finds the I/O permission bitmap only by a task register of the type that LTR read (9, an
    // available TSS; target/i386/tcg/seg_helper.c, `helper_check_io`), while KVM saves it as busy (11),
    // as processors have it. With that, no port access from user mode is allowed any more.
    const BUSY: u8 = 2;
    if is_tcg() {
        tr.type_ &= !BUSY;
    }
}

/// Takes out of `leaves` what does not work on this host.
pub(crate) fn apply(leaves: &mut Vec<CpuidLeaf>) {
    if xsave_is_broken().is_some() {
        hide_xsave(leaves);
    }
}

//! What the probe asks and does on x86-64.

use std::arch::x86_64::__cpuid;
use std::time::Duration;

use cabana_hv::x86::trial;
use cabana_hv::{HvError, Hypervisor, Probe, Verdict};
use kvm_bindings::{
    KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_IOEVENTFD, KVM_CAP_IRQ_ROUTING, KVM_CAP_IRQFD,
    KVM_CAP_READONLY_MEM, KVM_CAP_SIGNAL_MSI, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_TSC_DEADLINE_TIMER,
    KVM_CAP_XCRS, KVM_CAP_XSAVE,
};

use super::quirks::xsave_is_broken;
use crate::Kvm;

/// What Cabana needs, and the Linux that has it first.
pub(crate) const NEEDED: [(u32, &str, &str); 10] = [
    (KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP", "4.4"),
    (KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT", "4.11"),
    (KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD", "2.6.32"),
    (KVM_CAP_IRQFD, "KVM_CAP_IRQFD", "2.6.32"),
    (KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING", "2.6.30"),
    (KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI", "3.5"),
    (KVM_CAP_READONLY_MEM, "KVM_CAP_READONLY_MEM", "3.7"),
    (KVM_CAP_TSC_DEADLINE_TIMER, "KVM_CAP_TSC_DEADLINE_TIMER", "3.2"),
    (KVM_CAP_XSAVE, "KVM_CAP_XSAVE", "2.6.36"),
    (KVM_CAP_XCRS, "KVM_CAP_XCRS", "2.6.36"),
];

/// Runs the payload.
pub(crate) fn try_out(
    kvm: &Kvm,
    time: impl Fn() -> Duration,
    found: &mut Probe,
) -> Result<Verdict, HvError> {
    trial::run(kvm.create_x86_vm()?.as_ref(), time, found)
}

/// What this host's KVM promises and does not keep.
pub(crate) fn quirks() -> Vec<String> {
    xsave_is_broken().into_iter().map(str::to_owned).collect()
}

/// What the processor says of itself decides what would help.
pub(crate) fn what_to_do() -> &'static str {
    const VMX: u32 = 1 << 5;
    const HYPERVISOR: u32 = 1 << 31;
    const SVM: u32 = 1 << 2;
    let features = __cpuid(1).ecx;
    if features & VMX != 0 {
        "load KVM (sudo modprobe kvm-intel); if that fails, enable virtualization (VT-x) in the \
         firmware"
    } else if __cpuid(0x8000_0001).ecx & SVM != 0 {
        "load KVM (sudo modprobe kvm-amd); if that fails, enable virtualization (SVM) in the \
         firmware"
    } else if features & HYPERVISOR != 0 {
        "this is a virtual machine, and its host offers it no nested virtualization: turn that on \
         there, or use a real machine"
    } else {
        "the processor offers no virtualization: enable it in the firmware (VT-x, SVM)"
    }
}

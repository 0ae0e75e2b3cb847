//! What the probe asks and does on arm64.

use std::time::Duration;

use cabana_hv::arm64::{Gic, trial};
use cabana_hv::{HvError, Hypervisor, Probe, Verdict};
use kvm_bindings::{
    KVM_CAP_ARM_PSCI_0_2, KVM_CAP_DEVICE_CTRL, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_IOEVENTFD,
    KVM_CAP_IRQFD, KVM_CAP_ONE_REG, KVM_CAP_READONLY_MEM,
};

use crate::Kvm;

/// What Cabana needs, and the Linux that has it first.
pub(crate) const NEEDED: [(u32, &str, &str); 7] = [
    (KVM_CAP_ONE_REG, "KVM_CAP_ONE_REG", "3.10"),
    (KVM_CAP_ARM_PSCI_0_2, "KVM_CAP_ARM_PSCI_0_2", "3.16"),
    (KVM_CAP_DEVICE_CTRL, "KVM_CAP_DEVICE_CTRL", "3.11"),
    (KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT", "4.11"),
    (KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD", "4.1"),
    (KVM_CAP_IRQFD, "KVM_CAP_IRQFD", "4.1"),
    (KVM_CAP_READONLY_MEM, "KVM_CAP_READONLY_MEM", "3.19"),
];

/// Where the trial's interrupt controller stands; nobody looks at it.
const TRIAL_GIC: Gic = Gic { distributor: 0x800_0000, redistributors: 0x80a_0000, lines: 32 };

/// Runs the payload.
pub(crate) fn try_out(
    kvm: &Kvm,
    time: impl Fn() -> Duration,
    found: &mut Probe,
) -> Result<Verdict, HvError> {
    trial::run(kvm.create_arm64_vm(TRIAL_GIC)?.as_ref(), time, found)
}

/// What this host's KVM promises and does not keep.
pub(crate) fn quirks() -> Vec<String> {
    Vec::new()
}

/// When there is no KVM.
pub(crate) fn what_to_do() -> &'static str {
    "KVM is part of this kernel if it was built so, and starts if the firmware enters the kernel at \
     EL2: `dmesg | grep -i kvm` says which is missing; in a virtual machine, turn nested \
     virtualization on"
}

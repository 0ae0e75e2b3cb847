//! Exits that arm64 alone has.

use cabana_hv::VmExit;
use kvm_bindings::{
    KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run__bindgen_ty_1,
};

/// What stands where the guest stands.
pub(crate) const INSTRUCTION_POINTER: &str = "PC";

/// What the machine sees of an exit; in words, why the guest cannot go on.
pub(crate) fn exit(reason: u32, details: &kvm_run__bindgen_ty_1) -> Result<VmExit, String> {
    match reason {
        KVM_EXIT_SYSTEM_EVENT => {
            // SAFETY: the member that belongs to this reason.
            match unsafe { details.system_event }.type_ {
                KVM_SYSTEM_EVENT_SHUTDOWN => Ok(VmExit::PowerOff),
                KVM_SYSTEM_EVENT_RESET => Ok(VmExit::Reset),
                KVM_SYSTEM_EVENT_CRASH => Ok(VmExit::Shutdown),
                event => Err(format!("unexpected system event {event}")),
            }
        }
        reason => Err(format!("unexpected exit reason {reason}")),
    }
}

//! Exits that x86-64 alone has.

use cabana_hv::VmExit;
use kvm_bindings::{
    KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IOAPIC_EOI, KVM_EXIT_SHUTDOWN,
    KVM_EXIT_SYSTEM_EVENT, kvm_run__bindgen_ty_1,
};

/// What stands where the guest stands.
pub(crate) const INSTRUCTION_POINTER: &str = "RIP";

/// What the machine sees of an exit; in words, why the guest cannot go on.
pub(crate) fn exit(reason: u32, details: &kvm_run__bindgen_ty_1) -> Result<VmExit, String> {
    match reason {
        KVM_EXIT_IOAPIC_EOI => {
            // SAFETY: the member that belongs to this reason.
            Ok(VmExit::EndOfInterrupt { vector: unsafe { details.eoi }.vector })
        }
        KVM_EXIT_HLT => Ok(VmExit::Halt),
        KVM_EXIT_SHUTDOWN | KVM_EXIT_SYSTEM_EVENT => Ok(VmExit::Shutdown),
        KVM_EXIT_INTERNAL_ERROR => Err(internal_error(details)),
        reason => Err(format!("unexpected exit reason {reason}")),
    }
}

/// What KVM says of itself when it gives up.
fn internal_error(details: &kvm_run__bindgen_ty_1) -> String {
    // SAFETY: the members that belong to this reason, plain numbers.
    let (internal, failure) = unsafe { (details.internal, details.emulation_failure) };
    let meaning = match internal.suberror {
        1 => "an instruction that KVM cannot emulate",
        2 => "two exceptions at once",
        3 => "an exit while an event was delivered",
        4 => "an exit that KVM does not know",
        _ => "an unknown cause",
    };
    // SAFETY: plain numbers, meaningful if the flags say so.
    let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    let has_bytes = internal.suberror == 1 && failure.ndata >= 3 && failure.flags & 1 != 0;
    let instruction = if has_bytes {
        let len = usize::from(bytes.insn_size).min(bytes.insn_bytes.len());
        format!(", instruction bytes {:02x?}", &bytes.insn_bytes[..len])
    } else {
        String::new()
    };
    let data: Vec<String> = (internal.data.iter())
        .take(internal.ndata as usize)
        .map(|word| format!("{word:#x}"))
        .collect();
    format!(
        "internal error {}: {meaning}{instruction}, data [{}]",
        internal.suberror,
        data.join(", ")
    )
}

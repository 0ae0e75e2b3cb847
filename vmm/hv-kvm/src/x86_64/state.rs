//! The whole state of a vCPU, saved and set.

use std::os::fd::AsRawFd;

use cabana_hv::HvError;
use cabana_hv::x86::{BootState, VcpuState};
use kvm_bindings::{Msrs, kvm_debugregs, kvm_lapic_state, kvm_msr_entry, kvm_xcr, kvm_xcrs};
use kvm_ioctls::{Cap, VcpuFd};

use super::ioctl::{GET_XSAVE, GET_XSAVE2, SET_XSAVE, XSAVE_LEN};
use super::{convert, quirks};
use crate::ioctl::{failed, ioctl};
use crate::vm::VmShared;

/// `IA32_TIME_STAMP_COUNTER`.
const TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`.
const TSC_DEADLINE: u32 = 0x6e0;
/// Where the local APIC's registers have the timer's entry, and its mode that goes by a deadline
/// (Intel SDM 3A §11.5.1, §11.5.4.1).
const LVT_TIMER: usize = 0x320;
const LVT_TIMER_MODE: u32 = 0b11 << 17;
const LVT_TIMER_DEADLINE: u32 = 0b10 << 17;

/// Is this model-specific register state? Some in KVM's list say what the processor is, which the
/// restored vCPU has from its CPUID, and may not change once it has run.
pub(crate) fn is_saved(msr: u32) -> bool {
    !matches!(
        msr,
        // Platform ID, microcode revision, platform info.
        0x17 | 0x8b | 0xce
        // Architectural capabilities, performance capabilities.
        | 0x10a | 0x345
        // VMX's capabilities: nested virtualization is not offered.
        | 0x480..=0x491
        // Hyper-V's and Xen's interfaces, which are not offered; some of them are clocks.
        | 0x4000_0000..=0x4000_ffff
        // AMD's microarchitectural description.
        | 0xc001_0140..=0xc001_0141
    )
}

fn get_msr(vcpu: &VcpuFd, msr: u32) -> Result<u64, HvError> {
    let (values, _) = get_some_msrs(vcpu, &[msr])?;
    match values.first() {
        Some(&(_, value)) => Ok(value),
        None => Err(HvError::Invalid(format!("KVM has no MSR {msr:#x}"))),
    }
}

pub(crate) fn set_msrs(vcpu: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), HvError> {
    let mut rest = msrs;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(kvm_bindings::KVM_MAX_MSR_ENTRIES)];
        let entries: Vec<_> = chunk
            .iter()
            .map(|&(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() })
            .collect();
        let list = Msrs::from_entries(&entries)
            .map_err(|_| HvError::Invalid(format!("{} MSRs at once", entries.len())))?;
        let done = vcpu.set_msrs(&list).map_err(failed("KVM_SET_MSRS"))?;
        rest = &rest[done.min(rest.len())..];
        if done < chunk.len() {
            // Zero is what a register has that this host does not know.
            match rest.split_first() {
                Some((&(_, 0), after)) => rest = after,
                Some((&(msr, value), _)) => {
                    return Err(HvError::Invalid(format!(
                        "this host refuses the value {value:#x} of MSR {msr:#x}"
                    )));
                }
                None => {}
            }
        }
    }
    Ok(())
}

/// As many of the registers as KVM reads in one go, and how many of `msrs` that settles.
fn get_some_msrs(vcpu: &VcpuFd, msrs: &[u32]) -> Result<(Vec<(u32, u64)>, usize), HvError> {
    let entries: Vec<_> =
        msrs.iter().map(|&index| kvm_msr_entry { index, ..kvm_msr_entry::default() }).collect();
    let mut list = Msrs::from_entries(&entries)
        .map_err(|_| HvError::Invalid(format!("{} MSRs at once", entries.len())))?;
    let read = vcpu.get_msrs(&mut list).map_err(failed("KVM_GET_MSRS"))?;
    let values = list.as_slice().iter().take(read).map(|entry| (entry.index, entry.data)).collect();
    Ok((values, read))
}

/// KVM stops at the first register that the guest's processor has not; it is left out.
fn get_msrs(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Vec<(u32, u64)>, HvError> {
    let mut values = Vec::with_capacity(msrs.len());
    let mut rest = msrs;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(kvm_bindings::KVM_MAX_MSR_ENTRIES)];
        let (some, read) = get_some_msrs(vcpu, chunk)?;
        values.extend(some);
        let settled = if read < chunk.len() { read + 1 } else { read };
        rest = &rest[settled.min(rest.len())..];
    }
    Ok(values)
}

/// Bytes of this VM's XSAVE area; `None` before Linux 5.17, where it is [`XSAVE_LEN`].
fn xsave_len(vm: &VmShared) -> Option<usize> {
    usize::try_from(vm.fd.check_extension_int(Cap::Xsave2)).ok().filter(|&len| len >= XSAVE_LEN)
}

fn get_xsave(vm: &VmShared, vcpu: &VcpuFd) -> Result<Vec<u8>, HvError> {
    let (len, request, call) = match xsave_len(vm) {
        Some(len) => (len, GET_XSAVE2, "KVM_GET_XSAVE2"),
        None => (XSAVE_LEN, GET_XSAVE, "KVM_GET_XSAVE"),
    };
    let mut area = vec![0; len];
    // SAFETY: the kernel fills as many bytes as it said, or `XSAVE_LEN`.
    unsafe { ioctl(vcpu.as_raw_fd(), request, area.as_mut_ptr()) }
        .map_err(|source| HvError::Call { call, source })?;
    Ok(area)
}

fn set_xsave(vm: &VmShared, vcpu: &VcpuFd, saved: &[u8]) -> Result<(), HvError> {
    let mut area = saved.to_vec();
    let len = xsave_len(vm).unwrap_or(XSAVE_LEN);
    if area.iter().skip(len).any(|&byte| byte != 0) {
        return Err(HvError::Invalid(format!(
            "the saved FPU state has {} bytes, this host's {len}",
            saved.len()
        )));
    }
    area.resize(len, 0);
    // SAFETY: the kernel reads as many bytes as it said, or `XSAVE_LEN`, and writes none.
    unsafe { ioctl(vcpu.as_raw_fd(), SET_XSAVE, area.as_mut_ptr()) }
        .map_err(|source| HvError::Call { call: "KVM_SET_XSAVE", source })?;
    Ok(())
}

/// Everything. The local APIC's pending events are settled first, as reading the activity does.
pub(crate) fn get(vm: &VmShared, vcpu: &VcpuFd) -> Result<VcpuState, HvError> {
    let activity = vcpu.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
    let regs = vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?;
    let sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    let xcrs = vcpu.get_xcrs().map_err(failed("KVM_GET_XCRS"))?;
    let lapic = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    let debug = vcpu.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?;
    let events = vcpu.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?;
    let lapic: Vec<u8> = lapic.regs.iter().map(|&byte| byte as u8).collect();
    let mut msrs = get_msrs(vcpu, vm.system.arch.saved_msrs(&vm.system.kvm)?)?;
    keep_expired_deadline(&lapic, &mut msrs);
    Ok(VcpuState {
        regs: convert::regs_from_kvm(&regs),
        system: convert::system_from_kvm(&sregs),
        msrs,
        xsave: get_xsave(vm, vcpu)?,
        xcrs: xcrs
            .xcrs
            .iter()
            .take(xcrs.nr_xcrs as usize)
            .map(|xcr| (xcr.xcr, xcr.value))
            .collect(),
        lapic,
        events: convert::events_from_kvm(&events),
        debug: [debug.db[0], debug.db[1], debug.db[2], debug.db[3], debug.dr6, debug.dr7],
        activity: convert::activity_from_kvm(activity),
    })
}

/// A deadline that has passed while no vCPU ran reads as zero, and its interrupt waits where no call
/// can see it. With a deadline of now it comes after all, and at worst once too often, which systems
/// are prepared for.
fn keep_expired_deadline(lapic: &[u8], msrs: &mut [(u32, u64)]) {
    let entry = lapic.get(LVT_TIMER..LVT_TIMER + 4).and_then(|bytes| bytes.try_into().ok());
    let entry = u32::from_le_bytes(entry.unwrap_or_default());
    if entry & LVT_TIMER_MODE != LVT_TIMER_DEADLINE {
        return;
    }
    let now = msrs.iter().find(|(msr, _)| *msr == TSC).map_or(0, |(_, value)| *value);
    for (_, value) in msrs.iter_mut().filter(|msr| **msr == (TSC_DEADLINE, 0)) {
        *value = now;
    }
}

/// The order matters: the APIC base (in the system registers) comes before the APIC's registers,
/// those before the TSC deadline (an MSR), and events last, since the others may touch them.
pub(crate) fn set(vm: &VmShared, vcpu: &VcpuFd, state: &VcpuState) -> Result<(), HvError> {
    let mut xcrs = kvm_xcrs::default();
    let mut lapic = kvm_lapic_state::default();
    let (count, room) = (state.xcrs.len(), xcrs.xcrs.len());
    if count > room || state.lapic.len() < lapic.regs.len() {
        return Err(HvError::Invalid("the saved state is not a vCPU's of KVM".into()));
    }
    xcrs.nr_xcrs = count as u32;
    for (to, &(xcr, value)) in xcrs.xcrs.iter_mut().zip(&state.xcrs) {
        *to = kvm_xcr { xcr, value, ..kvm_xcr::default() };
    }
    for (to, &from) in lapic.regs.iter_mut().zip(&state.lapic) {
        *to = from as i8;
    }
    let [db0, db1, db2, db3, dr6, dr7] = state.debug;
    let debug = kvm_debugregs { db: [db0, db1, db2, db3], dr6, dr7, ..kvm_debugregs::default() };

    vcpu.set_mp_state(convert::activity_to_kvm(state.activity))
        .map_err(failed("KVM_SET_MP_STATE"))?;
    vcpu.set_regs(&convert::regs_to_kvm(&state.regs)).map_err(failed("KVM_SET_REGS"))?;
    let mut sregs = convert::system_to_kvm(&state.system);
    quirks::fix_task_register(&mut sregs.tr);
    vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    if count > 0 {
        vcpu.set_xcrs(&xcrs).map_err(failed("KVM_SET_XCRS"))?;
    }
    set_xsave(vm, vcpu, &state.xsave)?;
    vcpu.set_debug_regs(&debug).map_err(failed("KVM_SET_DEBUGREGS"))?;
    vcpu.set_lapic(&lapic).map_err(failed("KVM_SET_LAPIC"))?;
    set_msrs(vcpu, &state.msrs)?;
    vcpu.set_vcpu_events(&convert::events_to_kvm(&state.events))
        .map_err(failed("KVM_SET_VCPU_EVENTS"))
}

/// What a boot needs: general and segment registers.
pub(crate) fn set_boot(vcpu: &VcpuFd, boot: &BootState) -> Result<(), HvError> {
    let reset = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    let mut sregs = convert::system_to_kvm(&boot.system);
    (sregs.apic_base, sregs.cr8) = (reset.apic_base, reset.cr8);
    vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    vcpu.set_regs(&convert::regs_to_kvm(&boot.regs)).map_err(failed("KVM_SET_REGS"))
}

/// The time-stamp counter.
pub(crate) fn counter(vcpu: &VcpuFd) -> Result<u64, HvError> {
    get_msr(vcpu, TSC)
}

/// Where the vCPU stands.
pub(crate) fn instruction(vcpu: &VcpuFd) -> Result<u64, HvError> {
    Ok(vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?.rip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_has_passed_is_kept() {
        let mut lapic = vec![0; 1024];
        let msrs = [(TSC, 500), (TSC_DEADLINE, 0)];
        let kept = |lapic: &[u8], mut msrs: [(u32, u64); 2]| {
            keep_expired_deadline(lapic, &mut msrs);
            msrs[1].1
        };
        assert_eq!(kept(&lapic, msrs), 0, "a timer of another mode has none");
        lapic[LVT_TIMER..LVT_TIMER + 4].copy_from_slice(&LVT_TIMER_DEADLINE.to_le_bytes());
        assert_eq!(kept(&lapic, msrs), 500);
        assert_eq!(kept(&lapic, [(TSC, 500), (TSC_DEADLINE, 900)]), 900);
        assert_eq!(kept(&[], msrs), 0);
    }
}

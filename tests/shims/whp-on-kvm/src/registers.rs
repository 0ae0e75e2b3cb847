//! Registers by the vendor's names, out of and into KVM's structures.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, Msrs, kvm_debugregs, kvm_fpu,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use windows_sys::Win32::Foundation::{E_FAIL, E_INVALIDARG, WHV_E_INVALID_VP_REGISTER_NAME};
use windows_sys::Win32::System::Hypervisor::*;

use crate::Answer;

/// Model-specific registers that have names.
#[rustfmt::skip]
const MSRS: [(WHV_REGISTER_NAME, u32); 35] = [
    (WHvX64RegisterTsc, 0x10), (WHvX64RegisterTscAdjust, 0x3b), (WHvX64RegisterSpecCtrl, 0x48),
    (WHvX64RegisterSysenterCs, 0x174), (WHvX64RegisterSysenterEsp, 0x175), (WHvX64RegisterSysenterEip, 0x176),
    (WHvX64RegisterMsrMtrrPhysBase0, 0x200), (WHvX64RegisterMsrMtrrPhysMask0, 0x201),
    (WHvX64RegisterMsrMtrrPhysBase1, 0x202), (WHvX64RegisterMsrMtrrPhysMask1, 0x203),
    (WHvX64RegisterMsrMtrrPhysBase2, 0x204), (WHvX64RegisterMsrMtrrPhysMask2, 0x205),
    (WHvX64RegisterMsrMtrrPhysBase3, 0x206), (WHvX64RegisterMsrMtrrPhysMask3, 0x207),
    (WHvX64RegisterMsrMtrrFix64k00000, 0x250),
    (WHvX64RegisterMsrMtrrFix16k80000, 0x258), (WHvX64RegisterMsrMtrrFix16kA0000, 0x259),
    (WHvX64RegisterMsrMtrrFix4kC0000, 0x268), (WHvX64RegisterMsrMtrrFix4kC8000, 0x269),
    (WHvX64RegisterMsrMtrrFix4kD0000, 0x26a), (WHvX64RegisterMsrMtrrFix4kD8000, 0x26b),
    (WHvX64RegisterMsrMtrrFix4kE0000, 0x26c), (WHvX64RegisterMsrMtrrFix4kE8000, 0x26d),
    (WHvX64RegisterMsrMtrrFix4kF0000, 0x26e), (WHvX64RegisterMsrMtrrFix4kF8000, 0x26f),
    (WHvX64RegisterPat, 0x277), (WHvX64RegisterMsrMtrrDefType, 0x2ff), (WHvX64RegisterTscDeadline, 0x6e0),
    (WHvX64RegisterXss, 0xda0), (WHvX64RegisterStar, 0xc000_0081), (WHvX64RegisterLstar, 0xc000_0082),
    (WHvX64RegisterCstar, 0xc000_0083), (WHvX64RegisterSfmask, 0xc000_0084),
    (WHvX64RegisterKernelGsBase, 0xc000_0102), (WHvX64RegisterTscAux, 0xc000_0103),
];

/// KVM's structures, each read when the first of its registers is named, and written back if one was set.
pub(crate) struct Registers<'a> {
    vcpu: &'a VcpuFd,
    regs: Option<kvm_regs>,
    sregs: Option<kvm_sregs>,
    debug: Option<kvm_debugregs>,
    fpu: Option<kvm_fpu>,
    xcrs: Option<kvm_xcrs>,
    events: Option<kvm_vcpu_events>,
    activity: Option<kvm_mp_state>,
    msrs: Vec<(u32, u64)>,
}

/// Reads one of the structures once.
macro_rules! part {
    ($self:ident . $field:ident, $get:ident) => {
        match &mut $self.$field {
            Some(part) => part,
            empty => empty.insert($self.vcpu.$get().map_err(|_| E_FAIL)?),
        }
    };
}

impl<'a> Registers<'a> {
    pub(crate) fn new(vcpu: &'a VcpuFd) -> Self {
        let (regs, sregs, debug, fpu) = (None, None, None, None);
        let (xcrs, events, activity, msrs) = (None, None, None, Vec::new());
        Self { vcpu, regs, sregs, debug, fpu, xcrs, events, activity, msrs }
    }

    pub(crate) fn get(&mut self, name: WHV_REGISTER_NAME) -> Answer<u128> {
        if let Some(&(_, msr)) = MSRS.iter().find(|(own, _)| *own == name) {
            return get_msr(self.vcpu, msr).map(u128::from);
        }
        if let Some(place) = general(part!(self.regs, get_regs), name) {
            return Ok((*place).into());
        }
        let sregs = part!(self.sregs, get_sregs);
        if let Some(place) = control(sregs, name) {
            return Ok((*place).into());
        }
        if let Some(segment) = segment(sregs, name) {
            return Ok(pack_segment(segment));
        }
        let table = |base: u64, limit: u16| u128::from(base) << 64 | u128::from(limit) << 48;
        Ok(match name {
            WHvX64RegisterGdtr => table(sregs.gdt.base, sregs.gdt.limit),
            WHvX64RegisterIdtr => table(sregs.idt.base, sregs.idt.limit),
            WHvX64RegisterDr0..=WHvX64RegisterDr7 => {
                (*debug(part!(self.debug, get_debug_regs), name)?).into()
            }
            WHvX64RegisterXCr0 => {
                let xcrs = part!(self.xcrs, get_xcrs);
                let used = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize);
                used.clone().find(|xcr| xcr.xcr == 0).map_or(1, |xcr| xcr.value).into()
            }
            WHvX64RegisterXmm0..=WHvX64RegisterXmm15 => {
                let fpu = part!(self.fpu, get_fpu);
                u128::from_le_bytes(fpu.xmm[(name - WHvX64RegisterXmm0) as usize])
            }
            WHvRegisterPendingInterruption => interruption(part!(self.events, get_vcpu_events)),
            WHvRegisterPendingEvent => 0,
            WHvRegisterInterruptState => {
                let events = part!(self.events, get_vcpu_events);
                u128::from(u8::from(events.interrupt.shadow != 0) | (events.nmi.masked & 1) << 1)
            }
            WHvRegisterInternalActivityState => match part!(self.activity, get_mp_state).mp_state {
                KVM_MP_STATE_RUNNABLE => 0,
                KVM_MP_STATE_HALTED => 2,
                _ => 1,
            },
            _ => return Err(WHV_E_INVALID_VP_REGISTER_NAME),
        })
    }

    pub(crate) fn set(&mut self, name: WHV_REGISTER_NAME, value: u128) -> Answer<()> {
        if let Some(&(_, msr)) = MSRS.iter().find(|(own, _)| *own == name) {
            self.msrs.push((msr, value as u64));
            return Ok(());
        }
        if matches!(name, WHvX64RegisterRax..=WHvX64RegisterRflags)
            && let Some(place) = general(part!(self.regs, get_regs), name)
        {
            *place = value as u64;
            return Ok(());
        }
        match name {
            WHvX64RegisterDr0..=WHvX64RegisterDr7 => {
                *debug(part!(self.debug, get_debug_regs), name)? = value as u64;
            }
            WHvX64RegisterXCr0 => {
                let xcrs = part!(self.xcrs, get_xcrs);
                xcrs.nr_xcrs = 1;
                (xcrs.xcrs[0].xcr, xcrs.xcrs[0].value) = (0, value as u64);
            }
            WHvX64RegisterXmm0..=WHvX64RegisterXmm15 => {
                let fpu = part!(self.fpu, get_fpu);
                fpu.xmm[(name - WHvX64RegisterXmm0) as usize] = value.to_le_bytes();
            }
            WHvRegisterPendingInterruption => {
                set_interruption(part!(self.events, get_vcpu_events), value as u64)?;
            }
            WHvRegisterPendingEvent => self.set_event(value)?,
            WHvRegisterInterruptState => {
                let events = part!(self.events, get_vcpu_events);
                events.interrupt.shadow = (value & 1) as u8;
                events.nmi.masked = (value >> 1 & 1) as u8;
            }
            WHvRegisterInternalActivityState => {
                let mp_state = match value & 3 {
                    0 => KVM_MP_STATE_RUNNABLE,
                    2 => KVM_MP_STATE_HALTED,
                    _ => KVM_MP_STATE_UNINITIALIZED,
                };
                self.activity = Some(kvm_mp_state { mp_state });
            }
            _ => self.set_system(name, value)?,
        }
        Ok(())
    }

    fn set_system(&mut self, name: WHV_REGISTER_NAME, value: u128) -> Answer<()> {
        let sregs = part!(self.sregs, get_sregs);
        if let Some(place) = control(sregs, name) {
            *place = value as u64;
        } else if let Some(segment) = segment(sregs, name) {
            unpack_segment(segment, value);
        } else {
            let (base, limit) = ((value >> 64) as u64, (value >> 48) as u16);
            let table = match name {
                WHvX64RegisterGdtr => &mut sregs.gdt,
                WHvX64RegisterIdtr => &mut sregs.idt,
                _ => return Err(WHV_E_INVALID_VP_REGISTER_NAME),
            };
            (table.base, table.limit) = (base, limit);
        }
        Ok(())
    }

    /// An exception that is to be delivered next (`WHV_X64_PENDING_EXCEPTION_EVENT`).
    fn set_event(&mut self, value: u128) -> Answer<()> {
        let events = part!(self.events, get_vcpu_events);
        if value & 1 == 0 {
            return Ok(());
        }
        let vector = (value >> 16) as u8;
        if value >> 1 & 7 != WHvX64PendingEventException as u128 || events.exception.injected != 0 {
            return Err(E_INVALIDARG);
        }
        events.exception.injected = 1;
        events.exception.nr = vector;
        events.exception.has_error_code = (value >> 8 & 1) as u8;
        events.exception.error_code = (value >> 32) as u32;
        if vector == 14 {
            part!(self.sregs, get_sregs).cr2 = (value >> 64) as u64;
        }
        Ok(())
    }

    /// Writes back what was set.
    pub(crate) fn write(self) -> Answer<()> {
        let vcpu = self.vcpu;
        let refused = |_| E_INVALIDARG;
        if let Some(activity) = self.activity {
            vcpu.set_mp_state(activity).map_err(refused)?;
        }
        if let Some(sregs) = &self.sregs {
            vcpu.set_sregs(sregs).map_err(refused)?;
        }
        if let Some(regs) = &self.regs {
            vcpu.set_regs(regs).map_err(refused)?;
        }
        if let Some(xcrs) = &self.xcrs {
            vcpu.set_xcrs(xcrs).map_err(refused)?;
        }
        if let Some(fpu) = &self.fpu {
            vcpu.set_fpu(fpu).map_err(refused)?;
        }
        if let Some(debug) = &self.debug {
            vcpu.set_debug_regs(debug).map_err(refused)?;
        }
        for (index, data) in self.msrs {
            let entry = kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
            let list = Msrs::from_entries(&[entry]).map_err(|_| E_FAIL)?;
            // Zero is what a register holds that this processor does not have.
            if vcpu.set_msrs(&list).map_err(|_| E_FAIL)? != 1 && data != 0 {
                return Err(WHV_E_INVALID_VP_REGISTER_NAME);
            }
        }
        if let Some(mut events) = self.events {
            events.flags = KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING;
            vcpu.set_vcpu_events(&events).map_err(refused)?;
        }
        Ok(())
    }
}

fn get_msr(vcpu: &VcpuFd, index: u32) -> Answer<u64> {
    let entry = kvm_msr_entry { index, ..kvm_msr_entry::default() };
    let mut list = Msrs::from_entries(&[entry]).map_err(|_| E_FAIL)?;
    match vcpu.get_msrs(&mut list) {
        Ok(1) => Ok(list.as_slice()[0].data),
        _ => Err(WHV_E_INVALID_VP_REGISTER_NAME),
    }
}

fn general(regs: &mut kvm_regs, name: WHV_REGISTER_NAME) -> Option<&mut u64> {
    Some(match name {
        WHvX64RegisterRax => &mut regs.rax,
        WHvX64RegisterRcx => &mut regs.rcx,
        WHvX64RegisterRdx => &mut regs.rdx,
        WHvX64RegisterRbx => &mut regs.rbx,
        WHvX64RegisterRsp => &mut regs.rsp,
        WHvX64RegisterRbp => &mut regs.rbp,
        WHvX64RegisterRsi => &mut regs.rsi,
        WHvX64RegisterRdi => &mut regs.rdi,
        WHvX64RegisterR8 => &mut regs.r8,
        WHvX64RegisterR9 => &mut regs.r9,
        WHvX64RegisterR10 => &mut regs.r10,
        WHvX64RegisterR11 => &mut regs.r11,
        WHvX64RegisterR12 => &mut regs.r12,
        WHvX64RegisterR13 => &mut regs.r13,
        WHvX64RegisterR14 => &mut regs.r14,
        WHvX64RegisterR15 => &mut regs.r15,
        WHvX64RegisterRip => &mut regs.rip,
        WHvX64RegisterRflags => &mut regs.rflags,
        _ => return None,
    })
}

fn control(sregs: &mut kvm_sregs, name: WHV_REGISTER_NAME) -> Option<&mut u64> {
    Some(match name {
        WHvX64RegisterCr0 => &mut sregs.cr0,
        WHvX64RegisterCr2 => &mut sregs.cr2,
        WHvX64RegisterCr3 => &mut sregs.cr3,
        WHvX64RegisterCr4 => &mut sregs.cr4,
        WHvX64RegisterCr8 => &mut sregs.cr8,
        WHvX64RegisterEfer => &mut sregs.efer,
        WHvX64RegisterApicBase => &mut sregs.apic_base,
        _ => return None,
    })
}

fn segment(sregs: &mut kvm_sregs, name: WHV_REGISTER_NAME) -> Option<&mut kvm_segment> {
    Some(match name {
        WHvX64RegisterEs => &mut sregs.es,
        WHvX64RegisterCs => &mut sregs.cs,
        WHvX64RegisterSs => &mut sregs.ss,
        WHvX64RegisterDs => &mut sregs.ds,
        WHvX64RegisterFs => &mut sregs.fs,
        WHvX64RegisterGs => &mut sregs.gs,
        WHvX64RegisterLdtr => &mut sregs.ldt,
        WHvX64RegisterTr => &mut sregs.tr,
        _ => return None,
    })
}

fn debug(debug: &mut kvm_debugregs, name: WHV_REGISTER_NAME) -> Answer<&mut u64> {
    match name {
        WHvX64RegisterDr0..=WHvX64RegisterDr3 => {
            Ok(&mut debug.db[(name - WHvX64RegisterDr0) as usize])
        }
        WHvX64RegisterDr6 => Ok(&mut debug.dr6),
        WHvX64RegisterDr7 => Ok(&mut debug.dr7),
        _ => Err(WHV_E_INVALID_VP_REGISTER_NAME),
    }
}

/// A segment's attributes, as in `WHV_X64_SEGMENT_REGISTER`.
pub(crate) fn attributes(segment: &kvm_segment) -> u16 {
    let present = if segment.unusable != 0 { 0 } else { segment.present };
    let bits = [
        (segment.type_, 0),
        (segment.s, 4),
        (segment.dpl, 5),
        (present, 7),
        (segment.avl, 12),
        (segment.l, 13),
        (segment.db, 14),
        (segment.g, 15),
    ];
    bits.into_iter().fold(0, |all, (bit, at)| all | u16::from(bit) << at)
}

fn pack_segment(segment: &kvm_segment) -> u128 {
    u128::from(segment.base)
        | u128::from(segment.limit) << 64
        | u128::from(segment.selector) << 96
        | u128::from(attributes(segment)) << 112
}

fn unpack_segment(segment: &mut kvm_segment, value: u128) {
    let attributes = (value >> 112) as u16;
    let bit = |at: u32| (attributes >> at & 1) as u8;
    *segment = kvm_segment {
        base: value as u64,
        limit: (value >> 64) as u32,
        selector: (value >> 96) as u16,
        type_: (attributes & 0xf) as u8,
        s: bit(4),
        dpl: (attributes >> 5 & 3) as u8,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: u8::from(bit(7) == 0),
        padding: 0,
    };
}

/// `WHV_X64_PENDING_INTERRUPTION_REGISTER`.
fn interruption(events: &kvm_vcpu_events) -> u128 {
    let of = |kind: i32, vector: u8| 1 | (kind as u128) << 1 | u128::from(vector) << 16;
    if events.exception.injected != 0 {
        let code = match events.exception.has_error_code {
            0 => 0,
            _ => 1 << 4 | u128::from(events.exception.error_code) << 32,
        };
        return of(WHvX64PendingException, events.exception.nr) | code;
    }
    if events.interrupt.injected != 0 {
        return of(WHvX64PendingInterrupt, events.interrupt.nr);
    }
    if events.nmi.injected != 0 { of(WHvX64PendingNmi, 2) } else { 0 }
}

fn set_interruption(events: &mut kvm_vcpu_events, value: u64) -> Answer<()> {
    (events.exception.injected, events.interrupt.injected, events.nmi.injected) = (0, 0, 0);
    if value & 1 == 0 {
        return Ok(());
    }
    let vector = (value >> 16) as u8;
    match (value >> 1 & 7) as i32 {
        WHvX64PendingException => {
            events.exception.injected = 1;
            events.exception.nr = vector;
            events.exception.has_error_code = (value >> 4 & 1) as u8;
            events.exception.error_code = (value >> 32) as u32;
        }
        WHvX64PendingInterrupt => (events.interrupt.injected, events.interrupt.nr) = (1, vector),
        WHvX64PendingNmi => events.nmi.injected = 1,
        _ => return Err(E_INVALIDARG),
    }
    Ok(())
}

//! A vCPU's state: the VMCS and the framework's registers over KVM's structures, each of which is read when the first of
//! its parts is named, and written before the guest runs if one was set.

use std::collections::BTreeMap;

use cabana_hv_hvf::{HV_BAD_ARGUMENT, HV_UNSUPPORTED};
use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, Msrs, kvm_debugregs,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;

use crate::fields::{
    self, CR0, CR0_MASK, CR0_SHADOW, CR3, CR4, CR4_MASK, CR4_SHADOW, DR7, EFER, ENTRY_CONTROLS,
    ENTRY_ERROR, ENTRY_EVENT, GDTR_BASE, GDTR_LIMIT, HAS_ERROR, IDTR_BASE, IDTR_LIMIT, LONG,
    RFLAGS, RIP, RSP, SHADOW, VALID, VECTORING, VECTORING_ERROR,
};
use crate::{Answer, failed};

/// `EFER.LMA`.
const LMA: u64 = 1 << 10;
/// The local APIC is on: KVM has none here, and shows its CPUID bit by that.
const APIC_BASE: u64 = 0xfee0_0800;
/// `KVM_X86_SHADOW_INT_MOV_SS` and `KVM_X86_SHADOW_INT_STI`.
const SHADOWS: u8 = 3;
/// Interruptibility: after STI or a load of SS, within an NMI.
const BY_STI_OR_SS: u64 = 0b11;
const BY_NMI: u64 = 1 << 3;
/// Of a segment that is not usable.
const UNUSABLE: u64 = 1 << 16;

/// A structure of KVM's.
#[derive(Debug)]
struct Part<T> {
    value: Option<T>,
    changed: bool,
}

impl<T> Default for Part<T> {
    fn default() -> Self {
        Self { value: None, changed: false }
    }
}

/// Reads a structure once; with `mut`, to change it.
macro_rules! part {
    ($self:ident . $field:ident, $get:ident) => {
        match &mut $self.$field.value {
            Some(value) => value,
            empty => empty.insert($self.vcpu.$get().map_err(failed)?),
        }
    };
    (mut $self:ident . $field:ident, $get:ident) => {{
        $self.$field.changed = true;
        part!($self.$field, $get)
    }};
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) vcpu: VcpuFd,
    table: BTreeMap<u32, u64>,
    regs: Part<kvm_regs>,
    sregs: Part<kvm_sregs>,
    events: Part<kvm_vcpu_events>,
    debug: Part<kvm_debugregs>,
}

impl State {
    pub(crate) fn new(vcpu: VcpuFd) -> Self {
        Self {
            vcpu,
            table: BTreeMap::new(),
            regs: Part::default(),
            sregs: Part::default(),
            events: Part::default(),
            debug: Part::default(),
        }
    }

    pub(crate) fn kept(&self, field: u32) -> u64 {
        self.table.get(&field).copied().unwrap_or(0)
    }

    /// Sets a field that is kept, also one that may only be read.
    pub(crate) fn keep(&mut self, field: u32, value: u64) {
        self.table.insert(field, value);
    }

    pub(crate) fn regs(&mut self) -> Answer<&mut kvm_regs> {
        Ok(part!(mut self.regs, get_regs))
    }

    pub(crate) fn events(&mut self) -> Answer<&mut kvm_vcpu_events> {
        Ok(part!(mut self.events, get_vcpu_events))
    }

    fn sregs(&mut self) -> Answer<&mut kvm_sregs> {
        if self.sregs.value.is_none() {
            let mut sregs = self.vcpu.get_sregs().map_err(failed)?;
            // Changes of bits that are the host's the processor would have told before they are made.
            for (visible, real, mask, shadow) in
                [(sregs.cr0, CR0, CR0_MASK, CR0_SHADOW), (sregs.cr4, CR4, CR4_MASK, CR4_SHADOW)]
            {
                let mask = self.kept(mask);
                self.keep(real, visible & !mask | self.kept(real) & mask);
                self.keep(shadow, visible & mask | self.kept(shadow) & !mask);
            }
            let long = if sregs.efer & LMA == 0 { 0 } else { LONG };
            self.keep(ENTRY_CONTROLS, self.kept(ENTRY_CONTROLS) & !LONG | long);
            sregs.apic_base = APIC_BASE;
            self.sregs.value = Some(sregs);
        }
        self.sregs.value.as_mut().ok_or(HV_BAD_ARGUMENT)
    }

    fn sregs_mut(&mut self) -> Answer<&mut kvm_sregs> {
        self.sregs.changed = true;
        self.sregs()
    }

    pub(crate) fn field(&mut self, field: u32) -> Answer<u64> {
        if matches!(field, CR0 | CR4 | CR0_SHADOW | CR4_SHADOW | ENTRY_CONTROLS) {
            self.sregs()?;
            return Ok(self.kept(field));
        }
        if fields::is_kept(field) {
            return Ok(self.kept(field));
        }
        Ok(match field {
            RIP => part!(self.regs, get_regs).rip,
            RSP => part!(self.regs, get_regs).rsp,
            RFLAGS => part!(self.regs, get_regs).rflags,
            CR3 => self.sregs()?.cr3,
            EFER => self.sregs()?.efer,
            DR7 => part!(self.debug, get_debug_regs).dr7,
            GDTR_BASE => self.sregs()?.gdt.base,
            GDTR_LIMIT => self.sregs()?.gdt.limit.into(),
            IDTR_BASE => self.sregs()?.idt.base,
            IDTR_LIMIT => self.sregs()?.idt.limit.into(),
            SHADOW => {
                let events = part!(self.events, get_vcpu_events);
                u64::from(events.interrupt.shadow != 0) | u64::from(events.nmi.masked & 1) << 3
            }
            _ => {
                let (number, what) = part_of_segment(field).ok_or(HV_BAD_ARGUMENT)?;
                let segment = segment(self.sregs()?, number);
                match what {
                    What::Selector => segment.selector.into(),
                    What::Limit => segment.limit.into(),
                    What::Rights => rights(segment),
                    What::Base => segment.base,
                }
            }
        })
    }

    pub(crate) fn set_field(&mut self, field: u32, value: u64) -> Answer<()> {
        if fields::is_told(field) || !fields::fits(field, value) {
            return Err(HV_BAD_ARGUMENT);
        }
        if matches!(field, CR0 | CR4 | CR0_SHADOW | CR4_SHADOW | CR0_MASK | CR4_MASK) {
            // What KVM has comes first, and is made of these again later.
            self.sregs_mut()?;
            self.keep(field, value);
            return Ok(());
        }
        if field == ENTRY_CONTROLS {
            self.sregs()?;
        }
        if fields::is_kept(field) {
            self.keep(field, value);
            return Ok(());
        }
        match field {
            RIP => self.regs()?.rip = value,
            RSP => self.regs()?.rsp = value,
            RFLAGS => self.regs()?.rflags = value,
            CR3 => self.sregs_mut()?.cr3 = value,
            EFER => self.sregs_mut()?.efer = value,
            DR7 => part!(mut self.debug, get_debug_regs).dr7 = value,
            GDTR_BASE => self.sregs_mut()?.gdt.base = value,
            GDTR_LIMIT => self.sregs_mut()?.gdt.limit = value as u16,
            IDTR_BASE => self.sregs_mut()?.idt.base = value,
            IDTR_LIMIT => self.sregs_mut()?.idt.limit = value as u16,
            SHADOW => {
                let events = self.events()?;
                events.interrupt.shadow = if value & BY_STI_OR_SS == 0 { 0 } else { SHADOWS };
                events.nmi.masked = u8::from(value & BY_NMI != 0);
            }
            _ => {
                let (number, what) = part_of_segment(field).ok_or(HV_BAD_ARGUMENT)?;
                let segment = segment(self.sregs_mut()?, number);
                match what {
                    What::Selector => segment.selector = value as u16,
                    What::Limit => segment.limit = value as u32,
                    What::Rights => set_rights(segment, value),
                    What::Base => segment.base = value,
                }
            }
        }
        Ok(())
    }

    /// A register by its number in `hv_x86_reg_t`.
    pub(crate) fn register(&mut self, register: u32) -> Answer<u64> {
        match register {
            0..=17 => Ok(*general(part!(self.regs, get_regs), register)),
            38 => Ok(self.sregs()?.cr2),
            41..=48 => debug(part!(self.debug, get_debug_regs), register).map(|place| *place),
            50 => {
                let xcrs = self.vcpu.get_xcrs().map_err(failed)?;
                let used = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize);
                Ok(used.clone().find(|xcr| xcr.xcr == 0).map_or(1, |xcr| xcr.value))
            }
            _ => Err(HV_BAD_ARGUMENT),
        }
    }

    pub(crate) fn set_register(&mut self, register: u32, value: u64) -> Answer<()> {
        match register {
            0..=17 => *general(self.regs()?, register) = value,
            38 => self.sregs_mut()?.cr2 = value,
            41..=48 => *debug(part!(mut self.debug, get_debug_regs), register)? = value,
            // Without XSAVE there is nothing to set.
            50 if self.register(50)? == value => {}
            50 => {
                let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
                xcrs.xcrs[0].value = value;
                self.vcpu.set_xcrs(&xcrs).map_err(|_| HV_BAD_ARGUMENT)?;
            }
            _ => return Err(HV_BAD_ARGUMENT),
        }
        Ok(())
    }

    pub(crate) fn msr(&self, index: u32) -> Answer<u64> {
        let entry = kvm_msr_entry { index, ..kvm_msr_entry::default() };
        let mut list = Msrs::from_entries(&[entry]).map_err(failed)?;
        match self.vcpu.get_msrs(&mut list) {
            Ok(1) => Ok(list.as_slice()[0].data),
            _ => Err(HV_UNSUPPORTED),
        }
    }

    pub(crate) fn set_msr(&self, index: u32, data: u64) -> Answer<()> {
        let entry = kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
        let list = Msrs::from_entries(&[entry]).map_err(failed)?;
        match self.vcpu.set_msrs(&list) {
            Ok(1) => Ok(()),
            _ => Err(HV_UNSUPPORTED),
        }
    }

    /// Gives KVM all that was set, and what the entry injects. `false` if the processor would refuse the guest's state.
    pub(crate) fn enter(&mut self) -> Answer<bool> {
        self.inject()?;
        let long = self.field(ENTRY_CONTROLS)? & LONG != 0;
        if long != (self.sregs()?.efer & LMA != 0) || self.kept(fields::ACTIVITY) != 0 {
            return Ok(false);
        }
        if self.sregs.changed {
            let merged = |real, mask, shadow| {
                let mask = self.kept(mask);
                self.kept(real) & !mask | self.kept(shadow) & mask
            };
            let (cr0, cr4) = (merged(CR0, CR0_MASK, CR0_SHADOW), merged(CR4, CR4_MASK, CR4_SHADOW));
            let sregs = self.sregs()?;
            (sregs.cr0, sregs.cr4) = (cr0, cr4);
            sregs.interrupt_bitmap = [0; 4];
            let sregs = *sregs;
            if self.vcpu.set_sregs(&sregs).is_err() {
                return Ok(false);
            }
        }
        if let Part { value: Some(regs), changed: true } = &self.regs
            && self.vcpu.set_regs(regs).is_err()
        {
            return Ok(false);
        }
        if let Part { value: Some(debug), changed: true } = &self.debug {
            self.vcpu.set_debug_regs(debug).map_err(failed)?;
        }
        if let Part { value: Some(events), changed: true } = &mut self.events {
            events.flags = KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING;
            self.vcpu.set_vcpu_events(events).map_err(failed)?;
        }
        Ok(true)
    }

    /// What is injected is what the field says, and nothing else.
    fn inject(&mut self) -> Answer<()> {
        let (event, error) = (self.kept(ENTRY_EVENT), self.kept(ENTRY_ERROR));
        let events = part!(self.events, get_vcpu_events);
        let left = events.interrupt.injected | events.exception.injected | events.nmi.injected != 0;
        if event & VALID == 0 && !left {
            return Ok(());
        }
        let events = self.events()?;
        (events.interrupt.injected, events.exception.injected, events.nmi.injected) = (0, 0, 0);
        if event & VALID == 0 {
            return Ok(());
        }
        match event >> 8 & 7 {
            0 => {
                events.interrupt.injected = 1;
                (events.interrupt.nr, events.interrupt.soft) = (event as u8, 0);
            }
            2 => events.nmi.injected = 1,
            3 => {
                events.exception.injected = 1;
                events.exception.nr = event as u8;
                events.exception.has_error_code = u8::from(event & HAS_ERROR != 0);
                events.exception.error_code = error as u32;
            }
            // Events of instructions are made again by these.
            _ => {}
        }
        self.keep(ENTRY_EVENT, event & !VALID);
        Ok(())
    }

    /// The guest has run: what KVM has is read anew, and what was on its way is told.
    pub(crate) fn left(&mut self) -> Answer<()> {
        self.regs = Part::default();
        self.sregs = Part::default();
        self.debug = Part::default();
        self.events = Part::default();
        let events = part!(self.events, get_vcpu_events);
        let (mut vectoring, mut error) = (0, 0);
        if events.exception.injected != 0 {
            vectoring = VALID | 3 << 8 | u64::from(events.exception.nr);
            if events.exception.has_error_code != 0 {
                (vectoring, error) = (vectoring | HAS_ERROR, events.exception.error_code);
            }
        } else if events.nmi.injected != 0 {
            vectoring = VALID | 2 << 8 | 2;
        } else if events.interrupt.injected != 0 && events.interrupt.soft == 0 {
            vectoring = VALID | u64::from(events.interrupt.nr);
        }
        self.keep(VECTORING, vectoring);
        self.keep(VECTORING_ERROR, error.into());
        Ok(())
    }

    /// The guest has not run: what would have been injected is told as on its way.
    pub(crate) fn not_entered(&mut self) {
        let event = self.kept(ENTRY_EVENT);
        self.keep(VECTORING, if event & VALID == 0 { 0 } else { event });
        self.keep(VECTORING_ERROR, self.kept(ENTRY_ERROR));
        self.keep(ENTRY_EVENT, event & !VALID);
    }
}

fn general(regs: &mut kvm_regs, register: u32) -> &mut u64 {
    match register {
        0 => &mut regs.rip,
        1 => &mut regs.rflags,
        2 => &mut regs.rax,
        3 => &mut regs.rcx,
        4 => &mut regs.rdx,
        5 => &mut regs.rbx,
        6 => &mut regs.rsi,
        7 => &mut regs.rdi,
        8 => &mut regs.rsp,
        9 => &mut regs.rbp,
        10 => &mut regs.r8,
        11 => &mut regs.r9,
        12 => &mut regs.r10,
        13 => &mut regs.r11,
        14 => &mut regs.r12,
        15 => &mut regs.r13,
        16 => &mut regs.r14,
        _ => &mut regs.r15,
    }
}

/// DR0 to DR7; DR4 and DR5 are none.
fn debug(debug: &mut kvm_debugregs, register: u32) -> Answer<&mut u64> {
    match register {
        41..=44 => Ok(&mut debug.db[(register - 41) as usize]),
        47 => Ok(&mut debug.dr6),
        48 => Ok(&mut debug.dr7),
        _ => Err(HV_BAD_ARGUMENT),
    }
}

enum What {
    Selector,
    Limit,
    Rights,
    Base,
}

/// Which segment's field it is, by the segment's number, and what of it.
fn part_of_segment(field: u32) -> Option<(u32, What)> {
    let number = |first: u32| (field - first) / 2;
    if !field.is_multiple_of(2) {
        return None;
    }
    Some(match field {
        0x800..=0x80e => (number(0x800), What::Selector),
        0x4800..=0x480e => (number(0x4800), What::Limit),
        0x4814..=0x4822 => (number(0x4814), What::Rights),
        0x6806..=0x6814 => (number(0x6806), What::Base),
        _ => return None,
    })
}

fn segment(sregs: &mut kvm_sregs, number: u32) -> &mut kvm_segment {
    match number {
        0 => &mut sregs.es,
        1 => &mut sregs.cs,
        2 => &mut sregs.ss,
        3 => &mut sregs.ds,
        4 => &mut sregs.fs,
        5 => &mut sregs.gs,
        6 => &mut sregs.ldt,
        _ => &mut sregs.tr,
    }
}

fn rights(segment: &kvm_segment) -> u64 {
    let bits = [
        (segment.type_, 0),
        (segment.s, 4),
        (segment.dpl, 5),
        (segment.present, 7),
        (segment.avl, 12),
        (segment.l, 13),
        (segment.db, 14),
        (segment.g, 15),
        (segment.unusable, 16),
    ];
    bits.into_iter().fold(0, |all, (bit, at)| all | u64::from(bit) << at)
}

fn set_rights(segment: &mut kvm_segment, value: u64) {
    let bit = |at: u32| (value >> at & 1) as u8;
    segment.type_ = (value & 0xf) as u8;
    segment.dpl = (value >> 5 & 3) as u8;
    (segment.s, segment.present, segment.avl) = (bit(4), bit(7), bit(12));
    (segment.l, segment.db, segment.g) = (bit(13), bit(14), bit(15));
    segment.unusable = u8::from(value & UNUSABLE != 0);
}

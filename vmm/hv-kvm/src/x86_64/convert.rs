//! Neutral registers and KVM's, both ways.

use cabana_hv::x86::{
    Activity, CpuidLeaf, DescriptorTable, PendingEvents, Regs, Segment, SystemRegs,
};
use kvm_bindings::{
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_SHADOW, KVM_VCPUEVENT_VALID_SIPI_VECTOR, kvm_cpuid_entry2, kvm_dtable,
    kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
};

pub(crate) fn leaf_from_kvm(entry: &kvm_cpuid_entry2) -> CpuidLeaf {
    CpuidLeaf {
        function: entry.function,
        index: (entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0).then_some(entry.index),
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

pub(crate) fn leaf_to_kvm(leaf: &CpuidLeaf) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: leaf.function,
        index: leaf.index.unwrap_or(0),
        flags: if leaf.index.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        ..kvm_cpuid_entry2::default()
    }
}

pub(crate) fn regs_to_kvm(regs: &Regs) -> kvm_regs {
    let Regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    } = *regs;
    // Bit 1 of RFLAGS is always set.
    let rflags = rflags | 2;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    }
}

pub(crate) fn regs_from_kvm(regs: &kvm_regs) -> Regs {
    let kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    } = *regs;
    Regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    }
}

/// One bit of a segment's attributes.
fn bit(attributes: u16, at: u32) -> u8 {
    (attributes >> at & 1) as u8
}

fn segment_to_kvm(segment: &Segment) -> kvm_segment {
    let attributes = segment.attributes;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: (attributes & 0xf) as u8,
        s: bit(attributes, 4),
        dpl: (attributes >> 5 & 3) as u8,
        present: bit(attributes, 7),
        avl: bit(attributes, 12),
        l: bit(attributes, 13),
        db: bit(attributes, 14),
        g: bit(attributes, 15),
        unusable: u8::from(bit(attributes, 7) == 0),
        padding: 0,
    }
}

fn segment_from_kvm(segment: &kvm_segment) -> Segment {
    let present = if segment.unusable != 0 { 0 } else { segment.present };
    Segment {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        attributes: [
            (segment.type_, 0),
            (segment.s, 4),
            (segment.dpl, 5),
            (present, 7),
            (segment.avl, 12),
            (segment.l, 13),
            (segment.db, 14),
            (segment.g, 15),
        ]
        .into_iter()
        .fold(0, |all, (field, at)| all | u16::from(field) << at),
    }
}

fn table_to_kvm(table: DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, padding: [0; 3] }
}

fn table_from_kvm(table: &kvm_dtable) -> DescriptorTable {
    DescriptorTable { base: table.base, limit: table.limit }
}

pub(crate) fn system_to_kvm(system: &SystemRegs) -> kvm_sregs {
    kvm_sregs {
        cs: segment_to_kvm(&system.cs),
        ds: segment_to_kvm(&system.ds),
        es: segment_to_kvm(&system.es),
        fs: segment_to_kvm(&system.fs),
        gs: segment_to_kvm(&system.gs),
        ss: segment_to_kvm(&system.ss),
        tr: segment_to_kvm(&system.tr),
        ldt: segment_to_kvm(&system.ldt),
        gdt: table_to_kvm(system.gdt),
        idt: table_to_kvm(system.idt),
        cr0: system.cr0,
        cr2: system.cr2,
        cr3: system.cr3,
        cr4: system.cr4,
        cr8: system.cr8,
        efer: system.efer,
        apic_base: system.apic_base,
        interrupt_bitmap: [0; 4],
    }
}

pub(crate) fn system_from_kvm(sregs: &kvm_sregs) -> SystemRegs {
    SystemRegs {
        cs: segment_from_kvm(&sregs.cs),
        ds: segment_from_kvm(&sregs.ds),
        es: segment_from_kvm(&sregs.es),
        fs: segment_from_kvm(&sregs.fs),
        gs: segment_from_kvm(&sregs.gs),
        ss: segment_from_kvm(&sregs.ss),
        tr: segment_from_kvm(&sregs.tr),
        ldt: segment_from_kvm(&sregs.ldt),
        gdt: table_from_kvm(&sregs.gdt),
        idt: table_from_kvm(&sregs.idt),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        apic_base: sregs.apic_base,
    }
}

pub(crate) fn events_to_kvm(pending: &PendingEvents) -> kvm_vcpu_events {
    let mut events = kvm_vcpu_events::default();
    if let Some((vector, code)) = pending.exception {
        events.exception.injected = 1;
        events.exception.nr = vector;
        events.exception.has_error_code = u8::from(code.is_some());
        events.exception.error_code = code.unwrap_or(0);
    }
    if let Some((vector, soft)) = pending.interrupt {
        events.interrupt.injected = 1;
        events.interrupt.nr = vector;
        events.interrupt.soft = u8::from(soft);
    }
    events.interrupt.shadow = pending.interrupt_shadow;
    events.nmi.injected = u8::from(pending.nmi_injected);
    events.nmi.pending = u8::from(pending.nmi_pending);
    events.nmi.masked = u8::from(pending.nmi_masked);
    events.sipi_vector = pending.sipi_vector;
    events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING
        | KVM_VCPUEVENT_VALID_SIPI_VECTOR
        | KVM_VCPUEVENT_VALID_SHADOW;
    events
}

pub(crate) fn events_from_kvm(events: &kvm_vcpu_events) -> PendingEvents {
    let exception = &events.exception;
    let interrupt = &events.interrupt;
    PendingEvents {
        exception: (exception.injected != 0).then_some((
            exception.nr,
            (exception.has_error_code != 0).then_some(exception.error_code),
        )),
        interrupt: (interrupt.injected != 0).then_some((interrupt.nr, interrupt.soft != 0)),
        interrupt_shadow: interrupt.shadow,
        nmi_injected: events.nmi.injected != 0,
        nmi_pending: events.nmi.pending != 0,
        nmi_masked: events.nmi.masked != 0,
        sipi_vector: events.sipi_vector,
    }
}

pub(crate) fn activity_to_kvm(activity: Activity) -> kvm_mp_state {
    let mp_state = match activity {
        Activity::Running => KVM_MP_STATE_RUNNABLE,
        Activity::WaitForSipi => KVM_MP_STATE_UNINITIALIZED,
        Activity::InitReceived => KVM_MP_STATE_INIT_RECEIVED,
        Activity::Halted => KVM_MP_STATE_HALTED,
    };
    kvm_mp_state { mp_state }
}

pub(crate) fn activity_from_kvm(state: kvm_mp_state) -> Activity {
    match state.mp_state {
        KVM_MP_STATE_UNINITIALIZED => Activity::WaitForSipi,
        KVM_MP_STATE_INIT_RECEIVED => Activity::InitReceived,
        KVM_MP_STATE_HALTED => Activity::Halted,
        _ => Activity::Running,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_survive_both_ways() {
        // 64-bit code, present, executable, readable, accessed, long, granular.
        let code = Segment { selector: 0x10, base: 0, limit: u32::MAX, attributes: 0xa09b };
        let kvm = segment_to_kvm(&code);
        assert_eq!((kvm.type_, kvm.s, kvm.present, kvm.l, kvm.db, kvm.g), (0xb, 1, 1, 1, 0, 1));
        assert_eq!(kvm.unusable, 0);
        assert_eq!(segment_from_kvm(&kvm), code);
        assert_eq!(segment_to_kvm(&Segment::default()).unusable, 1);
    }

    #[test]
    fn pending_events_survive_both_ways() {
        let pending = PendingEvents {
            exception: Some((14, Some(2))),
            interrupt: Some((0x30, false)),
            interrupt_shadow: 1,
            nmi_injected: false,
            nmi_pending: true,
            nmi_masked: true,
            sipi_vector: 8,
        };
        assert_eq!(events_from_kvm(&events_to_kvm(&pending)), pending);
        let none = PendingEvents::default();
        assert_eq!(events_from_kvm(&events_to_kvm(&none)), none);
    }
}

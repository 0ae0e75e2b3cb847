//! The whole state of a vCPU, saved and set.

use std::collections::BTreeMap;

use cabana_hv::HvError;
use cabana_hv::x86::{Activity, BootState, PendingEvents, Regs, SystemRegs, VcpuState};
use windows_sys::Win32::System::Hypervisor as whp;
use windows_sys::Win32::System::Hypervisor::WHV_REGISTER_NAME;

use crate::functions::check;
use crate::partition::Processor;
use crate::registers::{GENERAL, Value};

/// `IA32_TSC_DEADLINE`.
const TSC_DEADLINE: u32 = 0x6e0;
/// The local APIC's registers, one page.
const APIC_PAGE: usize = 4096;
/// More than any XSAVE area that there is.
const XSAVE_ROOM: usize = 16 << 10;

/// Model-specific registers and the platform's names for them. Not every Windows and processor has all.
#[rustfmt::skip]
const MSRS: [(u32, WHV_REGISTER_NAME); 36] = [
    (0x10, whp::WHvX64RegisterTsc),
    (0x3b, whp::WHvX64RegisterTscAdjust),
    (0x48, whp::WHvX64RegisterSpecCtrl),
    (0x174, whp::WHvX64RegisterSysenterCs),
    (0x175, whp::WHvX64RegisterSysenterEsp),
    (0x176, whp::WHvX64RegisterSysenterEip),
    (0x200, whp::WHvX64RegisterMsrMtrrPhysBase0), (0x201, whp::WHvX64RegisterMsrMtrrPhysMask0),
    (0x202, whp::WHvX64RegisterMsrMtrrPhysBase1), (0x203, whp::WHvX64RegisterMsrMtrrPhysMask1),
    (0x204, whp::WHvX64RegisterMsrMtrrPhysBase2), (0x205, whp::WHvX64RegisterMsrMtrrPhysMask2),
    (0x206, whp::WHvX64RegisterMsrMtrrPhysBase3), (0x207, whp::WHvX64RegisterMsrMtrrPhysMask3),
    (0x250, whp::WHvX64RegisterMsrMtrrFix64k00000),
    (0x258, whp::WHvX64RegisterMsrMtrrFix16k80000),
    (0x259, whp::WHvX64RegisterMsrMtrrFix16kA0000),
    (0x268, whp::WHvX64RegisterMsrMtrrFix4kC0000),
    (0x269, whp::WHvX64RegisterMsrMtrrFix4kC8000),
    (0x26a, whp::WHvX64RegisterMsrMtrrFix4kD0000),
    (0x26b, whp::WHvX64RegisterMsrMtrrFix4kD8000),
    (0x26c, whp::WHvX64RegisterMsrMtrrFix4kE0000),
    (0x26d, whp::WHvX64RegisterMsrMtrrFix4kE8000),
    (0x26e, whp::WHvX64RegisterMsrMtrrFix4kF0000),
    (0x26f, whp::WHvX64RegisterMsrMtrrFix4kF8000),
    (0x277, whp::WHvX64RegisterPat),
    (0x2ff, whp::WHvX64RegisterMsrMtrrDefType),
    // By the local APIC's mode, so after its state.
    (TSC_DEADLINE, whp::WHvX64RegisterTscDeadline),
    (0xda0, whp::WHvX64RegisterXss),
    (0xc000_0081, whp::WHvX64RegisterStar),
    (0xc000_0082, whp::WHvX64RegisterLstar),
    (0xc000_0083, whp::WHvX64RegisterCstar),
    (0xc000_0084, whp::WHvX64RegisterSfmask),
    (0xc000_0102, whp::WHvX64RegisterKernelGsBase),
    (0xc000_0103, whp::WHvX64RegisterTscAux),
    (0x122, whp::WHvX64RegisterTsxCtrl),
];

/// Segments, in the order of their fields.
const SEGMENTS: [WHV_REGISTER_NAME; 8] = [
    whp::WHvX64RegisterCs,
    whp::WHvX64RegisterDs,
    whp::WHvX64RegisterEs,
    whp::WHvX64RegisterFs,
    whp::WHvX64RegisterGs,
    whp::WHvX64RegisterSs,
    whp::WHvX64RegisterTr,
    whp::WHvX64RegisterLdtr,
];

const TABLES: [WHV_REGISTER_NAME; 2] = [whp::WHvX64RegisterGdtr, whp::WHvX64RegisterIdtr];

const CONTROL: [WHV_REGISTER_NAME; 7] = [
    whp::WHvX64RegisterCr0,
    whp::WHvX64RegisterCr2,
    whp::WHvX64RegisterCr3,
    whp::WHvX64RegisterCr4,
    whp::WHvX64RegisterEfer,
    whp::WHvX64RegisterCr8,
    whp::WHvX64RegisterApicBase,
];

const DEBUG: [WHV_REGISTER_NAME; 6] = [
    whp::WHvX64RegisterDr0,
    whp::WHvX64RegisterDr1,
    whp::WHvX64RegisterDr2,
    whp::WHvX64RegisterDr3,
    whp::WHvX64RegisterDr6,
    whp::WHvX64RegisterDr7,
];

const EVENTS: [WHV_REGISTER_NAME; 4] = [
    whp::WHvRegisterPendingInterruption,
    whp::WHvRegisterPendingEvent,
    whp::WHvRegisterInterruptState,
    whp::WHvRegisterInternalActivityState,
];

/// Sets a model-specific register; `false` where the platform has none of this number.
pub(crate) fn set_msr(processor: &Processor, msr: u32, value: u64) -> Result<bool, HvError> {
    match MSRS.iter().find(|(number, _)| *number == msr) {
        Some(&(_, name)) => processor.set(&[(name, value.into())]).map(|()| true),
        None => Ok(false),
    }
}

/// What a boot needs; the APIC's base and the task priority stay at reset.
pub(crate) fn set_boot(processor: &Processor, boot: &BootState) -> Result<(), HvError> {
    // Bit 1 of RFLAGS is always set.
    let mut regs = boot.regs;
    regs.rflags |= 2;
    let mut registers = zip(&GENERAL, regs.values().map(Value::from));
    registers.extend(
        system(&boot.system).into_iter().filter(|(name, _)| {
            ![whp::WHvX64RegisterCr8, whp::WHvX64RegisterApicBase].contains(name)
        }),
    );
    processor.set(&registers)
}

fn zip<const N: usize>(
    names: &[WHV_REGISTER_NAME; N],
    values: [Value; N],
) -> Vec<(WHV_REGISTER_NAME, Value)> {
    names.iter().copied().zip(values).collect()
}

/// Segments, tables and control registers by their names.
fn system(s: &SystemRegs) -> Vec<(WHV_REGISTER_NAME, Value)> {
    let segments = [s.cs, s.ds, s.es, s.fs, s.gs, s.ss, s.tr, s.ldt].map(Value::from);
    let control = [s.cr0, s.cr2, s.cr3, s.cr4, s.efer, s.cr8, s.apic_base].map(Value::from);
    let mut registers = zip(&SEGMENTS, segments);
    registers.extend(zip(&TABLES, [s.gdt, s.idt].map(Value::from)));
    registers.extend(zip(&CONTROL, control));
    registers
}

fn get_system(processor: &Processor) -> Result<SystemRegs, HvError> {
    let [cs, ds, es, fs, gs, ss, tr, ldt] = processor.get(SEGMENTS)?.map(Value::as_segment);
    let [gdt, idt] = processor.get(TABLES)?.map(Value::as_table);
    let control = processor.get(CONTROL)?.map(Value::as_u64);
    let [cr0, cr2, cr3, cr4, efer, cr8, apic_base] = control;
    Ok(SystemRegs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
    })
}

/// Everything. `kept` are the model-specific registers that the platform does not have.
pub(crate) fn get(processor: &Processor, kept: &BTreeMap<u32, u64>) -> Result<VcpuState, HvError> {
    let events = processor.get(EVENTS)?;
    let [xcr0] = processor.get([whp::WHvX64RegisterXCr0])?;
    let mut msrs = Vec::with_capacity(MSRS.len() + kept.len());
    for (msr, name) in MSRS {
        // This processor, or this Windows, may not have it.
        if let Ok([value]) = processor.get([name]) {
            msrs.push((msr, value.as_u64()));
        }
    }
    msrs.extend(kept.iter().map(|(&msr, &value)| (msr, value)));
    Ok(VcpuState {
        regs: Regs::of(processor.get(GENERAL)?.map(Value::as_u64)),
        system: get_system(processor)?,
        msrs,
        xsave: get_xsave(processor)?,
        xcrs: vec![(0, xcr0.as_u64())],
        lapic: get_apic(processor)?,
        events: pending(&events),
        debug: processor.get(DEBUG)?.map(Value::as_u64),
        activity: activity(events[3]),
    })
}

/// The order matters: the APIC's base comes before its registers, those before the deadline of its timer, and
/// events and activity last, since the others may touch them.
pub(crate) fn set(
    processor: &Processor,
    kept: &mut BTreeMap<u32, u64>,
    state: &VcpuState,
) -> Result<(), HvError> {
    if state.lapic.len() != APIC_PAGE || state.xsave.is_empty() {
        return Err(HvError::Invalid("the saved state is not a vCPU's of this platform".into()));
    }
    let mut registers = zip(&GENERAL, state.regs.values().map(Value::from));
    registers.extend(system(&state.system));
    registers.extend(zip(&DEBUG, state.debug.map(Value::from)));
    if let Some(&(_, xcr0)) = state.xcrs.iter().find(|(xcr, _)| *xcr == 0) {
        registers.push((whp::WHvX64RegisterXCr0, xcr0.into()));
    }
    processor.set(&registers)?;
    let (partition, index) = (processor.partition.handle, processor.index);
    let set_xsave = processor.functions().set_virtual_processor_xsave_state;
    let (area, len) = (state.xsave.as_ptr().cast(), state.xsave.len() as u32);
    // SAFETY: the buffer has the length that is said.
    let result = unsafe { set_xsave(partition, index, area, len) };
    check("WHvSetVirtualProcessorXsaveState", result)?;
    let set_apic = processor.functions().set_virtual_processor_interrupt_controller_state2;
    let (page, len) = (state.lapic.as_ptr().cast(), state.lapic.len() as u32);
    // SAFETY: as above.
    let result = unsafe { set_apic(partition, index, page, len) };
    check("WHvSetVirtualProcessorInterruptControllerState2", result)?;
    for &(msr, value) in &state.msrs {
        if !set_msr(processor, msr, value)? {
            kept.insert(msr, value);
        }
    }
    processor.set(&zip(&EVENTS, set_events(&state.events, state.activity)))
}

fn get_xsave(processor: &Processor) -> Result<Vec<u8>, HvError> {
    let mut area = vec![0; XSAVE_ROOM];
    let mut written = 0;
    let get = processor.functions().get_virtual_processor_xsave_state;
    let (partition, index) = (processor.partition.handle, processor.index);
    let (buffer, room) = (area.as_mut_ptr().cast(), area.len() as u32);
    // SAFETY: the buffer has the length that is said.
    let result = unsafe { get(partition, index, buffer, room, &raw mut written) };
    check("WHvGetVirtualProcessorXsaveState", result)?;
    area.truncate(written as usize);
    Ok(area)
}

fn get_apic(processor: &Processor) -> Result<Vec<u8>, HvError> {
    let mut page = vec![0; APIC_PAGE];
    let mut written = 0;
    let get = processor.functions().get_virtual_processor_interrupt_controller_state2;
    let (partition, index) = (processor.partition.handle, processor.index);
    let (buffer, room) = (page.as_mut_ptr().cast(), page.len() as u32);
    // SAFETY: the buffer has the length that is said.
    let result = unsafe { get(partition, index, buffer, room, &raw mut written) };
    check("WHvGetVirtualProcessorInterruptControllerState2", result)?;
    Ok(page)
}

/// `WHV_X64_PENDING_INTERRUPTION_REGISTER`'s types.
const INTERRUPT: u64 = whp::WHvX64PendingInterrupt as u64;
const NMI: u64 = whp::WHvX64PendingNmi as u64;
const EXCEPTION: u64 = whp::WHvX64PendingException as u64;

/// Pending interruption, pending event and interrupt state, in neutral words.
fn pending(registers: &[Value; 4]) -> PendingEvents {
    let [interruption, event, state] = [0, 1, 2].map(|at| registers[at].as_u64());
    let mut events = PendingEvents {
        interrupt_shadow: (state & 1) as u8,
        nmi_masked: state & 2 != 0,
        ..PendingEvents::default()
    };
    let vector = |register: u64| (register >> 16) as u8;
    let code = |register: u64, delivered: u32| {
        (register >> delivered & 1 != 0).then_some((register >> 32) as u32)
    };
    match (interruption & 1, interruption >> 1 & 7) {
        (1, INTERRUPT) => events.interrupt = Some((vector(interruption), false)),
        (1, NMI) => events.nmi_injected = true,
        (1, EXCEPTION) => events.exception = Some((vector(interruption), code(interruption, 4))),
        // An exception that was raised and not delivered yet: EventPending, of type 0.
        _ if event & 0xf == 1 => events.exception = Some((vector(event), code(event, 8))),
        _ => {}
    }
    events
}

fn activity(register: Value) -> Activity {
    match register.as_u64() & 3 {
        0 => Activity::Running,
        2 => Activity::Halted,
        _ => Activity::WaitForSipi,
    }
}

/// The values of [`EVENTS`].
fn set_events(events: &PendingEvents, activity: Activity) -> [Value; 4] {
    let interruption = match (events.exception, events.interrupt) {
        (Some((vector, code)), _) => {
            let delivered = u64::from(code.is_some()) << 4 | u64::from(code.unwrap_or(0)) << 32;
            1 | EXCEPTION << 1 | u64::from(vector) << 16 | delivered
        }
        (None, Some((vector, _))) => 1 | INTERRUPT << 1 | u64::from(vector) << 16,
        _ if events.nmi_injected => 1 | NMI << 1 | 2 << 16,
        _ => 0,
    };
    let state = u64::from(events.interrupt_shadow & 1) | u64::from(events.nmi_masked) << 1;
    let activity = match activity {
        Activity::Running => 0,
        Activity::WaitForSipi | Activity::InitReceived => 1,
        Activity::Halted => 2,
    };
    [interruption, 0, state, activity].map(Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_events_survive_both_ways() {
        let none = PendingEvents::default();
        let all = [
            none,
            PendingEvents { exception: Some((14, Some(2))), interrupt_shadow: 1, ..none },
            PendingEvents { exception: Some((6, None)), ..none },
            PendingEvents { interrupt: Some((0x30, false)), nmi_masked: true, ..none },
            PendingEvents { nmi_injected: true, ..none },
        ];
        for events in all {
            let registers = set_events(&events, Activity::Halted);
            assert_eq!(pending(&registers), events);
            assert_eq!(activity(registers[3]), Activity::Halted);
        }
        // A page fault that was raised and waits.
        let raised = Value::from(1 | 1 << 8 | 14 << 16 | 2 << 32);
        let waiting = [Value::default(), raised, Value::default(), Value::default()];
        assert_eq!(pending(&waiting).exception, Some((14, Some(2))));
    }
}

//! The whole state of a vCPU, saved and set; and what it is after INIT and SIPI.

use cabana_hv::HvError;
use cabana_hv::x86::{
    BootState, DescriptorTable, PendingEvents, Regs, Segment, SystemRegs, VcpuState,
};
use cabana_lapic::PAGE;

use super::control::{self, Event, Kind};
use super::cpu::{Cpu, XSAVE};
use super::msrs::{self, FS_BASE, GS_BASE, NATIVE};
use super::vcpu::HvfVcpu;
use super::vmcs::{
    self, BY_NMI, BY_SS, BY_STI, CR2, CR3, DEBUG, DR7, EFER, GDTR_BASE, GDTR_LIMIT, IDTR_BASE,
    IDTR_LIMIT, SHADOW, XCR0,
};

/// `IA32_TSC_DEADLINE`.
const TSC_DEADLINE: u32 = 0x6e0;

/// After INIT (Intel SDM 3A, table 9-1). `signature` says what processor it is.
pub(crate) fn reset(cpu: &Cpu, signature: u64) -> Result<(), HvError> {
    let regs = Regs { rip: 0xfff0, rflags: 2, rdx: signature, ..Regs::default() };
    cpu.set_regs(&regs, None)?;
    let data = Segment { selector: 0, base: 0, limit: 0xffff, attributes: 0x93 };
    let table = DescriptorTable { base: 0, limit: 0xffff };
    let system = SystemRegs {
        cs: Segment { selector: 0xf000, base: 0xffff_0000, attributes: 0x9b, ..data },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: Segment { attributes: 0x8b, ..data },
        ldt: Segment { attributes: 0x82, ..data },
        gdt: table,
        idt: table,
        // Caches are off.
        cr0: 0x6000_0010,
        ..SystemRegs::default()
    };
    set_system(cpu, &system)?;
    set_debug(cpu, &[0, 0, 0, 0, 0xffff_0ff0, 0x400])?;
    cpu.set_field(SHADOW, 0)
}

/// SIPI: real mode at the beginning of this page.
pub(crate) fn start(cpu: &Cpu, page: u8) -> Result<(), HvError> {
    let code = Segment {
        selector: u16::from(page) << 8,
        base: u64::from(page) << 12,
        limit: 0xffff,
        attributes: 0x9b,
    };
    cpu.set_segment(vmcs::CS, &code)?;
    cpu.set(vmcs::RIP, 0)
}

/// What a boot needs; the APIC's base and the task priority stay at reset.
pub(crate) fn set_boot(vcpu: &mut HvfVcpu, boot: &BootState) -> Result<(), HvError> {
    // Bit 1 of RFLAGS is always set.
    let regs = Regs { rflags: boot.regs.rflags | 2, ..boot.regs };
    vcpu.cpu.set_regs(&regs, None)?;
    set_system(&vcpu.cpu, &boot.system)?;
    directories(vcpu)
}

/// Fills what the processor holds of the page tables.
fn directories(vcpu: &HvfVcpu) -> Result<(), HvError> {
    if control::load_directories(&vcpu.cpu, &vcpu.vm.slots())? {
        return Ok(());
    }
    Err(HvError::Invalid("the page tables are not in memory".into()))
}

/// The segments, by their numbers, of these registers.
fn segments(s: &SystemRegs) -> [Segment; 8] {
    [s.es, s.cs, s.ss, s.ds, s.fs, s.gs, s.ldt, s.tr]
}

/// All but the APIC's base and CR8, which are the APIC's.
fn set_system(cpu: &Cpu, s: &SystemRegs) -> Result<(), HvError> {
    for (number, segment) in (0..).zip(segments(s)) {
        cpu.set_segment(vmcs::segment(number), &segment)?;
    }
    cpu.set_table(GDTR_BASE, GDTR_LIMIT, s.gdt)?;
    cpu.set_table(IDTR_BASE, IDTR_LIMIT, s.idt)?;
    control::set_cr0(cpu, s.cr0)?;
    control::set_cr4(cpu, s.cr4)?;
    control::set_efer(cpu, s.efer)?;
    cpu.set_field(CR3, s.cr3)?;
    cpu.set(CR2, s.cr2)
}

fn system(vcpu: &HvfVcpu) -> Result<SystemRegs, HvError> {
    let cpu = &vcpu.cpu;
    let mut segments = [Segment::default(); 8];
    for (number, segment) in (0..).zip(&mut segments) {
        *segment = cpu.segment(vmcs::segment(number))?;
    }
    let [es, cs, ss, ds, fs, gs, ldt, tr] = segments;
    let told = vcpu.post.told();
    Ok(SystemRegs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt: cpu.table(GDTR_BASE, GDTR_LIMIT)?,
        idt: cpu.table(IDTR_BASE, IDTR_LIMIT)?,
        cr0: control::cr0(cpu)?,
        cr2: cpu.get(CR2)?,
        cr3: cpu.field(CR3)?,
        cr4: control::cr4(cpu)?,
        cr8: told.apic.cr8(),
        efer: cpu.field(EFER)?,
        apic_base: told.apic.base(),
    })
}

fn set_debug(cpu: &Cpu, debug: &[u64; 6]) -> Result<(), HvError> {
    for (register, value) in DEBUG.into_iter().zip(debug) {
        cpu.set(register, *value)?;
    }
    cpu.set_field(DR7, debug[5])
}

fn debug(cpu: &Cpu) -> Result<[u64; 6], HvError> {
    let mut debug = [0; 6];
    for (value, register) in debug.iter_mut().zip(DEBUG) {
        *value = cpu.get(register)?;
    }
    debug[5] = cpu.field(DR7)?;
    Ok(debug)
}

/// Model-specific registers that have a place in the framework and none in [`SystemRegs`].
fn native() -> impl Iterator<Item = u32> {
    NATIVE.into_iter().filter(|msr| ![FS_BASE, GS_BASE].contains(msr))
}

/// Everything.
pub(crate) fn get(vcpu: &HvfVcpu) -> Result<VcpuState, HvError> {
    let cpu = &vcpu.cpu;
    let mut msrs = vec![(msrs::TSC, vcpu.tsc())];
    for msr in native() {
        msrs.push((msr, cpu.msr(msr)?));
    }
    msrs.extend(vcpu.msrs.all());
    let (lapic, deadline) = {
        let told = vcpu.post.told();
        let now = vcpu.vm.clock.now(told.tsc_offset);
        (told.apic.state(now), told.apic.read_msr(TSC_DEADLINE, now).unwrap_or(0))
    };
    msrs.push((TSC_DEADLINE, deadline));
    Ok(VcpuState {
        regs: cpu.regs()?,
        system: system(vcpu)?,
        msrs,
        xsave: cpu.vectors()?,
        xcrs: vec![(0, cpu.get(XCR0)?)],
        lapic,
        events: events(vcpu)?,
        debug: debug(cpu)?,
        activity: vcpu.activity,
    })
}

/// The order matters: the time-stamp counter comes before the APIC, whose base comes before its registers, and those
/// before the deadline of its timer.
pub(crate) fn set(vcpu: &mut HvfVcpu, state: &VcpuState) -> Result<(), HvError> {
    let another = || HvError::Invalid("the saved state is not a vCPU's of this hypervisor".into());
    if state.lapic.len() != PAGE || state.xsave.len() != XSAVE {
        return Err(another());
    }
    let cpu = &vcpu.cpu;
    cpu.set_regs(&state.regs, None)?;
    set_system(cpu, &state.system)?;
    set_debug(cpu, &state.debug)?;
    if let Some(&(_, xcr0)) = state.xcrs.iter().find(|(xcr, _)| *xcr == 0) {
        cpu.set(XCR0, xcr0)?;
    }
    cpu.set_vectors(&state.xsave)?;
    if let Some(&(_, tsc)) = state.msrs.iter().find(|(msr, _)| *msr == msrs::TSC) {
        vcpu.set_tsc(tsc)?;
    }
    {
        let mut told = vcpu.post.told();
        let now = vcpu.vm.clock.now(told.tsc_offset);
        if !told.apic.restore_base(state.system.apic_base) {
            return Err(another());
        }
        told.apic.restore(&state.lapic, now).map_err(|_| another())?;
    }
    for &(msr, value) in &state.msrs {
        if msr == TSC_DEADLINE {
            let mut told = vcpu.post.told();
            let now = vcpu.vm.clock.now(told.tsc_offset);
            // Without deadlines it takes no notice.
            let _ = told.apic.write_msr(msr, value, now);
        } else if native().any(|native| native == msr) {
            vcpu.cpu.set_msr(msr, value)?;
        } else if msr != msrs::TSC && !vcpu.msrs.restore(msr, value) {
            return Err(another());
        }
    }
    set_events(vcpu, &state.events)?;
    vcpu.activity = state.activity;
    directories(vcpu)
}

fn events(vcpu: &HvfVcpu) -> Result<PendingEvents, HvError> {
    let shadow = vcpu.cpu.field(SHADOW)?;
    let mut events = PendingEvents {
        interrupt_shadow: u8::from(shadow & (BY_STI | BY_SS) != 0),
        nmi_masked: shadow & BY_NMI != 0,
        nmi_pending: vcpu.post.told().nmi,
        ..PendingEvents::default()
    };
    match vcpu.event.map(|event| (event.kind(), event)) {
        Some((Kind::Interrupt, event)) => events.interrupt = Some((event.vector(), false)),
        Some((Kind::Nmi, _)) => events.nmi_injected = true,
        Some((Kind::Exception, event)) => events.exception = Some((event.vector(), event.error())),
        // The instruction that made it makes it again.
        None | Some((Kind::Software, _)) => {}
    }
    Ok(events)
}

fn set_events(vcpu: &mut HvfVcpu, events: &PendingEvents) -> Result<(), HvError> {
    vcpu.event = match (events.exception, events.interrupt) {
        (Some((vector, error)), _) => Some(Event::exception(vector, error)),
        (None, Some((vector, _))) => Some(Event::interrupt(vector)),
        _ => events.nmi_injected.then(Event::nmi),
    };
    vcpu.post.told().nmi = events.nmi_pending;
    let shadow = if events.interrupt_shadow == 0 { 0 } else { BY_STI };
    vcpu.cpu.set_field(SHADOW, shadow | if events.nmi_masked { BY_NMI } else { 0 })
}

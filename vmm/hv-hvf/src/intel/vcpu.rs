//! A vCPU: exits as values, and all that the processor leaves to us.

use std::sync::{Arc, Weak};

use cabana_hv::x86::{Activity, BootState, VcpuSetup, VcpuState, X86};
use cabana_hv::{HvError, Vcpu, VcpuKicker, VcpuSeat, VmEntry, VmExit};
use cabana_hv_x86::{Cpu as Registers, Emulation, MAX_INSTRUCTION, Mode, Step};
use cabana_lapic::{ADDRESS, Apic, Effect, Fault};

use super::control::{self, Event, Kind};
use super::cpu::Cpu;
use super::cpuid;
use super::msrs::{self, Msrs, NATIVE};
use super::paging::Paging;
use super::post::{Able, Next, Post, Run};
use super::surroundings::Around;
use super::vm::VmShared;
use super::{state, vmcs};

const PAGE: u64 = 4096;
/// Exceptions (Intel SDM 3A §6.15).
const INVALID_OPCODE: u8 = 6;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
/// `CR4.OSXSAVE`.
const OSXSAVE: u64 = 1 << 18;

/// A vCPU that is not yet on its thread.
#[derive(Debug)]
pub(crate) struct HvfSeat {
    pub(crate) vm: Arc<VmShared>,
    pub(crate) index: u32,
    pub(crate) post: Arc<Post>,
    pub(crate) setup: VcpuSetup,
}

impl VcpuSeat<X86> for HvfSeat {
    fn kicker(&self) -> Box<dyn VcpuKicker> {
        Box::new(HvfKicker { post: Arc::downgrade(&self.post) })
    }

    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu<X86>>, HvError> {
        let Self { vm, index, post, setup } = *self;
        let cpu = Cpu::new(Arc::clone(&vm.framework))?;
        vm.controls.set_up(&cpu)?;
        for msr in NATIVE {
            cpu.enable_msr(msr)?;
        }
        cpu.set_tsc_offset(post.told().tsc_offset)?;
        let activity = if index == 0 { Activity::Running } else { Activity::WaitForSipi };
        let vcpu = HvfVcpu {
            controls: vm.controls.main,
            msrs: Msrs::new(&setup.msrs),
            setup,
            vm,
            cpu,
            post,
            index,
            activity,
            event: None,
            work: None,
            queued: None,
            ended: None,
        };
        state::reset(&vcpu.cpu, vcpu.signature())?;
        Ok(Box::new(vcpu))
    }
}

#[derive(Debug)]
struct HvfKicker {
    post: Weak<Post>,
}

impl VcpuKicker for HvfKicker {
    fn kick(&self) {
        if let Some(post) = self.post.upgrade() {
            post.kick();
        }
    }
}

/// A vCPU on its thread, to which the framework binds it.
#[derive(Debug)]
pub(crate) struct HvfVcpu {
    pub(crate) vm: Arc<VmShared>,
    pub(crate) cpu: Cpu,
    pub(crate) post: Arc<Post>,
    pub(crate) setup: VcpuSetup,
    pub(crate) msrs: Msrs,
    pub(crate) activity: Activity,
    /// What the guest gets before its next instruction.
    pub(crate) event: Option<Event>,
    index: u32,
    /// The controls as they are now.
    controls: u64,
    /// The instruction that the last exit is a part of.
    work: Option<Work>,
    /// An exit that came while the state was asked for.
    queued: Option<VmExit>,
    /// The end of an interrupt that is to be told as soon as its instruction is done.
    ended: Option<VmExit>,
}

/// An instruction on its way.
#[derive(Debug)]
struct Work {
    emulation: Emulation,
    cpu: Registers,
    paging: Paging,
    known: Option<(u64, u64)>,
}

impl HvfVcpu {
    fn signature(&self) -> u64 {
        let leaf = self.setup.cpuid.iter().find(|leaf| leaf.function == 1);
        leaf.map_or(0, |leaf| leaf.eax.into())
    }

    /// An error of the guest's.
    fn stuck<T>(&self, what: &str) -> Result<T, HvError> {
        let rip = self.cpu.get(vmcs::RIP)?;
        Err(HvError::Guest(format!("{what}, at RIP {rip:#x}")))
    }

    /// Lets the guest have an exception before its next instruction.
    fn raise(&mut self, vector: u8, error: Option<u32>) {
        self.event = Some(Event::exception(vector, error));
    }

    /// The instruction that has exited is done.
    fn advance(&self) -> Result<(), HvError> {
        let rip = self.cpu.get(vmcs::RIP)?.wrapping_add(self.cpu.field(vmcs::LENGTH)?);
        self.cpu.set(vmcs::RIP, rip)?;
        self.end_shadow()
    }

    /// An instruction ends the shadow that `STI` or `MOV SS` has cast.
    fn end_shadow(&self) -> Result<(), HvError> {
        let shadow = self.cpu.field(vmcs::SHADOW)?;
        if shadow & (vmcs::BY_STI | vmcs::BY_SS) == 0 {
            return Ok(());
        }
        self.cpu.set_field(vmcs::SHADOW, shadow & !(vmcs::BY_STI | vmcs::BY_SS))
    }

    fn paging(&self) -> Result<Paging, HvError> {
        Ok(Paging {
            cr0: control::cr0(&self.cpu)?,
            cr3: self.cpu.field(vmcs::CR3)?,
            cr4: control::cr4(&self.cpu)?,
            efer: self.cpu.field(vmcs::EFER)?,
            user: self.cpu.field(vmcs::SS.rights)? >> 5 & 3 == 3,
        })
    }

    /// Begins with the instruction of an exit; the exit of its first access.
    fn begin(&mut self, known: Option<(u64, u64)>) -> Result<Option<VmExit>, HvError> {
        let code = self.cpu.segment(vmcs::CS)?;
        let mut bases = [0; 6];
        for (number, base) in (0..).zip(&mut bases) {
            *base = self.cpu.field(vmcs::segment(number).base)?;
        }
        let cpu = Registers { regs: self.cpu.regs()?, mode: Mode::of(&code), bases };
        let paging = self.paging()?;
        let mut bytes = [0; MAX_INSTRUCTION];
        let len = {
            let mut slots = self.vm.slots();
            let mut around = Around { cpu: &self.cpu, slots: &mut slots, paging, known: None };
            let base = if cpu.mode == Mode::Bits64 { 0 } else { code.base };
            around.fetch(base.wrapping_add(cpu.regs.rip), &mut bytes)
        };
        let emulation = Emulation::begin(&cpu, &bytes[..len])?;
        self.work = Some(Work { emulation, cpu, paging, known });
        self.step()
    }

    /// Tries the instruction in work: its next access that is the machine's, or nothing when it is over.
    fn step(&mut self) -> Result<Option<VmExit>, HvError> {
        while let Some(mut work) = self.work.take() {
            let mut after = work.cpu.clone();
            let step = {
                let mut slots = self.vm.slots();
                let Work { paging, known, .. } = work;
                let mut around = Around { cpu: &self.cpu, slots: &mut slots, paging, known };
                work.emulation.step(&mut after, &mut around)?
            };
            match step {
                Step::Exit(exit) => {
                    let answer = self.apic_access(exit);
                    if let Some(answer) = answer {
                        work.emulation.answer(answer)?;
                    }
                    self.work = Some(work);
                    if answer.is_none() {
                        return Ok(Some(exit));
                    }
                }
                Step::Done => {
                    self.cpu.set_regs(&after.regs, Some(&work.cpu.regs))?;
                    self.end_shadow()?;
                }
                Step::PageFault { linear, write } => {
                    self.cpu.set(vmcs::CR2, linear)?;
                    let error = u32::from(write) << 1 | u32::from(work.paging.user) << 2;
                    self.raise(PAGE_FAULT, Some(error));
                }
            }
        }
        Ok(self.ended.take())
    }

    /// An access to the APIC's page, and its answer.
    fn apic_access(&mut self, exit: VmExit) -> Option<VmEntry> {
        let (VmExit::MmioRead { addr, .. } | VmExit::MmioWrite { addr, .. }) = exit else {
            return None;
        };
        let mut told = self.post.told();
        if addr & !(PAGE - 1) != ADDRESS || !told.apic.is_mapped() {
            return None;
        }
        let offset = (addr - ADDRESS) as u32;
        let now = self.vm.clock.now(told.tsc_offset);
        match exit {
            VmExit::MmioWrite { size: 4, data, .. } if offset.is_multiple_of(16) => {
                let effect = told.apic.write(offset, data as u32, now);
                drop(told);
                self.carry_out(effect);
                Some(VmEntry::Resume)
            }
            // Registers have 32 bits.
            VmExit::MmioWrite { .. } => Some(VmEntry::Resume),
            _ => {
                let register = u64::from(told.apic.read(offset, now));
                Some(VmEntry::Data(if offset % 16 < 4 {
                    register >> (8 * (offset % 4))
                } else {
                    0
                }))
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Send(message) => self.vm.send(message, Some(self.index)),
            Effect::EndOfLevel(vector) => self.ended = Some(VmExit::EndOfInterrupt { vector }),
        }
    }

    /// Runs the guest until there is an exit for the machine.
    fn enter(&mut self) -> Result<VmExit, HvError> {
        loop {
            let able = self.able()?;
            match self.post.next(able, &self.vm.clock) {
                Next::Kicked => return Ok(VmExit::Kicked),
                Next::Init => {
                    state::reset(&self.cpu, self.signature())?;
                    (self.event, self.activity) = (None, Activity::WaitForSipi);
                }
                Next::Start(page) => {
                    state::start(&self.cpu, page)?;
                    self.activity = Activity::Running;
                }
                Next::Run(run) => {
                    self.activity = Activity::Running;
                    let ran = self.prepare(run).and_then(|()| self.cpu.run(run.until));
                    self.post.back();
                    ran?;
                    if let Some(exit) = self.exited()? {
                        return Ok(exit);
                    }
                }
            }
        }
    }

    fn able(&self) -> Result<Able, HvError> {
        let shadow = self.cpu.field(vmcs::SHADOW)?;
        Ok(Able {
            id: self.cpu.id,
            activity: self.activity,
            interrupts: self.cpu.get(vmcs::RFLAGS)? & vmcs::INTERRUPTS != 0,
            free: self.event.is_none() && shadow & (vmcs::BY_STI | vmcs::BY_SS) == 0,
            in_nmi: shadow & vmcs::BY_NMI != 0,
        })
    }

    /// Tells the processor what the guest gets first, and when to come back.
    fn prepare(&mut self, run: Run) -> Result<(), HvError> {
        let nmi = run.nmi.then(Event::nmi);
        let event = self.event.take().or(nmi).or(run.interrupt.map(Event::interrupt));
        if let Some(event) = event {
            event.inject(&self.cpu)?;
        }
        let window = |wanted, bit| if wanted { bit } else { 0 };
        let controls = self.vm.controls.main
            | window(run.interrupt_window, control::INTERRUPT_WINDOW)
            | window(run.nmi_window, control::NMI_WINDOW);
        if controls != self.controls {
            self.cpu.set_field(vmcs::CONTROLS, controls)?;
            self.controls = controls;
        }
        Ok(())
    }

    /// Why the guest has come back: what is the machine's business, or nothing.
    fn exited(&mut self) -> Result<Option<VmExit>, HvError> {
        self.event = Event::interrupted(&self.cpu)?;
        if self.event.is_some_and(|event| event.kind() == Kind::Nmi) {
            // It is delivered again, and blocks the next one then.
            let shadow = self.cpu.field(vmcs::SHADOW)?;
            self.cpu.set_field(vmcs::SHADOW, shadow & !vmcs::BY_NMI)?;
        }
        let reason = self.cpu.field(vmcs::REASON)?;
        if reason & vmcs::NOT_ENTERED != 0 {
            return self.stuck("the processor refused the guest's state");
        }
        match reason & 0xffff {
            vmcs::EXCEPTION
            | vmcs::EXTERNAL
            | vmcs::INTERRUPT_WINDOW
            | vmcs::NMI_WINDOW
            | vmcs::TIMER => {}
            vmcs::TRIPLE_FAULT => return Ok(Some(VmExit::Shutdown)),
            vmcs::CPUID => self.cpuid()?,
            vmcs::HLT => {
                self.advance()?;
                self.activity = Activity::Halted;
            }
            vmcs::INVD | vmcs::WBINVD | vmcs::PAUSE => self.advance()?,
            vmcs::RDPMC => self.raise(GENERAL_PROTECTION, Some(0)),
            vmcs::VMCALL..=vmcs::VMXON
            | vmcs::MWAIT
            | vmcs::MONITOR
            | vmcs::INVEPT
            | vmcs::INVVPID => self.raise(INVALID_OPCODE, None),
            vmcs::CR_ACCESS => self.control_register()?,
            vmcs::IO => return self.begin(None),
            vmcs::RDMSR => self.rdmsr()?,
            vmcs::WRMSR => {
                self.wrmsr()?;
                return Ok(self.ended.take());
            }
            vmcs::EPT_VIOLATION => return self.memory(),
            vmcs::XSETBV => self.xsetbv()?,
            other => return self.stuck(&format!("unexpected exit reason {other}")),
        }
        Ok(None)
    }

    /// The guest touches what is not mapped, or writes what it may not.
    fn memory(&mut self) -> Result<Option<VmExit>, HvError> {
        let qualification = self.cpu.field(vmcs::QUALIFICATION)?;
        let guest = self.cpu.field(vmcs::GUEST_PHYSICAL)?;
        let [write, execute, linear_known, is_access] =
            [1, 2, 7, 8].map(|bit| qualification >> bit & 1 != 0);
        {
            let mut slots = self.vm.slots();
            // The first write of a tracked page; or memory has come, or come back, meanwhile.
            if write && slots.written(guest)? || slots.host(guest, 1, write).is_some() {
                return Ok(None);
            }
        }
        if execute {
            return self.stuck(&format!("the guest runs where no memory is ({guest:#x})"));
        }
        if self.event.is_some() || linear_known && !is_access {
            return self
                .stuck(&format!("an event or a page table lies where no memory is ({guest:#x})"));
        }
        let linear = self.cpu.field(vmcs::GUEST_LINEAR)?;
        self.begin(linear_known.then_some((linear & !(PAGE - 1), guest & !(PAGE - 1))))
    }

    fn cpuid(&mut self) -> Result<(), HvError> {
        let [function, index] = [self.cpu.get(vmcs::RAX)?, self.cpu.get(vmcs::RCX)?];
        let osxsave = self.cpu.field(vmcs::CR4)? & OSXSAVE != 0;
        let apic = self.post.told().apic.base() & 1 << 11 != 0;
        let answer = cpuid::answer(&self.setup.cpuid, function as u32, index as u32, osxsave, apic);
        let registers = [vmcs::RAX, vmcs::RBX, vmcs::RCX, vmcs::RDX];
        for (register, value) in registers.into_iter().zip(answer) {
            self.cpu.set(register, value.into())?;
        }
        self.advance()
    }

    /// Writes of CR0 and CR4 that change what is ours, and all accesses to CR8.
    fn control_register(&mut self) -> Result<(), HvError> {
        /// The framework's registers by their number in instructions.
        const NUMBERED: [u32; 16] = [2, 3, 4, 5, 8, 9, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17];
        let qualification = self.cpu.field(vmcs::QUALIFICATION)?;
        let register = NUMBERED[(qualification >> 8 & 0xf) as usize];
        let done = match (qualification & 0xf, qualification >> 4 & 3) {
            (0, 0) => {
                let value = self.cpu.get(register)?;
                control::write_cr0(&self.cpu, &self.vm.slots(), value)?
            }
            (4, 0) => control::write_cr4(&self.cpu, self.cpu.get(register)?)?,
            (8, 0) => {
                let value = self.cpu.get(register)?;
                if value <= 0xf {
                    self.post.told().apic.set_cr8(value);
                }
                value <= 0xf
            }
            (8, 1) => {
                let value = self.post.told().apic.cr8();
                self.cpu.set(register, value)?;
                true
            }
            _ => {
                return self.stuck(&format!(
                    "unexpected access to a control register ({qualification:#x})"
                ));
            }
        };
        if done {
            return self.advance();
        }
        self.raise(GENERAL_PROTECTION, Some(0));
        Ok(())
    }

    fn rdmsr(&mut self) -> Result<(), HvError> {
        let Some(value) = self.msr(self.cpu.get(vmcs::RCX)? as u32)? else {
            self.raise(GENERAL_PROTECTION, Some(0));
            return Ok(());
        };
        self.cpu.set(vmcs::RAX, value & 0xffff_ffff)?;
        self.cpu.set(vmcs::RDX, value >> 32)?;
        self.advance()
    }

    fn msr(&self, msr: u32) -> Result<Option<u64>, HvError> {
        Ok(match msr {
            msrs::TSC => Some(self.tsc()),
            msrs::EFER => Some(self.cpu.field(vmcs::EFER)?),
            _ if Apic::has_msr(msr) => {
                let told = self.post.told();
                told.apic.read_msr(msr, self.vm.clock.now(told.tsc_offset)).ok()
            }
            _ => self.msrs.read(msr),
        })
    }

    fn wrmsr(&mut self) -> Result<(), HvError> {
        let msr = self.cpu.get(vmcs::RCX)? as u32;
        let value = self.cpu.get(vmcs::RDX)? << 32 | self.cpu.get(vmcs::RAX)? & 0xffff_ffff;
        let done = match msr {
            msrs::TSC => {
                self.set_tsc(value)?;
                true
            }
            msrs::EFER => control::write_efer(&self.cpu, value)?,
            _ if Apic::has_msr(msr) => {
                let written = {
                    let mut told = self.post.told();
                    let now = self.vm.clock.now(told.tsc_offset);
                    told.apic.write_msr(msr, value, now)
                };
                match written {
                    Ok(effect) => {
                        self.carry_out(effect);
                        true
                    }
                    Err(Fault) => false,
                }
            }
            _ => self.msrs.write(msr, value),
        };
        if done {
            return self.advance();
        }
        self.raise(GENERAL_PROTECTION, Some(0));
        Ok(())
    }

    /// The guest's time-stamp counter.
    pub(crate) fn tsc(&self) -> u64 {
        self.vm.clock.tsc().wrapping_add_signed(self.post.told().tsc_offset)
    }

    pub(crate) fn set_tsc(&self, value: u64) -> Result<(), HvError> {
        let offset = value.wrapping_sub(self.vm.clock.tsc()).cast_signed();
        self.post.told().tsc_offset = offset;
        self.cpu.set_tsc_offset(offset)
    }

    fn xsetbv(&mut self) -> Result<(), HvError> {
        let index = self.cpu.get(vmcs::RCX)? as u32;
        let value = self.cpu.get(vmcs::RDX)? << 32 | self.cpu.get(vmcs::RAX)? & 0xffff_ffff;
        if index != 0 || !cpuid::allows_xcr0(&self.setup.cpuid, value) {
            self.raise(GENERAL_PROTECTION, Some(0));
            return Ok(());
        }
        self.cpu.set(vmcs::XCR0, value)?;
        self.advance()
    }

    /// Brings an instruction that has told its last access to its end, so that the registers are whole. A read
    /// without its answer has changed nothing yet.
    fn finish(&mut self) -> Result<(), HvError> {
        let told = self.work.as_ref().is_some_and(|work| work.emulation.only_told());
        if told && self.queued.is_none() {
            if let Some(work) = &mut self.work {
                work.emulation.answer(VmEntry::Resume)?;
            }
            self.queued = self.step()?;
        }
        if self.queued.is_some() {
            return Err(HvError::Invalid(
                "the vCPU is in the middle of an instruction: run it on".into(),
            ));
        }
        Ok(())
    }
}

impl Vcpu<X86> for HvfVcpu {
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, HvError> {
        if let Some(exit) = self.queued.take() {
            return Ok(exit);
        }
        let work = self.work.as_mut().map(|work| &mut work.emulation);
        if Emulation::resume(work, entry)?
            && let Some(exit) = self.step()?
        {
            return Ok(exit);
        }
        self.enter()
    }

    fn state(&mut self) -> Result<VcpuState, HvError> {
        self.finish()?;
        state::get(self)
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), HvError> {
        (self.work, self.queued, self.ended) = (None, None, None);
        state::set(self, state)
    }

    fn set_boot_state(&mut self, boot: &BootState) -> Result<(), HvError> {
        (self.work, self.queued, self.ended) = (None, None, None);
        state::set_boot(self, boot)
    }

    fn exits(&self) -> Option<u64> {
        None
    }

    fn counter(&mut self) -> Result<u64, HvError> {
        Ok(self.tsc())
    }
}

//! A vCPU: exits as values, instructions that touch devices carried out.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cabana_hv::x86::{BootState, Regs, VcpuSetup, VcpuState, X86};
use cabana_hv::{HvError, Vcpu, VcpuKicker, VcpuSeat, VmEntry, VmExit};
use cabana_hv_x86::{Cpu, Emulation, MAX_INSTRUCTION, Mode, Step};
use windows_sys::Win32::System::Hypervisor::{
    WHV_REGISTER_NAME, WHV_RUN_VP_EXIT_CONTEXT, WHvRegisterInterruptState, WHvRegisterPendingEvent,
    WHvX64RegisterCs, WHvX64RegisterDs, WHvX64RegisterEs, WHvX64RegisterFs, WHvX64RegisterGs,
    WHvX64RegisterRax, WHvX64RegisterRdx, WHvX64RegisterRip, WHvX64RegisterSs, WHvX64RegisterTsc,
};

use crate::exits::{Exit, decode};
use crate::partition::Processor;
use crate::registers::{GENERAL, Value};
use crate::state;
use crate::surroundings::Around;
use crate::vm::VmShared;

const PAGE: u64 = 4096;
/// Exceptions (Intel SDM 3A §6.15).
const GENERAL_PROTECTION: u64 = 13;
const PAGE_FAULT: u64 = 14;

/// A vCPU that is not yet on its thread.
#[derive(Debug)]
pub(crate) struct WhpSeat {
    vm: Arc<VmShared>,
    processor: Arc<Processor>,
    kicked: Arc<AtomicBool>,
    msrs: BTreeMap<u32, u64>,
}

impl WhpSeat {
    pub(crate) fn new(vm: Arc<VmShared>, index: u32, setup: &VcpuSetup) -> Result<Self, HvError> {
        let processor = Arc::new(vm.partition.processor(index)?);
        let mut msrs = BTreeMap::new();
        for &(msr, value) in &setup.msrs {
            if !state::set_msr(&processor, msr, value)? {
                // The platform has no register for it: whoever reads it is answered here.
                msrs.insert(msr, value);
            }
        }
        Ok(Self { vm, processor, kicked: Arc::default(), msrs })
    }
}

impl VcpuSeat<X86> for WhpSeat {
    fn kicker(&self) -> Box<dyn VcpuKicker> {
        let (processor, kicked) = (Arc::downgrade(&self.processor), Arc::clone(&self.kicked));
        Box::new(WhpKicker { processor, kicked })
    }

    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu<X86>>, HvError> {
        let Self { vm, processor, kicked, msrs } = *self;
        let (work, queued, thread) = (None, None, PhantomData);
        Ok(Box::new(WhpVcpu { vm, processor, kicked, msrs, work, queued, thread }))
    }
}

/// A kick is a flag and a cancellation. The flag is looked at before each run; a cancellation that comes when
/// no run is on cancels the next one, and one without a flag was answered before.
#[derive(Debug)]
struct WhpKicker {
    processor: std::sync::Weak<Processor>,
    kicked: Arc<AtomicBool>,
}

impl VcpuKicker for WhpKicker {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        if let Some(processor) = self.processor.upgrade() {
            let cancel = processor.functions().cancel_run_virtual_processor;
            // SAFETY: the processor lives while we hold it; there are no flags. A failure could only say that
            // there is nothing to cancel.
            unsafe { cancel(processor.partition.handle, processor.index, 0) };
        }
    }
}

/// A vCPU on its thread.
#[derive(Debug)]
struct WhpVcpu {
    vm: Arc<VmShared>,
    processor: Arc<Processor>,
    kicked: Arc<AtomicBool>,
    /// Model-specific registers that the platform does not have.
    msrs: BTreeMap<u32, u64>,
    /// The instruction that the last exit is a part of.
    work: Option<Work>,
    /// An exit that came while the state was asked for.
    queued: Option<VmExit>,
    /// The contract binds a vCPU to its thread.
    thread: PhantomData<*const ()>,
}

/// An instruction on its way.
#[derive(Debug)]
struct Work {
    emulation: Emulation,
    cpu: Cpu,
    known: Option<(u64, u64)>,
    /// The instruction ends a shadow that `STI` or `MOV SS` has cast.
    shadow: bool,
    privilege: u64,
}

impl WhpVcpu {
    /// Begins with the instruction of an exit; the exit of its first access.
    fn begin(
        &mut self,
        context: &WHV_RUN_VP_EXIT_CONTEXT,
        given: &[u8],
        known: Option<(u64, u64)>,
    ) -> Result<Option<VmExit>, HvError> {
        let cpu = self.cpu()?;
        let emulation = if let Ok(emulation) = Emulation::begin(&cpu, given) {
            emulation
        } else {
            // The exit brought too few bytes, or none.
            let slots = self.vm.slots();
            let mut around = Around { processor: &self.processor, slots: &slots, known: None };
            let mut bytes = [0; MAX_INSTRUCTION];
            let base = if cpu.mode == Mode::Bits64 { 0 } else { cpu.bases[1] };
            let len = around.fetch(base.wrapping_add(cpu.regs.rip), &mut bytes)?;
            Emulation::begin(&cpu, &bytes[..len])?
        };
        // SAFETY: plain bits.
        let execution = unsafe { context.VpContext.ExecutionState.AsUINT16 };
        let (shadow, privilege) = (execution & 1 << 12 != 0, u64::from(execution & 3));
        self.work = Some(Work { emulation, cpu, known, shadow, privilege });
        self.step()
    }

    /// The registers that instructions use.
    fn cpu(&self) -> Result<Cpu, HvError> {
        const SEGMENTS: [WHV_REGISTER_NAME; 6] = [
            WHvX64RegisterEs,
            WHvX64RegisterCs,
            WHvX64RegisterSs,
            WHvX64RegisterDs,
            WHvX64RegisterFs,
            WHvX64RegisterGs,
        ];
        let mut names = [0; GENERAL.len() + SEGMENTS.len()];
        names[..GENERAL.len()].copy_from_slice(&GENERAL);
        names[GENERAL.len()..].copy_from_slice(&SEGMENTS);
        let values = self.processor.get(names)?;
        let segment = |at: usize| values[GENERAL.len() + at].as_segment();
        Ok(Cpu {
            regs: Regs::of(std::array::from_fn(|at| values[at].as_u64())),
            mode: Mode::of(&segment(1)),
            bases: std::array::from_fn(|at| segment(at).base),
        })
    }

    /// Tries the instruction in work: its next access, or nothing when it is over.
    fn step(&mut self) -> Result<Option<VmExit>, HvError> {
        let Some(mut work) = self.work.take() else { return Ok(None) };
        let mut cpu = work.cpu.clone();
        let step = {
            let slots = self.vm.slots();
            let processor = &self.processor;
            let mut around = Around { processor, slots: &slots, known: work.known };
            work.emulation.step(&mut cpu, &mut around)?
        };
        match step {
            Step::Exit(exit) => {
                self.work = Some(work);
                return Ok(Some(exit));
            }
            Step::Done => self.commit(&work, &cpu)?,
            Step::PageFault { linear, write } => {
                let code = u64::from(write) << 1 | u64::from(work.privilege == 3) << 2;
                self.raise(PAGE_FAULT, code, linear)?;
            }
        }
        Ok(None)
    }

    /// Sets what the instruction has changed.
    fn commit(&self, work: &Work, cpu: &Cpu) -> Result<(), HvError> {
        let (before, after) = (work.cpu.regs.values(), cpu.regs.values());
        let mut changed: Vec<_> = GENERAL
            .into_iter()
            .zip(before.into_iter().zip(after))
            .filter(|(_, (before, after))| before != after)
            .map(|(name, (_, after))| (name, Value::from(after)))
            .collect();
        if work.shadow {
            changed.push((WHvRegisterInterruptState, Value::default()));
        }
        if changed.is_empty() { Ok(()) } else { self.processor.set(&changed) }
    }

    /// Lets the guest have an exception before its next instruction.
    fn raise(&self, vector: u64, code: u64, parameter: u64) -> Result<(), HvError> {
        // `WHV_X64_PENDING_EXCEPTION_EVENT`: EventPending, DeliverErrorCode, Vector, ErrorCode.
        let event = 1 | 1 << 8 | vector << 16 | code << 32;
        let event = Value::wide(u128::from(parameter) << 64 | u128::from(event));
        self.processor.set(&[(WHvRegisterPendingEvent, event)])
    }

    /// A model-specific register that the platform does not have.
    fn msr(&mut self, msr: u32, write: Option<u64>, next_rip: u64) -> Result<(), HvError> {
        let mut registers = vec![(WHvX64RegisterRip, Value::from(next_rip))];
        match (self.msrs.get_mut(&msr), write) {
            (None, _) => return self.raise(GENERAL_PROTECTION, 0, 0),
            (Some(held), Some(value)) => *held = value,
            (Some(held), None) => {
                registers.push((WHvX64RegisterRax, (*held & 0xffff_ffff).into()));
                registers.push((WHvX64RegisterRdx, (*held >> 32).into()));
            }
        }
        self.processor.set(&registers)
    }

    /// Runs the guest until there is an exit for the machine.
    fn enter(&mut self) -> Result<VmExit, HvError> {
        loop {
            if self.kicked.swap(false, Ordering::SeqCst) {
                return Ok(VmExit::Kicked);
            }
            let context = self.processor.run()?;
            match decode(&context)? {
                Exit::Machine(exit) => return Ok(exit),
                Exit::Canceled => {}
                Exit::Msr { msr, write, next_rip } => self.msr(msr, write, next_rip)?,
                Exit::Instruction { bytes, known } => {
                    let known =
                        known.map(|(linear, guest)| (linear & !(PAGE - 1), guest & !(PAGE - 1)));
                    if let Some(exit) = self.begin(&context, &bytes, known)? {
                        return Ok(exit);
                    }
                }
            }
        }
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

impl Vcpu<X86> for WhpVcpu {
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
        state::get(&self.processor, &self.msrs)
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), HvError> {
        (self.work, self.queued) = (None, None);
        state::set(&self.processor, &mut self.msrs, state)
    }

    fn set_boot_state(&mut self, boot: &BootState) -> Result<(), HvError> {
        (self.work, self.queued) = (None, None);
        state::set_boot(&self.processor, boot)
    }

    fn exits(&self) -> Option<u64> {
        None
    }

    fn counter(&mut self) -> Result<u64, HvError> {
        let [tsc] = self.processor.get([WHvX64RegisterTsc])?;
        Ok(tsc.as_u64())
    }
}

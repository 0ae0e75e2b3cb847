//! A vCPU: exits as values, the power state interface, waiting.

use std::sync::Arc;
use std::time::Duration;

use cabana_hv::arm64::{Arm64, BootState, EL1H_MASKED, VcpuState};
use cabana_hv::{HvError, Vcpu, VcpuKicker, VcpuSeat, VmEntry, VmExit};

use crate::functions::{Exit, Timebase, check};
use crate::post::{Next, Post, Power, Start};
use crate::processor::{
    CNTV_CTL_EL0, CNTV_CVAL_EL0, CPSR, ELR_EL1, ESR_EL1, PC, Processor, SPSR_EL1, VBAR_EL1,
};
use crate::psci::{self, Call};
use crate::state;
use crate::syndrome::{self, Abort, Access};
use crate::trap::{self, Trap};
use crate::vm::VmShared;

/// `hv_exit_reason_t`.
const CANCELED: u32 = 0;
const EXCEPTION: u32 = 1;
const TIMER: u32 = 2;

/// A vCPU that waits looks at least this often for interrupts of other vCPUs, of which nobody tells.
const LOOK: Duration = Duration::from_millis(1);

/// A vCPU that is not yet on its thread.
#[derive(Debug)]
pub(crate) struct HvfSeat {
    vm: Arc<VmShared>,
    index: u32,
    post: Arc<Post>,
}

impl HvfSeat {
    pub(crate) fn new(vm: Arc<VmShared>, index: u32, post: Arc<Post>) -> Self {
        Self { vm, index, post }
    }
}

impl VcpuSeat<Arm64> for HvfSeat {
    fn kicker(&self) -> Box<dyn VcpuKicker> {
        Box::new(HvfKicker {
            functions: Arc::clone(&self.vm.functions),
            post: Arc::clone(&self.post),
        })
    }

    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu<Arm64>>, HvError> {
        let Self { vm, index, post } = *self;
        let processor = Processor::new(Arc::clone(&vm.functions))?;
        state::begin(&processor, index, vm.address_bits)?;
        processor.unmask_timer()?;
        post.bind(Some(processor.id()));
        Ok(Box::new(HvfVcpu { processor, post, vm, load: None, offset: None }))
    }
}

#[derive(Debug)]
struct HvfKicker {
    functions: Arc<crate::Functions>,
    post: Arc<Post>,
}

impl VcpuKicker for HvfKicker {
    fn kick(&self) {
        self.post.kick(&self.functions);
    }
}

/// A vCPU on its thread.
#[derive(Debug)]
struct HvfVcpu {
    processor: Processor,
    post: Arc<Post>,
    /// A load that waits for its answer; the vCPU still stands at the instruction.
    load: Option<Access>,
    /// What the framework was told that the counter is behind the host's.
    offset: Option<u64>,
    // After the processor, which must not outlive it.
    vm: Arc<VmShared>,
}

impl HvfVcpu {
    /// Takes `entry` as the answer to the last exit.
    fn answer(&mut self, entry: VmEntry) -> Result<(), HvError> {
        match (self.load, entry) {
            (None, VmEntry::Resume) => Ok(()),
            (None, VmEntry::Data(_)) => {
                Err(HvError::Invalid("data for an exit that was no read".into()))
            }
            (Some(_), VmEntry::Resume) => {
                Err(HvError::Invalid("a read was not answered with data".into()))
            }
            (Some(load), VmEntry::Data(data)) => {
                self.processor.set_x(load.register, load.loaded(data))?;
                self.load = None;
                self.processor.step()
            }
        }
    }

    /// Runs the guest until there is an exit for the machine.
    fn enter(&mut self) -> Result<VmExit, HvError> {
        loop {
            match self.post.next() {
                Next::Kicked => return Ok(VmExit::Kicked),
                Next::Begin(Start { entry, context }) => {
                    self.set_boot_state(&BootState { pc: entry, x0: context })?;
                }
                Next::Run => {}
            }
            let offset = self.vm.offset();
            if self.offset != Some(offset) {
                self.processor.set_timer_offset(offset)?;
                self.offset = Some(offset);
            }
            let exit = self.processor.run()?;
            match exit.reason {
                CANCELED => {}
                // The interrupt controller is the framework's, and has seen it.
                TIMER => self.processor.unmask_timer()?,
                EXCEPTION => {
                    if let Some(exit) = self.exception(&exit)? {
                        return Ok(exit);
                    }
                }
                reason => return Err(self.stuck(&format!("unexpected exit reason {reason}"))),
            }
        }
    }

    /// What an exception is for the machine, if anything.
    fn exception(&mut self, exit: &Exit) -> Result<Option<VmExit>, HvError> {
        let syndrome = exit.syndrome;
        match syndrome::class(syndrome) {
            syndrome::DATA_ABORT => return self.abort(syndrome, exit.physical_address),
            syndrome::HVC => return self.call(),
            syndrome::SMC => {
                // It was stopped before, not after.
                self.processor.step()?;
                return self.call();
            }
            syndrome::WAIT => {
                self.processor.step()?;
                if syndrome::waits_for_interrupt(syndrome) {
                    self.wait()?;
                }
            }
            syndrome::SYSTEM_REGISTER => match Trap::of(syndrome) {
                Trap::Undefined => self.undefined()?,
                Trap::Nothing => self.processor.step()?,
                Trap::Zero(register) => {
                    self.processor.set_x(register, 0)?;
                    self.processor.step()?;
                }
            },
            syndrome::INSTRUCTION_ABORT => {
                let at = exit.physical_address;
                return Err(self.stuck(&format!("there are no instructions at {at:#x}")));
            }
            _ => return Err(self.stuck(&format!("unexpected exception ({syndrome:#x})"))),
        }
        Ok(None)
    }

    /// An access to what is not mapped, or not for this.
    fn abort(&mut self, syndrome: u64, addr: u64) -> Result<Option<VmExit>, HvError> {
        if syndrome::is_permission(syndrome) && self.vm.slots().written(addr)? {
            return Ok(None);
        }
        match Abort::of(syndrome) {
            Abort::Access(access) if access.write => {
                let data = access.cut(self.processor.get_x(access.register)?);
                self.processor.step()?;
                Ok(Some(VmExit::MmioWrite { addr, size: access.size, data }))
            }
            Abort::Access(access) => {
                self.load = Some(access);
                Ok(Some(VmExit::MmioRead { addr, size: access.size }))
            }
            Abort::Maintenance => {
                self.processor.step()?;
                Ok(None)
            }
            Abort::Walk => Err(self.stuck(&format!("page tables lie in device memory, {addr:#x}"))),
            Abort::Undescribed => Err(self.stuck(&format!(
                "device memory ({addr:#x}) was accessed by an instruction that the processor does not describe"
            ))),
        }
    }

    /// A call of the power state interface; whatever else is called is not supported.
    fn call(&mut self) -> Result<Option<VmExit>, HvError> {
        let mut x = [0; 4];
        for (register, value) in (0..).zip(&mut x) {
            *value = self.processor.get(register)?;
        }
        let post = |target| psci::index(target).and_then(|index| self.vm.posts().get(index));
        let answer = match Call::of(x) {
            Call::PowerOff => return Ok(Some(VmExit::PowerOff)),
            Call::Reset => return Ok(Some(VmExit::Reset)),
            Call::Off => {
                self.post.set_power(Power::Off);
                return Ok(None);
            }
            Call::Suspend => {
                // A suspension may end at any time, as this one does.
                self.wait()?;
                psci::SUCCESS
            }
            Call::On { target, entry, context } => match post(target) {
                Some(post) => post.start(Start { entry, context }),
                None => psci::INVALID_PARAMETERS,
            },
            Call::AffinityInfo { target } => match post(target).map(|post| post.power()) {
                Some(Power::On) => 0,
                Some(Power::Off) => 1,
                Some(Power::Starting(_)) => 2,
                None => psci::INVALID_PARAMETERS,
            },
            Call::Version => psci::VERSION,
            Call::MigrateInfoType => psci::NOTHING_TO_MIGRATE,
            Call::Features(function) => match Call::of([function.into(), 0, 0, 0]) {
                Call::Unknown => psci::NOT_SUPPORTED,
                _ => psci::SUCCESS,
            },
            Call::Unknown => psci::NOT_SUPPORTED,
        };
        self.processor.set(0, answer as u64)?;
        Ok(None)
    }

    /// Waits for what may be an interrupt: the guest looks for itself.
    fn wait(&self) -> Result<(), HvError> {
        const ENABLE: u64 = 1;
        const MASKED: u64 = 2;
        let mut time = (self.vm.posts().len() > 1).then_some(LOOK);
        if self.processor.get_system(CNTV_CTL_EL0)? & (ENABLE | MASKED) == ENABLE {
            let counter = self.vm.now().wrapping_sub(self.vm.offset());
            let left = self.processor.get_system(CNTV_CVAL_EL0)?.saturating_sub(counter);
            let left = self.duration(left)?;
            time = Some(time.map_or(left, |time| time.min(left)));
        }
        self.post.wait(time);
        Ok(())
    }

    /// So many ticks of the counter.
    fn duration(&self, ticks: u64) -> Result<Duration, HvError> {
        let mut base = Timebase::default();
        // SAFETY: the structure is written.
        let code = unsafe { (self.vm.functions.mach_timebase_info)(&raw mut base) };
        check("mach_timebase_info", code)?;
        let nanoseconds =
            u128::from(ticks) * u128::from(base.numer) / u128::from(base.denom.max(1));
        Ok(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
    }

    /// Tells the guest that its processor has no such instruction (Arm DDI 0487 D1.3).
    fn undefined(&self) -> Result<(), HvError> {
        /// `ESR_EL1`: no class in particular, of an instruction of 32 bits.
        const UNKNOWN: u64 = 1 << 25;
        let pstate = self.processor.get(CPSR)?;
        let vectors = self.processor.get_system(VBAR_EL1)?;
        self.processor.set_system(ELR_EL1, self.processor.get(PC)?)?;
        self.processor.set_system(SPSR_EL1, pstate)?;
        self.processor.set_system(ESR_EL1, UNKNOWN)?;
        self.processor.set(CPSR, EL1H_MASKED)?;
        self.processor.set(PC, vectors.wrapping_add(trap::vector(pstate)))
    }

    /// The guest cannot go on; where it stands is the best hint there is.
    fn stuck(&self, what: &str) -> HvError {
        match self.processor.get(PC) {
            Ok(at) => HvError::Guest(format!("{what}, at PC {at:#x}")),
            Err(_) => HvError::Guest(what.to_owned()),
        }
    }
}

impl Vcpu<Arm64> for HvfVcpu {
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, HvError> {
        self.answer(entry)?;
        self.enter()
    }

    fn state(&mut self) -> Result<VcpuState, HvError> {
        // One that was started and has not begun is where it was started.
        if let Power::Starting(Start { entry, context }) = self.post.power() {
            self.set_boot_state(&BootState { pc: entry, x0: context })?;
            self.post.set_power(Power::On);
        }
        Ok(VcpuState {
            regs: state::regs(&self.processor)?,
            simd: state::simd(&self.processor)?,
            system: state::system(&self.processor)?,
            counter: self.counter()?,
            off: self.post.power() == Power::Off,
        })
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), HvError> {
        if !state::fits(&state.system) {
            return Err(HvError::Invalid("the saved state is of another processor".into()));
        }
        self.load = None;
        // The timer's deadline is one of the counter.
        self.vm.set_offset(self.vm.now().wrapping_sub(state.counter));
        state::set_regs(&self.processor, &state.regs)?;
        state::set_simd(&self.processor, &state.simd)?;
        state::set_system(&self.processor, &state.system)?;
        self.post.set_power(if state.off { Power::Off } else { Power::On });
        Ok(())
    }

    fn set_boot_state(&mut self, boot: &BootState) -> Result<(), HvError> {
        self.load = None;
        state::set_boot(&self.processor, boot)
    }

    fn exits(&self) -> Option<u64> {
        None
    }

    fn counter(&mut self) -> Result<u64, HvError> {
        Ok(self.vm.now().wrapping_sub(self.vm.offset()))
    }
}

impl Drop for HvfVcpu {
    fn drop(&mut self) {
        // Nobody stops another one that gets its number.
        self.post.bind(None);
    }
}

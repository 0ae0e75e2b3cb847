//! A hypervisor for tests: exits come from a script, and everything asked of it is recorded.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cabana_os::Event;

use crate::arm64::{Arm64, Gic};
use crate::x86::{CpuidLeaf, Msi, MsiRoute, X86};
use crate::{
    Arch, Arm64Vm, Doorbell, HvError, Hypervisor, MemorySlot, Probe, Vcpu, VcpuKicker, VcpuSeat,
    Verdict, Vm, VmEntry, VmExit, X86Vm,
};

/// What the fake was asked to do, and what its vCPUs will say.
#[derive(Debug, Default)]
pub struct Record<A: Arch = X86> {
    /// Exits that vCPU 0 will deliver; when they run out: [`VmExit::Shutdown`].
    pub script: VecDeque<VmExit>,
    /// Entries that vCPU 0 was given.
    pub entries: Vec<VmEntry>,
    /// What the vCPUs are.
    pub vcpus: Vec<A::Setup>,
    /// Messages sent.
    pub msis: Vec<Msi>,
    /// The route table set last.
    pub routes: Vec<MsiRoute>,
    /// Levels of interrupt lines, as they were set (arm64).
    pub lines: Vec<(u32, bool)>,
    /// Guest address and length of mapped slots.
    pub slots: Vec<(u64, usize)>,
    /// Doorbells registered.
    pub doorbells: Vec<Doorbell>,
    /// The state that vCPU 0 was given to boot with.
    pub boot: Option<A::BootState>,
    /// Each vCPU's whole state, as it was set last.
    pub states: BTreeMap<u32, A::State>,
    /// Guest addresses and lengths that were entered before they were touched.
    pub prefaults: Vec<(u64, u64)>,
    /// The paravirtual clock.
    pub clock: u64,
}

/// Shared between the test and everything that the fake makes.
#[derive(Clone, Debug, Default)]
pub struct FakeHypervisor<A: Arch = X86> {
    record: Arc<Mutex<Record<A>>>,
}

impl<A: Arch> FakeHypervisor<A> {
    /// A fake whose vCPU 0 delivers these exits.
    pub fn with_script(script: impl IntoIterator<Item = VmExit>) -> Self {
        let fake = Self::default();
        fake.record().script.extend(script);
        fake
    }

    /// What happened so far.
    pub fn record(&self) -> MutexGuard<'_, Record<A>> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A VM of this fake.
    pub fn vm(&self) -> FakeVm<A> {
        FakeVm { fake: self.clone() }
    }
}

impl Hypervisor for FakeHypervisor<X86> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self) -> Probe {
        it_works()
    }

    fn create_x86_vm(&self) -> Result<Box<dyn X86Vm>, HvError> {
        Ok(Box::new(self.vm()))
    }
}

impl Hypervisor for FakeHypervisor<Arm64> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self) -> Probe {
        it_works()
    }

    fn create_arm64_vm(&self, _gic: Gic) -> Result<Box<dyn Arm64Vm>, HvError> {
        Ok(Box::new(self.vm()))
    }
}

const NAME: &str = "fake";

fn it_works() -> Probe {
    Probe {
        hypervisor: NAME,
        verdict: Verdict::Works,
        instructions_per_second: None,
        max_vcpus: Some(4),
        quirks: Vec::new(),
    }
}

/// See [`FakeHypervisor`].
#[derive(Clone, Debug)]
pub struct FakeVm<A: Arch = X86> {
    fake: FakeHypervisor<A>,
}

impl<A: Arch> Vm<A> for FakeVm<A> {
    #[allow(unsafe_code, reason = "the contract asks for it; the memory is never touched")]
    unsafe fn map(&self, slot: &MemorySlot) -> Result<(), HvError> {
        self.fake.record().slots.push((slot.guest, slot.len));
        Ok(())
    }

    fn unmap(&self, guest: u64) -> Result<(), HvError> {
        let mut record = self.fake.record();
        let before = record.slots.len();
        record.slots.retain(|slot| slot.0 != guest);
        if record.slots.len() == before {
            return Err(HvError::Invalid(format!("nothing is mapped at {guest:#x}")));
        }
        Ok(())
    }

    fn dirty_pages(&self, _guest: u64) -> Result<Vec<u64>, HvError> {
        Err(HvError::Unsupported("dirty page tracking"))
    }

    fn doorbell(&self, doorbell: Doorbell, _event: &Event) -> Result<(), HvError> {
        self.fake.record().doorbells.push(doorbell);
        Ok(())
    }

    fn set_vcpus(&self, vcpus: Vec<A::Setup>) -> Result<(), HvError> {
        self.fake.record().vcpus = vcpus;
        Ok(())
    }

    fn vcpu_seat(&self, index: u32) -> Result<Box<dyn VcpuSeat<A>>, HvError> {
        if index as usize >= self.fake.record().vcpus.len() {
            return Err(HvError::Invalid(format!("there is no vCPU {index}")));
        }
        Ok(Box::new(FakeVcpu { fake: self.fake.clone(), index }))
    }

    fn max_vcpus(&self) -> u32 {
        4
    }
}

impl X86Vm for FakeVm<X86> {
    fn signal_msi(&self, msi: Msi) -> Result<(), HvError> {
        self.fake.record().msis.push(msi);
        Ok(())
    }

    fn set_msi_routes(&self, routes: &[MsiRoute]) -> Result<(), HvError> {
        self.fake.record().routes = routes.to_vec();
        Ok(())
    }

    fn irq_event(&self, _gsi: u32, _event: &Event) -> Result<(), HvError> {
        Err(HvError::Unsupported("interrupt events"))
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidLeaf>, HvError> {
        Ok(vec![CpuidLeaf { function: 0, eax: 1, ..CpuidLeaf::default() }])
    }

    fn tsc_khz(&self) -> Result<u32, HvError> {
        Ok(1_000_000)
    }

    fn apic_khz(&self) -> u32 {
        1_000_000
    }

    fn clock(&self) -> Result<u64, HvError> {
        Ok(self.fake.record().clock)
    }

    fn set_clock(&self, nanoseconds: u64) -> Result<(), HvError> {
        self.fake.record().clock = nanoseconds;
        Ok(())
    }
}

impl Arm64Vm for FakeVm<Arm64> {
    fn irq_line(&self, line: u32, level: bool) -> Result<(), HvError> {
        self.fake.record().lines.push((line, level));
        Ok(())
    }

    fn irq_event(&self, _line: u32, _event: &Event) -> Result<(), HvError> {
        Err(HvError::Unsupported("interrupt events"))
    }

    fn gic_state(&self) -> Result<Vec<u8>, HvError> {
        Ok(Vec::new())
    }

    fn set_gic_state(&self, _state: &[u8]) -> Result<(), HvError> {
        Ok(())
    }
}

/// See [`FakeHypervisor`]; it plays the seat, the kicker and the vCPU.
#[derive(Clone, Debug)]
struct FakeVcpu<A: Arch> {
    fake: FakeHypervisor<A>,
    index: u32,
}

impl<A: Arch> VcpuSeat<A> for FakeVcpu<A> {
    fn kicker(&self) -> Box<dyn VcpuKicker> {
        Box::new(self.clone())
    }

    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu<A>>, HvError> {
        Ok(self)
    }
}

impl<A: Arch> VcpuKicker for FakeVcpu<A> {
    fn kick(&self) {
        self.fake.record().script.push_front(VmExit::Kicked);
    }
}

impl<A: Arch> Vcpu<A> for FakeVcpu<A> {
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, HvError> {
        if self.index != 0 {
            return Ok(VmExit::Halt);
        }
        let mut record = self.fake.record();
        record.entries.push(entry);
        Ok(record.script.pop_front().unwrap_or(VmExit::Shutdown))
    }

    fn state(&mut self) -> Result<A::State, HvError> {
        Ok(self.fake.record().states.get(&self.index).cloned().unwrap_or_default())
    }

    fn set_state(&mut self, state: &A::State) -> Result<(), HvError> {
        self.fake.record().states.insert(self.index, state.clone());
        Ok(())
    }

    fn set_boot_state(&mut self, boot: &A::BootState) -> Result<(), HvError> {
        self.fake.record().boot = Some(boot.clone());
        Ok(())
    }

    fn prefault(&mut self, guest: u64, len: u64) -> Result<(), HvError> {
        self.fake.record().prefaults.push((guest, len));
        Ok(())
    }

    fn exits(&self) -> Option<u64> {
        None
    }

    fn counter(&mut self) -> Result<u64, HvError> {
        Ok(0)
    }
}

//! A hypervisor for tests: exits come from a script, and everything asked of it is recorded.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cabana_os::Event;

use crate::x86::{BootState, CpuidLeaf, Msi, MsiRoute, VcpuState};
use crate::{
    Doorbell, HvError, Hypervisor, MemorySlot, Probe, Vcpu, VcpuKicker, VcpuSeat, VcpuSetup,
    Verdict, Vm, VmEntry, VmExit, X86Vm,
};

/// What the fake was asked to do, and what its vCPUs will say.
#[derive(Debug, Default)]
pub struct Record {
    /// Exits that vCPU 0 will deliver; when they run out: [`VmExit::Shutdown`].
    pub script: VecDeque<VmExit>,
    /// Entries that vCPU 0 was given.
    pub entries: Vec<VmEntry>,
    /// What the vCPUs are.
    pub vcpus: Vec<VcpuSetup>,
    /// Messages sent.
    pub msis: Vec<Msi>,
    /// The route table set last.
    pub routes: Vec<MsiRoute>,
    /// Guest address and length of mapped slots.
    pub slots: Vec<(u64, usize)>,
    /// Doorbells registered.
    pub doorbells: Vec<Doorbell>,
    /// The state that vCPU 0 was given to boot with.
    pub boot: Option<BootState>,
    /// Each vCPU's whole state, as it was set last.
    pub states: BTreeMap<u32, VcpuState>,
    /// The paravirtual clock.
    pub clock: u64,
}

/// Shared between the test and everything that the fake makes.
#[derive(Clone, Debug, Default)]
pub struct FakeHypervisor {
    record: Arc<Mutex<Record>>,
}

impl FakeHypervisor {
    /// A fake whose vCPU 0 delivers these exits.
    pub fn with_script(script: impl IntoIterator<Item = VmExit>) -> Self {
        let fake = Self::default();
        fake.record().script.extend(script);
        fake
    }

    /// What happened so far.
    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A VM of this fake.
    pub fn vm(&self) -> FakeVm {
        FakeVm { fake: self.clone() }
    }
}

impl Hypervisor for FakeHypervisor {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn probe(&self) -> Probe {
        Probe {
            hypervisor: self.name(),
            verdict: Verdict::Works,
            instructions_per_second: None,
            max_vcpus: Some(4),
            quirks: Vec::new(),
        }
    }

    fn create_x86_vm(&self) -> Result<Box<dyn X86Vm>, HvError> {
        Ok(Box::new(self.vm()))
    }
}

/// See [`FakeHypervisor`].
#[derive(Clone, Debug)]
pub struct FakeVm {
    fake: FakeHypervisor,
}

impl Vm for FakeVm {
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

    fn set_vcpus(&self, vcpus: Vec<VcpuSetup>) -> Result<(), HvError> {
        self.fake.record().vcpus = vcpus;
        Ok(())
    }

    fn vcpu_seat(&self, index: u32) -> Result<Box<dyn VcpuSeat>, HvError> {
        if index as usize >= self.fake.record().vcpus.len() {
            return Err(HvError::Invalid(format!("there is no vCPU {index}")));
        }
        Ok(Box::new(FakeVcpu { fake: self.fake.clone(), index }))
    }

    fn max_vcpus(&self) -> u32 {
        4
    }
}

impl X86Vm for FakeVm {
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

/// See [`FakeHypervisor`]; it plays the seat, the kicker and the vCPU.
#[derive(Clone, Debug)]
struct FakeVcpu {
    fake: FakeHypervisor,
    index: u32,
}

impl VcpuSeat for FakeVcpu {
    fn kicker(&self) -> Box<dyn VcpuKicker> {
        Box::new(self.clone())
    }

    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, HvError> {
        Ok(self)
    }
}

impl VcpuKicker for FakeVcpu {
    fn kick(&self) {
        self.fake.record().script.push_front(VmExit::Kicked);
    }
}

impl Vcpu for FakeVcpu {
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, HvError> {
        if self.index != 0 {
            return Ok(VmExit::Halt);
        }
        let mut record = self.fake.record();
        record.entries.push(entry);
        Ok(record.script.pop_front().unwrap_or(VmExit::Shutdown))
    }

    fn state(&mut self) -> Result<VcpuState, HvError> {
        Ok(self.fake.record().states.get(&self.index).cloned().unwrap_or_default())
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), HvError> {
        self.fake.record().states.insert(self.index, state.clone());
        Ok(())
    }

    fn set_boot_state(&mut self, boot: &BootState) -> Result<(), HvError> {
        self.fake.record().boot = Some(*boot);
        Ok(())
    }

    fn exits(&self) -> Option<u64> {
        None
    }

    fn tsc(&mut self) -> Result<u64, HvError> {
        Ok(0)
    }
}

//! Partitions: properties, memory, interrupts, and the table of their handles.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X86_USER_SPACE_MSR, KVM_IRQ_ROUTING_MSI,
    KVM_MSR_EXIT_REASON_UNKNOWN, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry, kvm_msi,
};
use kvm_ioctls::{Kvm, VmFd};
use windows_sys::Win32::Foundation::{
    E_FAIL, E_INVALIDARG, E_OUTOFMEMORY, WHV_E_INVALID_PARTITION_CONFIG, WHV_E_UNKNOWN_CAPABILITY,
    WHV_E_UNKNOWN_PROPERTY,
};
use windows_sys::Win32::System::Hypervisor::*;

use crate::memory::Memory;
use crate::processor::Processor;
use crate::{Answer, cpuid};

/// Pins of an I/O APIC outside the kernel whose ends of interrupts KVM tells.
const PINS: u32 = 24;
/// KVM's bus clock: one tick a nanosecond.
const APIC_HERTZ: u64 = 1_000_000_000;
/// The most processors.
const MAX_PROCESSORS: u32 = 64;
/// `WHV_CAPABILITY_FEATURES`: local APIC, XSAVE, dirty pages.
const FEATURES: u64 = 1 << 1 | 1 << 2 | 1 << 3;
/// `WHV_EXTENDED_VM_EXITS.X64MsrExit`, the only one that is here.
const MSR_EXIT: u64 = 1 << 1;
/// `WHV_X64_MSR_EXIT_BITMAP.UnhandledMsrs`, the only one that is here.
const UNHANDLED_MSRS: u64 = 1;

static PARTITIONS: Mutex<BTreeMap<WHV_PARTITION_HANDLE, Arc<Partition>>> =
    Mutex::new(BTreeMap::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn capability(code: WHV_CAPABILITY_CODE) -> Answer<u64> {
    let Ok(kvm) = Kvm::new() else {
        return if code == WHvCapabilityCodeHypervisorPresent { Ok(0) } else { Err(E_FAIL) };
    };
    match code {
        WHvCapabilityCodeHypervisorPresent => Ok(1),
        WHvCapabilityCodeFeatures => Ok(FEATURES),
        WHvCapabilityCodeExtendedVmExits => Ok(MSR_EXIT),
        WHvCapabilityCodeX64MsrExitBitmap => Ok(UNHANDLED_MSRS),
        WHvCapabilityCodeInterruptClockFrequency => Ok(APIC_HERTZ),
        WHvCapabilityCodeProcessorClockFrequency => {
            let vm = kvm.create_vm().map_err(|_| E_FAIL)?;
            let vcpu = vm.create_vcpu(0).map_err(|_| E_FAIL)?;
            vcpu.get_tsc_khz().map(|khz| u64::from(khz) * 1000).map_err(|_| E_FAIL)
        }
        _ => Err(WHV_E_UNKNOWN_CAPABILITY),
    }
}

pub(crate) fn create() -> WHV_PARTITION_HANDLE {
    static NEXT: AtomicIsize = AtomicIsize::new(0x1000);
    let handle = NEXT.fetch_add(8, Ordering::Relaxed);
    lock(&PARTITIONS).insert(handle, Arc::default());
    handle
}

pub(crate) fn find(handle: WHV_PARTITION_HANDLE) -> Answer<Arc<Partition>> {
    lock(&PARTITIONS).get(&handle).cloned().ok_or(E_INVALIDARG)
}

pub(crate) fn delete(handle: WHV_PARTITION_HANDLE) -> Answer<()> {
    let partition = lock(&PARTITIONS).remove(&handle).ok_or(E_INVALIDARG)?;
    lock(&partition.processors).clear();
    Ok(())
}

#[derive(Default)]
pub(crate) struct Partition {
    properties: Mutex<Properties>,
    vm: std::sync::OnceLock<Arc<Machine>>,
    processors: Mutex<BTreeMap<u32, Arc<Processor>>>,
}

/// What is set before the partition is set up, and holds from then on.
#[derive(Default)]
struct Properties {
    count: Option<u32>,
    apic: WHV_X64_LOCAL_APIC_EMULATION_MODE,
    exits: u64,
    msr_exits: u64,
    cpuid: Vec<WHV_X64_CPUID_RESULT2>,
}

/// A partition that is set up.
pub(crate) struct Machine {
    kvm: Kvm,
    pub(crate) fd: VmFd,
    pub(crate) memory: Mutex<Memory>,
    doorbells: Mutex<Vec<(WHV_DOORBELL_MATCH_DATA, i32)>>,
    /// Level-triggered vectors, by whose routes KVM tells their ends.
    levels: Mutex<Vec<kvm_msi>>,
    gate: Mutex<Gate>,
    opened: Condvar,
}

/// Processors run, or memory changes.
#[derive(Default)]
struct Gate {
    running: u32,
    closed: bool,
}

impl Machine {
    fn new(properties: &Properties) -> Answer<Self> {
        let kvm = Kvm::new().map_err(|_| E_FAIL)?;
        let fd = kvm.create_vm().map_err(|_| E_FAIL)?;
        let enable = |cap, argument| {
            let mut request = kvm_enable_cap { cap, ..kvm_enable_cap::default() };
            request.args[0] = argument;
            fd.enable_cap(&request).map_err(|_| E_FAIL)
        };
        enable(KVM_CAP_SPLIT_IRQCHIP, PINS.into())?;
        if properties.exits & MSR_EXIT != 0 && properties.msr_exits & UNHANDLED_MSRS != 0 {
            enable(KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN.into())?;
        }
        let memory = Mutex::new(Memory::new(&fd)?);
        Ok(Self {
            kvm,
            fd,
            memory,
            doorbells: Mutex::default(),
            levels: Mutex::default(),
            gate: Mutex::default(),
            opened: Condvar::new(),
        })
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    /// Waits while memory changes; then a processor may run until [`Machine::leave`].
    pub(crate) fn enter(&self) {
        let mut gate = lock(&self.gate);
        while gate.closed {
            gate = self.opened.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        gate.running += 1;
    }

    pub(crate) fn leave(&self) {
        lock(&self.gate).running -= 1;
        self.opened.notify_all();
    }

    /// Rings, if this write is one of the doorbells'.
    pub(crate) fn rings(&self, guest: u64, len: u32, value: u64) -> bool {
        // MatchOnValue, MatchOnLength.
        let matches = |data: &WHV_DOORBELL_MATCH_DATA| {
            data.GuestAddress == guest
                && (data._bitfield & 1 == 0 || data.Value == value)
                && (data._bitfield & 2 == 0 || data.Length == len)
        };
        let doorbells = lock(&self.doorbells);
        let Some((_, event)) = doorbells.iter().find(|(data, _)| matches(data)) else {
            return false;
        };
        let one = 1u64.to_ne_bytes();
        // SAFETY: the descriptor is our own, and eight bytes are written.
        unsafe { libc::write(*event, one.as_ptr().cast(), one.len()) };
        true
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for (_, event) in lock(&self.doorbells).drain(..) {
            // SAFETY: our own descriptor.
            unsafe { libc::close(event) };
        }
    }
}

impl Partition {
    pub(crate) fn set_property(
        &self,
        code: WHV_PARTITION_PROPERTY_CODE,
        bytes: &[u8],
    ) -> Answer<()> {
        if self.vm.get().is_some() {
            return Err(WHV_E_INVALID_PARTITION_CONFIG);
        }
        let mut properties = lock(&self.properties);
        match code {
            WHvPartitionPropertyCodeProcessorCount => {
                let count = u32::from_ne_bytes(exactly(bytes)?);
                if count == 0 || count > MAX_PROCESSORS {
                    return Err(E_INVALIDARG);
                }
                properties.count = Some(count);
            }
            WHvPartitionPropertyCodeLocalApicEmulationMode => {
                properties.apic = i32::from_ne_bytes(exactly(bytes)?);
            }
            WHvPartitionPropertyCodeExtendedVmExits => {
                properties.exits = known(u64::from_ne_bytes(exactly(bytes)?), MSR_EXIT)?;
            }
            WHvPartitionPropertyCodeX64MsrExitBitmap => {
                properties.msr_exits = known(u64::from_ne_bytes(exactly(bytes)?), UNHANDLED_MSRS)?;
            }
            WHvPartitionPropertyCodeCpuidResultList2 => {
                let size = size_of::<WHV_X64_CPUID_RESULT2>();
                if bytes.is_empty() || !bytes.len().is_multiple_of(size) {
                    return Err(E_INVALIDARG);
                }
                let results = bytes.chunks_exact(size).map(|bytes| {
                    // SAFETY: as many bytes as the structure has, all of them plain numbers.
                    unsafe { bytes.as_ptr().cast::<WHV_X64_CPUID_RESULT2>().read_unaligned() }
                });
                properties.cpuid = results.collect();
            }
            _ => return Err(WHV_E_UNKNOWN_PROPERTY),
        }
        Ok(())
    }

    pub(crate) fn set_up(&self) -> Answer<()> {
        let properties = lock(&self.properties);
        if properties.count.is_none()
            || properties.apic == WHvX64LocalApicEmulationModeNone
            || self.vm.get().is_some()
        {
            return Err(WHV_E_INVALID_PARTITION_CONFIG);
        }
        let _ = self.vm.set(Arc::new(Machine::new(&properties)?));
        Ok(())
    }

    fn machine(&self) -> Answer<&Arc<Machine>> {
        self.vm.get().ok_or(WHV_E_INVALID_PARTITION_CONFIG)
    }

    pub(crate) fn map(
        &self,
        host: usize,
        guest: u64,
        len: u64,
        flags: WHV_MAP_GPA_RANGE_FLAGS,
    ) -> Answer<()> {
        let machine = self.machine()?;
        self.held(machine, || machine.memory().map(&machine.fd, host, guest, len, flags))
    }

    pub(crate) fn unmap(&self, guest: u64, len: u64) -> Answer<()> {
        let machine = self.machine()?;
        self.held(machine, || machine.memory().unmap(&machine.fd, guest, len))
    }

    pub(crate) fn dirty(&self, guest: u64, len: u64) -> Answer<Vec<u64>> {
        let machine = self.machine()?;
        machine.memory().dirty(&machine.fd, guest, len)
    }

    /// Does something while no processor runs: in between, memory has no slots.
    fn held(&self, machine: &Machine, change: impl FnOnce() -> Answer<()>) -> Answer<()> {
        let mut gate = lock(&machine.gate);
        while gate.closed {
            gate = machine.opened.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        gate.closed = true;
        drop(gate);
        for processor in lock(&self.processors).values() {
            processor.interrupt();
        }
        let mut gate = lock(&machine.gate);
        while gate.running > 0 {
            gate = machine.opened.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        drop(gate);
        let answer = change();
        lock(&machine.gate).closed = false;
        machine.opened.notify_all();
        answer
    }

    pub(crate) fn doorbell(&self, data: &WHV_DOORBELL_MATCH_DATA, event: i32) -> Answer<()> {
        let machine = self.machine()?;
        if data._bitfield & !0b11 != 0 || !matches!(data.Length, 1 | 2 | 4 | 8) {
            return Err(E_INVALIDARG);
        }
        // SAFETY: duplicates a descriptor, or fails.
        let event = unsafe { libc::fcntl(event, libc::F_DUPFD_CLOEXEC, 3) };
        if event < 0 {
            return Err(E_INVALIDARG);
        }
        lock(&machine.doorbells).push((*data, event));
        Ok(())
    }

    pub(crate) fn interrupt(&self, interrupt: &WHV_INTERRUPT_CONTROL) -> Answer<()> {
        let machine = self.machine()?;
        let bits = interrupt._bitfield;
        let (kind, logical, level) = ((bits & 0xff) as i32, bits >> 8 & 0xf, bits >> 12 & 0xf);
        let fixed = matches!(kind, WHvX64InterruptTypeFixed | WHvX64InterruptTypeLowestPriority);
        let known = fixed || matches!(kind, WHvX64InterruptTypeNmi | WHvX64InterruptTypeInit);
        let vectored = !fixed || (16..=255).contains(&interrupt.Vector);
        if !known
            || !vectored
            || logical > 1
            || level > 1
            || bits >> 16 != 0
            || interrupt.Destination > 255
        {
            return Err(E_INVALIDARG);
        }
        let message = kvm_msi {
            address_lo: 0xfee0_0000 | interrupt.Destination << 12 | (logical as u32) << 2,
            data: interrupt.Vector | (kind as u32) << 8 | (level as u32 * 3) << 14,
            ..kvm_msi::default()
        };
        if level == 1 {
            machine.tell_end_of(message)?;
        }
        match machine.fd.signal_msi(message) {
            Ok(_) => Ok(()),
            // To nobody.
            Err(error) if error.errno() == libc::EPERM => Ok(()),
            Err(_) => Err(E_FAIL),
        }
    }

    pub(crate) fn create_processor(self: &Arc<Self>, index: u32) -> Answer<()> {
        let machine = self.machine()?;
        let properties = lock(&self.properties);
        let mut processors = lock(&self.processors);
        if properties.count.is_none_or(|count| index >= count) || processors.contains_key(&index) {
            return Err(E_INVALIDARG);
        }
        let mut leaves = cpuid::supported(&machine.kvm)?;
        cpuid::apply(&mut leaves, &properties.cpuid, index);
        processors.insert(index, Arc::new(Processor::new(Arc::clone(machine), index, leaves)?));
        Ok(())
    }

    pub(crate) fn delete_processor(&self, index: u32) -> Answer<()> {
        lock(&self.processors).remove(&index).map(drop).ok_or(E_INVALIDARG)
    }

    pub(crate) fn processor(&self, index: u32) -> Answer<Arc<Processor>> {
        lock(&self.processors).get(&index).cloned().ok_or(E_INVALIDARG)
    }
}

impl Machine {
    /// KVM tells the end of a level-triggered interrupt whose message a pin of the I/O APIC has.
    fn tell_end_of(&self, message: kvm_msi) -> Answer<()> {
        let mut levels = lock(&self.levels);
        if levels
            .iter()
            .any(|known| (known.address_lo, known.data) == (message.address_lo, message.data))
        {
            return Ok(());
        }
        if levels.len() as u32 == PINS {
            return Err(E_OUTOFMEMORY);
        }
        levels.push(message);
        let entries: Vec<_> =
            (0..).zip(levels.iter()).map(|(gsi, message)| route(gsi, message)).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| E_FAIL)?;
        self.fd.set_gsi_routing(&table).map_err(|_| E_FAIL)
    }
}

fn route(gsi: u32, message: &kvm_msi) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..kvm_irq_routing_entry::default()
    };
    entry.u.msi.address_lo = message.address_lo;
    entry.u.msi.data = message.data;
    entry
}

fn exactly<const N: usize>(bytes: &[u8]) -> Answer<[u8; N]> {
    bytes.try_into().map_err(|_| E_INVALIDARG)
}

/// Refuses bits that are not here.
fn known(bits: u64, all: u64) -> Answer<u64> {
    if bits & !all == 0 { Ok(bits) } else { Err(E_INVALIDARG) }
}

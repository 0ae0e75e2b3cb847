//! A machine from its parts to its end.

use std::any::Any;
use std::io::{self, Write};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cabana_boot::x86_64::{self, Boot};
use cabana_boot::{BootError, Initrd, Kernel};
use cabana_bus::{RangeTaken, SavedState};
use cabana_hv::x86::{CpuidLeaf, VcpuSetup, X86, cpuid};
use cabana_hv::{HvError, MemorySlot, X86Vm, x86};
use cabana_memory::{GuestRam, MemoryError, RamSlot};
use cabana_platform::{IoApic, SerialInput};
use cabana_virtio::{MmioTransport, VirtioDevice};

use crate::board::{self, Board};
use crate::control::{Control, Outcome};
use crate::entry::boot_state;
use crate::exits::{Counters, ExitCounts};
use crate::layout::{self, Pins};
use crate::timeline::Timeline;
use crate::vcpu::{self, Begin, Running, Shared};
use crate::{MachineState, SavedVcpu};

const PAGE: u64 = 4096;

/// What a machine is made of.
pub struct Setup {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Bytes of RAM, whole pages.
    pub memory: u64,
    /// The kernel.
    pub kernel: Kernel,
    /// Its initramfs.
    pub initrd: Option<Initrd>,
    /// Its command line; the virtio devices are added behind.
    pub command_line: String,
    /// Virtio devices, in the order in which the guest finds them.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// Memory that devices bring along.
    pub device_memory: Vec<DeviceMemory>,
    /// Where COM1's output goes; without it there is neither COM1 nor ACPI.
    pub serial: Option<Box<dyn Write + Send>>,
    /// Where moments of the start are noted.
    pub timeline: Arc<Timeline>,
}

/// Host memory that appears in the guest beside RAM.
pub struct DeviceMemory {
    /// Guest-physical address, from [`layout::device_memory`] on.
    pub guest: u64,
    /// Its address in this process.
    pub host: *mut u8,
    /// Length in bytes, whole pages.
    pub len: usize,
    /// The guest may only read.
    pub read_only: bool,
    /// Keeps the memory until the machine is gone.
    pub owner: Arc<dyn Any + Send + Sync>,
}

/// Why a machine does not start.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The kernel or what belongs to it.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] HvError),
    /// Two devices at one address.
    #[error(transparent)]
    Bus(#[from] RangeTaken),
    /// More vCPUs than the host gives, or none.
    #[error("{0} vCPUs are not possible; this host gives a machine 1 to {1}")]
    Cpus(u32, u32),
    /// RAM that is not whole pages, or none.
    #[error("{0} bytes of memory are not possible; give whole pages of 4 KiB")]
    MemorySize(u64),
    /// More virtio devices than interrupt pins.
    #[error("{0} devices are more than a machine has interrupt lines ({1})")]
    TooManyDevices(usize, usize),
    /// A snapshot's machine that this host or this program cannot go on with.
    #[error("the machine in it cannot go on here: {0}")]
    Restore(String),
    /// The host refused a thread or memory.
    #[error("the host refused what a machine needs: {0}")]
    Host(#[source] io::Error),
}

/// What [`Machine::observe`] saw.
#[derive(Clone, Copy, Debug)]
pub struct Observation {
    /// Exits so far.
    pub exits: ExitCounts,
    /// How the guest's time-stamp counter lies on the host's clock.
    pub clock: Option<GuestClock>,
}

/// A moment on the guest's and on the host's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestClock {
    /// The first vCPU's time-stamp counter.
    pub tsc: u64,
    /// The same moment on the host's monotonic clock.
    pub at: Duration,
    /// Ticks per millisecond.
    pub khz: u32,
}

impl GuestClock {
    /// When the counter stood at an earlier `tsc`, on the host's monotonic clock.
    pub fn host_time(&self, tsc: u64) -> Duration {
        let ticks = u128::from(self.tsc.saturating_sub(tsc));
        let nanoseconds = ticks * 1_000_000 / u128::from(self.khz.max(1));
        self.at.saturating_sub(Duration::from_nanos(nanoseconds as u64))
    }
}

/// A running machine. Dropping it stops it.
pub struct Machine {
    vcpus: Vec<Running>,
    wiring: Option<JoinHandle<()>>,
    shared: Arc<Shared<X86>>,
    transports: Vec<Arc<MmioTransport>>,
    ioapic: Arc<IoApic>,
    serial: Option<SerialInput>,
    ram: GuestRam,
    tsc_khz: u32,
    /// The processors that the guest sees.
    cpuids: Vec<Vec<CpuidLeaf>>,
    // In this order: the VM is gone before the memory that it sees.
    vm: Arc<dyn X86Vm>,
    _device_memory: Vec<Arc<dyn Any + Send + Sync>>,
}

impl Machine {
    /// Builds the machine and starts its vCPUs.
    pub fn start(vm: Box<dyn X86Vm>, setup: Setup) -> Result<Self, MachineError> {
        let vm: Arc<dyn X86Vm> = Arc::from(vm);
        let Setup { cpus, memory, timeline, .. } = setup;
        let most = vm.max_vcpus().min(x86_64::MAX_CPUS);
        if cpus == 0 || cpus > most {
            return Err(MachineError::Cpus(cpus, most));
        }
        if memory == 0 || memory % PAGE != 0 {
            return Err(MachineError::MemorySize(memory));
        }
        let ram = GuestRam::new(&layout::ram_pieces(memory))?;
        ram.advise_huge();
        let control = Arc::new(Control::default());
        let pins = Pins::new(setup.serial.is_some(), setup.devices.len());
        let mut board = Board::new(&vm, &control, pins)?;
        let serial = setup.serial.map(|output| board.add_serial(output)).transpose()?;
        board.add_virtio(&ram, setup.devices)?;
        // Kernels of others expect ACPI; to ours, parsing it would cost start-up time.
        let acpi = if serial.is_some() {
            board.add_sleep(&control)?;
            Some(board.acpi_devices())
        } else {
            None
        };
        timeline.mark("devices made");

        let supported = vm.supported_cpuid()?;
        let (tsc_khz, apic_khz) = (vm.tsc_khz()?, vm.apic_khz());
        let mut command_line = setup.command_line + &board.command_line();
        if !cpuid::tells_tsc(&supported) {
            command_line += &format!(" tsc_early_khz={tsc_khz}");
        }
        if !cpuid::is_kvm(&supported) {
            board.add_clocks()?;
        }
        let boot = Boot {
            kernel: &setup.kernel,
            initrd: setup.initrd.as_ref(),
            command_line: command_line.trim_start(),
            cpus,
            pins: pins.count,
            acpi: acpi.as_ref(),
        };
        let start = x86_64::load(&boot, &ram)?;
        timeline.mark("kernel loaded");
        let processors = (0..cpus).map(|index| {
            let options = cpuid::Options { index, count: cpus, tsc_khz, apic_khz };
            let cpuid = cpuid::for_guest(&supported, options);
            let msrs = x86::firmware_msrs(&cpuid);
            VcpuSetup { cpuid, msrs }
        });
        let processors: Vec<_> = processors.collect();
        let cpuids = processors.iter().map(|processor| processor.cpuid.clone()).collect();
        vm.set_vcpus(processors)?;
        map_ram(vm.as_ref(), &ram)?;
        timeline.mark("memory mapped");

        let slots = Slots::of(&setup.device_memory);
        let wired = Arc::clone(&board.wired);
        let parts = Parts { vm, control, timeline, ram, tsc_khz, cpuids };
        let mut machine = Self::assemble(parts, board, serial, &setup.device_memory);
        for index in 0..cpus {
            machine.add_vcpu(if index == 0 {
                Begin::Boot(boot_state(start))
            } else {
                Begin::Sleep
            })?;
        }
        machine.start_wiring(Some(slots), wired)?;
        Ok(machine)
    }

    /// The machine without its vCPUs.
    pub(crate) fn assemble(
        parts: Parts,
        board: Board,
        serial: Option<SerialInput>,
        device_memory: &[DeviceMemory],
    ) -> Self {
        let Parts { vm, control, timeline, ram, tsc_khz, cpuids } = parts;
        let Board { mmio, pio, transports, ioapic, .. } = board;
        let counters = Counters::default();
        Self {
            vcpus: Vec::new(),
            wiring: None,
            shared: Arc::new(Shared { mmio, pio, control, counters, timeline }),
            transports,
            ioapic,
            serial,
            ram,
            tsc_khz,
            cpuids,
            vm,
            _device_memory: device_memory.iter().map(|memory| Arc::clone(&memory.owner)).collect(),
        }
    }

    /// Makes the next vCPU and starts its thread.
    pub(crate) fn add_vcpu(&mut self, begin: Begin<X86>) -> Result<(), MachineError> {
        let index = self.vcpus.len() as u32;
        let seat = self.vm.vcpu_seat(index)?;
        let running = vcpu::spawn(index, seat, begin, Arc::clone(&self.shared))
            .map_err(MachineError::Host)?;
        self.vcpus.push(running);
        Ok(())
    }

    /// Waits until the machine ends by itself or is stopped.
    pub fn wait(&self) -> Outcome {
        self.shared.control.outcome()
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Outcome> {
        self.shared.control.ended()
    }

    /// Ends the machine now, whatever the guest does; whoever waits learns of it.
    pub fn stop(&self) {
        self.shared.control.end(Outcome::Stopped);
        self.kick_all();
    }

    /// Holds all vCPUs; returns when none runs.
    pub fn pause(&self) {
        self.shared.control.request_pause();
        self.kick_all();
        self.shared.control.wait_parked(self.vcpus.len() as u32);
    }

    /// Lets the vCPUs go on.
    pub fn resume(&self) {
        self.shared.control.resume();
    }

    /// Holds vCPUs and devices, until the answer is dropped: nothing changes RAM or a disk, or is on its
    /// way between them.
    pub fn freeze(&self) -> Frozen<'_> {
        self.pause();
        for transport in &self.transports {
            transport.pause();
        }
        Frozen { machine: self }
    }

    /// Looks at the machine from outside. Holds it for a moment, since a vCPU's counters belong to
    /// its thread.
    pub fn observe(&self) -> Observation {
        let user = self.shared.counters.read(None);
        self.pause();
        let reports = self.shared.control.reports();
        self.resume();
        let total = reports.iter().map(|report| report.and_then(|report| report.exits)).sum();
        let first = reports.first().copied().flatten();
        let clock = first.and_then(|first| {
            Some(GuestClock { tsc: first.counter?, at: first.at, khz: self.tsc_khz })
        });
        Observation { exits: ExitCounts { total, ..user }, clock }
    }

    /// COM1's other end, if there is a COM1.
    pub fn serial(&self) -> Option<&SerialInput> {
        self.serial.as_ref()
    }

    /// Guest RAM.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Does on a thread of its own what the guest needs only later: doorbells, and the memory of
    /// devices if that is not there yet.
    pub(crate) fn start_wiring(
        &mut self,
        memory: Option<Slots>,
        wired: Arc<OnceLock<()>>,
    ) -> Result<(), MachineError> {
        let (vm, transports) = (Arc::clone(&self.vm), self.transports.clone());
        let control = Arc::clone(&self.shared.control);
        let wire = move || {
            let mapped = match memory {
                Some(slots) => board::map_devices(vm.as_ref(), &transports, &{ slots }.0),
                None => Ok(()),
            };
            let hung = mapped.and_then(|()| board::hang_doorbells(vm.as_ref(), &transports));
            if let Err(error) = hung {
                control.end(Outcome::Failed(error.to_string()));
            }
            let _ = wired.set(());
        };
        let builder = thread::Builder::new().name("wiring".to_owned()).stack_size(64 << 10);
        self.wiring = Some(builder.spawn(wire).map_err(MachineError::Host)?);
        Ok(())
    }

    /// Maps the memory of devices and their registers.
    pub(crate) fn map_devices(&self, slots: &Slots) -> Result<(), HvError> {
        board::map_devices(self.vm.as_ref(), &self.transports, &slots.0)
    }

    pub(crate) fn vm(&self) -> &dyn X86Vm {
        self.vm.as_ref()
    }

    pub(crate) fn transports(&self) -> &[Arc<MmioTransport>] {
        &self.transports
    }

    /// Waits until all vCPUs are parked, or the machine has ended.
    pub(crate) fn wait_parked(&self) {
        self.shared.control.wait_parked(self.vcpus.len() as u32);
    }

    fn kick_all(&self) {
        for vcpu in &self.vcpus {
            vcpu.kicker.kick();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
        if let Some(wiring) = self.wiring.take() {
            let _ = wiring.join();
        }
        for vcpu in self.vcpus.drain(..) {
            let _ = vcpu.thread.join();
        }
        for transport in &self.transports {
            transport.stop();
        }
    }
}

/// A machine that is held for a snapshot. It goes on when this is dropped.
#[derive(Debug)]
pub struct Frozen<'a> {
    machine: &'a Machine,
}

impl Frozen<'_> {
    /// All of the machine but RAM and disks.
    pub fn state(&self) -> Result<MachineState, MachineError> {
        let machine = self.machine;
        let states = machine.shared.control.vcpu_states(machine.vcpus.len() as u32)?;
        if machine.ended().is_some() {
            return Err(MachineError::Restore("it has ended".to_owned()));
        }
        let cpuids = machine.cpuids.iter().cloned();
        let vcpus = cpuids.zip(states).map(|(cpuid, state)| SavedVcpu { cpuid, state });
        Ok(MachineState {
            memory: machine.ram.size(),
            tsc_khz: machine.tsc_khz,
            clock: machine.vm.clock()?,
            vcpus: vcpus.collect(),
            ioapic: SavedState::of(&*machine.ioapic),
            devices: machine.transports.iter().map(|transport| transport.save()).collect(),
        })
    }

    /// Guest RAM.
    pub fn ram(&self) -> &GuestRam {
        &self.machine.ram
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        for transport in &self.machine.transports {
            transport.resume();
        }
        self.machine.resume();
    }
}

/// What a machine is assembled from, beside its board.
pub(crate) struct Parts {
    pub(crate) vm: Arc<dyn X86Vm>,
    pub(crate) control: Arc<Control<X86>>,
    pub(crate) timeline: Arc<Timeline>,
    pub(crate) ram: GuestRam,
    pub(crate) tsc_khz: u32,
    /// The processors that the guest sees.
    pub(crate) cpuids: Vec<Vec<CpuidLeaf>>,
}

impl DeviceMemory {
    fn slot(&self) -> MemorySlot {
        let Self { guest, host, len, read_only, .. } = *self;
        MemorySlot { guest, host, len, read_only, track_dirty: false }
    }
}

/// Slots on their way to another thread.
pub(crate) struct Slots(Vec<MemorySlot>);

impl Slots {
    pub(crate) fn of(memory: &[DeviceMemory]) -> Self {
        Self(memory.iter().map(DeviceMemory::slot).collect())
    }
}

// SAFETY: a slot names memory by its address; nothing is accessed through it but by the hypervisor.
unsafe impl Send for Slots {}

pub(crate) fn map_ram(vm: &dyn X86Vm, ram: &GuestRam) -> Result<(), HvError> {
    for RamSlot { guest, host, len } in ram.slots() {
        let slot = MemorySlot { guest: guest.0, host, len, read_only: false, track_dirty: false };
        // SAFETY: the machine keeps RAM until the VM and its vCPUs are gone, and `GuestRam` hands
        // out no references.
        unsafe { vm.map(&slot)? };
    }
    Ok(())
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("vcpus", &self.vcpus.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

//! A machine from its parts to its end.

use std::any::Any;
use std::io::{self, Write};
use std::mem;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cabana_boot::x86_64::{self, Boot};
use cabana_boot::{BootError, Initrd, Kernel};
use cabana_bus::{Bus, RangeTaken, SavedState};
use cabana_hv::x86::{CpuidLeaf, VcpuSetup, X86, cpuid};
use cabana_hv::{Arch, HvError, Hypervisor, MemorySlot, Vm, X86Vm, x86};
use cabana_memory::{GuestAddress, GuestRam, MemoryError, RamSlot};
use cabana_platform::{IoApic, SerialInput};
use cabana_virtio::{MmioTransport, TransportState, VirtioDevice};

use crate::board::Board;
use crate::control::{Control, Outcome};
use crate::entry::boot_state;
use crate::exits::{Counters, ExitCounts};
use crate::layout::{self, Pins};
use crate::timeline::Timeline;
use crate::vcpu::{self, Begin, Running, Shared};
use crate::{AtRest, MachineState, Restore, SavedVcpu, wiring};

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
    /// Where the serial port's output goes; without it there is none, and on x86-64 no ACPI either.
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

impl Setup {
    /// Is it a size that a machine can have, where it may have at most so many vCPUs?
    pub(crate) fn check_size(&self, most: u32) -> Result<(), MachineError> {
        if self.cpus == 0 || self.cpus > most {
            return Err(MachineError::Cpus(self.cpus, most));
        }
        if self.memory == 0 || !self.memory.is_multiple_of(PAGE) {
            return Err(MachineError::MemorySize(self.memory));
        }
        Ok(())
    }
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

/// What differs between the boards of processors.
pub trait Platform: Arch {
    /// The hypervisor's VM.
    type Vm: Vm<Self> + ?Sized + 'static;
    /// What a machine keeps beside buses and virtio devices.
    type Kept: Send + Sync;
    /// What a snapshot keeps.
    type AtRest: AtRest;
    /// The register blocks of virtio devices, one behind the other.
    const VIRTIO_REGISTERS: u64;

    /// An empty VM of a hypervisor, with what the board needs in it.
    fn create_vm(hypervisor: &dyn Hypervisor) -> Result<Box<Self::Vm>, HvError>;

    /// Where so much RAM is in the guest, and how long each piece is.
    fn ram_pieces(memory: u64) -> Vec<(GuestAddress, usize)>;

    /// Asks the host for large pages under RAM, but where a start touches little of it. `initrd` is the length of what
    /// lies at the end of RAM.
    fn advise_pages(ram: &GuestRam, _initrd: u64) {
        ram.advise_huge();
    }

    /// The first guest-physical address for memory that devices bring along, such as an image.
    fn device_memory(memory: u64) -> u64;

    /// Builds a machine and starts its vCPUs. `vm` comes from [`Platform::create_vm`].
    fn start(vm: Box<Self::Vm>, setup: Setup) -> Result<Machine<Self>, MachineError>;

    /// All of a frozen machine but RAM and disks.
    fn state(frozen: &Frozen<'_, Self>) -> Result<Self::AtRest, MachineError>;

    /// Lets a frozen machine go on.
    fn restore(vm: Box<Self::Vm>, restore: Restore<Self>) -> Result<Machine<Self>, MachineError>;

    /// Ticks per millisecond of the guest's counter, if that is known.
    fn counter_khz(kept: &Self::Kept) -> Option<u32>;
}

/// A running machine. Dropping it stops it.
pub struct Machine<P: Platform = X86> {
    vcpus: Vec<Running>,
    wiring: Option<JoinHandle<()>>,
    shared: Arc<Shared<P>>,
    transports: Vec<Arc<MmioTransport>>,
    serial: Option<SerialInput>,
    ram: GuestRam,
    /// Where large pages of RAM are the kernel's file.
    kernel: Vec<GuestAddress>,
    kept: P::Kept,
    // In this order: the VM is gone before the memory that it sees.
    vm: Arc<P::Vm>,
    device_memory: Vec<Arc<dyn Any + Send + Sync>>,
}

impl Machine<X86> {
    /// Builds the machine and starts its vCPUs.
    pub fn start(vm: Box<dyn X86Vm>, setup: Setup) -> Result<Self, MachineError> {
        let vm: Arc<dyn X86Vm> = Arc::from(vm);
        setup.check_size(vm.max_vcpus().min(x86_64::MAX_CPUS))?;
        let Setup { cpus, memory, timeline, .. } = setup;
        let ram = GuestRam::new(&layout::ram_pieces(memory))?;
        X86::advise_pages(&ram, setup.initrd.as_ref().map_or(0, Initrd::size));
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
        let Board { mmio, pio, transports, ioapic, .. } = board;
        let kept = X86Parts { ioapic, tsc_khz, cpuids };
        let parts = Parts { vm, control, timeline, ram, mmio, pio, transports, serial, kept };
        let mut machine = Self::assemble(parts, &setup.device_memory);
        machine.kernel = setup.kernel.large_pages();
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
}

impl<P: Platform> Machine<P> {
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
            let khz = P::counter_khz(&self.kept)?;
            Some(GuestClock { tsc: first.counter?, at: first.at, khz })
        });
        Observation { exits: ExitCounts { total, ..user }, clock }
    }

    /// Holds vCPUs and devices, until the answer is dropped: nothing changes RAM or a disk, or is on its
    /// way between them.
    pub fn freeze(&self) -> Frozen<'_, P> {
        self.pause();
        for transport in &self.transports {
            transport.pause();
        }
        Frozen { machine: self }
    }

    /// The machine without its vCPUs.
    pub(crate) fn assemble(parts: Parts<P>, device_memory: &[DeviceMemory]) -> Self {
        let Parts { vm, control, timeline, ram, mmio, pio, transports, serial, kept } = parts;
        let counters = Counters::default();
        Self {
            vcpus: Vec::new(),
            wiring: None,
            shared: Arc::new(Shared { mmio, pio, control, counters, timeline }),
            transports,
            serial,
            ram,
            kernel: Vec::new(),
            kept,
            vm,
            device_memory: device_memory.iter().map(|memory| Arc::clone(&memory.owner)).collect(),
        }
    }

    /// Makes the next vCPU and starts its thread.
    pub(crate) fn add_vcpu(&mut self, begin: Begin<P>) -> Result<(), MachineError> {
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

    /// Waits until the machine ends, but no longer than so.
    pub fn wait_within(&self, limit: Duration) -> Option<Outcome> {
        self.shared.control.outcome_within(limit)
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Outcome> {
        self.shared.control.ended()
    }

    /// Says that the process ends with the machine ([`Vm::end_with_process`]). Memory is not unmapped any more: it goes with
    /// the process.
    pub fn end_with_process(&self) {
        self.vm.end_with_process();
        mem::forget(self.ram.clone());
        mem::forget(self.device_memory.clone());
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

    /// The serial port's other end, if there is one.
    pub fn serial(&self) -> Option<&SerialInput> {
        self.serial.as_ref()
    }

    /// Guest RAM.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Has the host keep the kernel's file in large pages, as far as they are mapped whole, for the machines that start after
    /// this one: what they only read of one takes them one fault. A host that cannot is no error.
    pub fn enlarge_kernel(&self) {
        for at in &self.kernel {
            self.ram.enlarge(*at, layout::LARGE as usize);
        }
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
            let (vm, registers) = (vm.as_ref(), P::VIRTIO_REGISTERS);
            let mapped = match memory {
                Some(slots) => wiring::map_devices(vm, registers, &transports, &{ slots }.0),
                None => Ok(()),
            };
            let hung = mapped.and_then(|()| wiring::hang_doorbells(vm, registers, &transports));
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
        wiring::map_devices(self.vm.as_ref(), P::VIRTIO_REGISTERS, &self.transports, &slots.0)
    }

    pub(crate) fn vm(&self) -> &P::Vm {
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

impl<P: Platform> Drop for Machine<P> {
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
pub struct Frozen<'a, P: Platform = X86> {
    machine: &'a Machine<P>,
}

impl<P: Platform> Frozen<'_, P> {
    /// All of the machine but RAM and disks.
    pub fn state(&self) -> Result<P::AtRest, MachineError> {
        P::state(self)
    }

    /// Guest RAM.
    pub fn ram(&self) -> &GuestRam {
        &self.machine.ram
    }

    pub(crate) fn vm(&self) -> &P::Vm {
        self.machine.vm()
    }

    /// The vCPUs' states.
    pub(crate) fn vcpus(&self) -> Result<Vec<P::State>, MachineError> {
        let machine = self.machine;
        let states = machine.shared.control.vcpu_states(machine.vcpus.len() as u32)?;
        if machine.ended().is_some() {
            return Err(MachineError::Restore("it has ended".to_owned()));
        }
        Ok(states)
    }

    /// The virtio devices' states.
    pub(crate) fn devices(&self) -> Vec<TransportState> {
        self.machine.transports.iter().map(|transport| transport.save()).collect()
    }
}

impl<P: Platform> Drop for Frozen<'_, P> {
    fn drop(&mut self) {
        for transport in &self.machine.transports {
            transport.resume();
        }
        self.machine.resume();
    }
}

/// What x86-64's machine keeps.
#[derive(Debug)]
pub struct X86Parts {
    pub(crate) ioapic: Arc<IoApic>,
    pub(crate) tsc_khz: u32,
    /// The processors that the guest sees.
    pub(crate) cpuids: Vec<Vec<CpuidLeaf>>,
}

impl Platform for X86 {
    type Vm = dyn X86Vm;
    type Kept = X86Parts;
    type AtRest = MachineState;
    const VIRTIO_REGISTERS: u64 = layout::VIRTIO_BASE;

    fn create_vm(hypervisor: &dyn Hypervisor) -> Result<Box<Self::Vm>, HvError> {
        hypervisor.create_x86_vm()
    }

    fn ram_pieces(memory: u64) -> Vec<(GuestAddress, usize)> {
        layout::ram_pieces(memory)
    }

    fn advise_pages(ram: &GuestRam, initrd: u64) {
        ram.advise_huge();
        for (at, len) in layout::sparse(ram.size(), initrd) {
            let _ = ram.advise_small(at, len);
        }
    }

    fn device_memory(memory: u64) -> u64 {
        layout::device_memory(memory)
    }

    fn start(vm: Box<Self::Vm>, setup: Setup) -> Result<Machine<Self>, MachineError> {
        Machine::start(vm, setup)
    }

    fn state(frozen: &Frozen<'_, Self>) -> Result<MachineState, MachineError> {
        let machine = frozen.machine;
        let states = frozen.vcpus()?;
        let cpuids = machine.kept.cpuids.iter().cloned();
        let vcpus = cpuids.zip(states).map(|(cpuid, state)| SavedVcpu { cpuid, state });
        Ok(MachineState {
            memory: machine.ram.size(),
            tsc_khz: machine.kept.tsc_khz,
            clock: machine.vm.clock()?,
            vcpus: vcpus.collect(),
            ioapic: SavedState::of(&*machine.kept.ioapic),
            devices: frozen.devices(),
        })
    }

    fn restore(vm: Box<Self::Vm>, restore: Restore) -> Result<Machine<Self>, MachineError> {
        Machine::restore(vm, restore)
    }

    fn counter_khz(kept: &Self::Kept) -> Option<u32> {
        Some(kept.tsc_khz)
    }
}

/// What a machine is assembled from.
pub(crate) struct Parts<P: Platform> {
    pub(crate) vm: Arc<P::Vm>,
    pub(crate) control: Arc<Control<P>>,
    pub(crate) timeline: Arc<Timeline>,
    pub(crate) ram: GuestRam,
    pub(crate) mmio: Bus,
    pub(crate) pio: Bus,
    pub(crate) transports: Vec<Arc<MmioTransport>>,
    pub(crate) serial: Option<SerialInput>,
    pub(crate) kept: P::Kept,
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

pub(crate) fn map_ram<A: Arch>(vm: &(impl Vm<A> + ?Sized), ram: &GuestRam) -> Result<(), HvError> {
    for RamSlot { guest, host, len } in ram.slots() {
        let slot = MemorySlot { guest: guest.0, host, len, read_only: false, track_dirty: false };
        // SAFETY: the machine keeps RAM until the VM and its vCPUs are gone, and `GuestRam` hands
        // out no references.
        unsafe { vm.map(&slot)? };
    }
    Ok(())
}

impl<P: Platform> std::fmt::Debug for Machine<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("vcpus", &self.vcpus.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

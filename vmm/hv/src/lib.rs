//! The hypervisor contract. A backend (`hv-kvm`, …) implements it; the machine knows nothing else.
//!
//! - [`Hypervisor`] finds out what the host can do and makes a [`Vm`].
//! - A [`VcpuSeat`] may travel between threads; [`VcpuSeat::bind`] makes it a [`Vcpu`] on the thread
//!   that will run it, since some hypervisors tie a vCPU to its thread.
//! - [`Vcpu::run`] exchanges values: a [`VmEntry`] in, a [`VmExit`] out. No callbacks.
//! - What only one architecture has stands in an extension trait ([`X86Vm`]).

mod error;
mod exit;
pub mod fake;
mod probe;
mod seats;
pub mod x86;

use cabana_os::Event;

pub use error::HvError;
pub use exit::{VmEntry, VmExit};
pub use probe::{Probe, Verdict};
pub use seats::Seats;
pub use x86::X86Vm;

/// One hypervisor of the host.
pub trait Hypervisor: Send + Sync {
    /// Its name for people: `KVM`.
    fn name(&self) -> &'static str;

    /// Finds out, by really running a vCPU, whether guests can run here and how well.
    fn probe(&self) -> Probe;

    /// An empty x86-64 virtual machine.
    fn create_x86_vm(&self) -> Result<Box<dyn X86Vm>, HvError>;
}

/// Guest-physical memory, doorbells and vCPUs: what every architecture has.
pub trait Vm: Send + Sync {
    /// Makes host memory appear in the guest. Costly (KVM waits for its readers, for milliseconds on
    /// a busy host): make few slots, and do something else meanwhile.
    ///
    /// # Safety
    /// The host range must stay mapped until [`Vm::unmap`] or until the VM and all its vCPUs are
    /// dropped, and nobody may hold Rust references into it.
    #[allow(unsafe_code, reason = "the contract is the caller's to keep; nothing unsafe is here")]
    unsafe fn map(&self, slot: &MemorySlot) -> Result<(), HvError>;

    /// Takes away what [`Vm::map`] mapped at `guest`.
    fn unmap(&self, guest: u64) -> Result<(), HvError>;

    /// Pages written since the last call in the slot at `guest`, one bit a 4 KiB page, the lowest
    /// bit of the first word first. The slot must have been mapped with `track_dirty`.
    fn dirty_pages(&self, guest: u64) -> Result<Vec<u64>, HvError>;

    /// Signals `event` in place of an exit when the guest writes to the doorbell. Where the
    /// hypervisor has no such thing: [`HvError::Unsupported`], and the write exits.
    fn doorbell(&self, doorbell: Doorbell, event: &Event) -> Result<(), HvError>;

    /// Says what the vCPUs are, all of them: once, before memory is mapped and before the first seat.
    fn set_vcpus(&self, vcpus: Vec<VcpuSetup>) -> Result<(), HvError>;

    /// The `index`-th vCPU of [`Vm::set_vcpus`], not yet bound to a thread. Each is given once.
    fn vcpu_seat(&self, index: u32) -> Result<Box<dyn VcpuSeat>, HvError>;

    /// How many vCPUs one VM may have on this host.
    fn max_vcpus(&self) -> u32;
}

/// Host memory to appear in the guest.
#[derive(Clone, Copy, Debug)]
pub struct MemorySlot {
    /// First guest-physical address, page-aligned.
    pub guest: u64,
    /// The memory in this process, page-aligned.
    pub host: *mut u8,
    /// Length in bytes, whole pages.
    pub len: usize,
    /// The guest's writes exit as [`VmExit::MmioWrite`] in place of reaching the memory.
    pub read_only: bool,
    /// Keep account of written pages for [`Vm::dirty_pages`].
    pub track_dirty: bool,
}

/// A guest write that only means "look": memory-mapped, four bytes, of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// Guest-physical address.
    pub guest: u64,
    /// The 32-bit value that rings it; others exit.
    pub value: u32,
}

/// What a vCPU is from birth. Its position, from 0, is its initial APIC id on x86.
#[derive(Clone, Debug, Default)]
pub struct VcpuSetup {
    /// The processor that the guest sees (x86; see [`X86Vm::supported_cpuid`]).
    pub cpuid: Vec<x86::CpuidLeaf>,
    /// Model-specific registers that differ from reset before the guest's first instruction, as
    /// firmware would have left them (x86; see [`x86::firmware_msrs`]).
    pub msrs: Vec<(u32, u64)>,
}

/// A vCPU on its way to its thread.
pub trait VcpuSeat: Send {
    /// A way to stop its `run` from any thread.
    fn kicker(&self) -> Box<dyn VcpuKicker>;

    /// Ties the vCPU to the calling thread.
    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, HvError>;
}

/// Stops a vCPU from another thread.
pub trait VcpuKicker: Send + Sync {
    /// The `run` in progress, or else the next one, returns [`VmExit::Kicked`].
    fn kick(&self);
}

/// A vCPU on its thread.
pub trait Vcpu {
    /// Runs the guest until something needs the machine. `entry` answers the last exit:
    /// [`VmEntry::Data`] exactly after a read, else [`VmEntry::Resume`].
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, HvError>;

    /// The whole register state. An unanswered read is not part of it: the guest will read again.
    fn state(&mut self) -> Result<x86::VcpuState, HvError>;

    /// Sets the whole register state.
    fn set_state(&mut self, state: &x86::VcpuState) -> Result<(), HvError>;

    /// Sets what a boot needs: general and segment registers. Everything else stays at reset.
    fn set_boot_state(&mut self, boot: &x86::BootState) -> Result<(), HvError>;

    /// Exits of this vCPU so far, those that the hypervisor handled itself included, if it counts.
    fn exits(&self) -> Option<u64>;

    /// Guest time-stamp counter right now, for placing the guest's stamps on the host's clock.
    fn tsc(&mut self) -> Result<u64, HvError>;
}

//! The hypervisor contract. A backend (`hv-kvm`, …) implements it; the machine knows nothing else.
//!
//! - [`Hypervisor`] finds out what the host can do and makes a [`Vm`].
//! - A [`VcpuSeat`] may travel between threads; [`VcpuSeat::bind`] makes it a [`Vcpu`] on the thread
//!   that will run it, since some hypervisors tie a vCPU to its thread.
//! - [`Vcpu::run`] exchanges values: a [`VmEntry`] in, a [`VmExit`] out. No callbacks.
//! - What an architecture makes of a vCPU is plain data, named by an [`Arch`]; what else only one has stands in
//!   an extension trait ([`X86Vm`], [`Arm64Vm`]).

pub mod arm64;
mod error;
mod exit;
pub mod fake;
mod probe;
mod seats;
pub mod trial;
pub mod x86;

use std::fmt::Debug;

use cabana_os::Event;

pub use arm64::{Arm64, Arm64Vm};
pub use error::HvError;
pub use exit::{VmEntry, VmExit};
pub use probe::{Probe, Verdict};
pub use seats::Seats;
pub use x86::{X86, X86Vm};

/// One hypervisor of the host.
pub trait Hypervisor: Send + Sync {
    /// Its name for people: `KVM`.
    fn name(&self) -> &'static str;

    /// Finds out, by really running a vCPU, whether guests can run here and how well.
    fn probe(&self) -> Probe;

    /// An empty x86-64 virtual machine; [`HvError::Unsupported`] on another processor.
    fn create_x86_vm(&self) -> Result<Box<dyn X86Vm>, HvError> {
        Err(HvError::Unsupported("x86-64 guests on this processor"))
    }

    /// An empty arm64 virtual machine; [`HvError::Unsupported`] on another processor.
    fn create_arm64_vm(&self, _gic: arm64::Gic) -> Result<Box<dyn Arm64Vm>, HvError> {
        Err(HvError::Unsupported("arm64 guests on this processor"))
    }
}

/// A processor architecture: what a vCPU is made of there.
pub trait Arch: Copy + Debug + Default + Send + Sync + 'static {
    /// What a vCPU is from birth.
    type Setup: Clone + Debug + Default + Send;
    /// What a boot protocol prescribes.
    type BootState: Clone + Debug + Default + Send;
    /// Everything that a vCPU is: enough to go on elsewhere.
    type State: Clone + Debug + Default + Send;
}

/// Guest-physical memory, doorbells and vCPUs: what every architecture has.
pub trait Vm<A: Arch>: Send + Sync {
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
    fn set_vcpus(&self, vcpus: Vec<A::Setup>) -> Result<(), HvError>;

    /// The `index`-th vCPU of [`Vm::set_vcpus`], not yet bound to a thread. Each is given once.
    fn vcpu_seat(&self, index: u32) -> Result<Box<dyn VcpuSeat<A>>, HvError>;

    /// How many vCPUs one VM may have on this host.
    fn max_vcpus(&self) -> u32;

    /// The process is about to end, and the VM with it: what the hypervisor then takes long for need not hold up either.
    fn end_with_process(&self) {}
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

/// A vCPU on its way to its thread.
pub trait VcpuSeat<A: Arch>: Send {
    /// A way to stop its `run` from any thread.
    fn kicker(&self) -> Box<dyn VcpuKicker>;

    /// Ties the vCPU to the calling thread.
    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu<A>>, HvError>;
}

/// Stops a vCPU from another thread.
pub trait VcpuKicker: Send + Sync {
    /// The `run` in progress, or else the next one, returns [`VmExit::Kicked`].
    fn kick(&self);
}

/// A vCPU on its thread.
pub trait Vcpu<A: Arch> {
    /// Runs the guest until something needs the machine. `entry` answers the last exit:
    /// [`VmEntry::Data`] exactly after a read, else [`VmEntry::Resume`].
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, HvError>;

    /// The whole register state. An unanswered read is not part of it: the guest will read again.
    fn state(&mut self) -> Result<A::State, HvError>;

    /// Sets the whole register state.
    fn set_state(&mut self, state: &A::State) -> Result<(), HvError>;

    /// Sets what a boot protocol prescribes. Everything else stays at reset.
    fn set_boot_state(&mut self, boot: &A::BootState) -> Result<(), HvError>;

    /// Enters guest memory into the hypervisor's tables before the guest touches it, in place of at its first
    /// touch. The vCPU has its state. Where the hypervisor has no such thing: [`HvError::Unsupported`].
    fn prefault(&mut self, _guest: u64, _len: u64) -> Result<(), HvError> {
        Err(HvError::Unsupported("guest memory that is entered beforehand"))
    }

    /// Exits of this vCPU so far, those that the hypervisor handled itself included, if it counts.
    fn exits(&self) -> Option<u64>;

    /// The guest's time counter right now (x86: the time-stamp counter; arm64: `CNTVCT_EL0`), for placing the
    /// guest's stamps on the host's clock.
    fn counter(&mut self) -> Result<u64, HvError>;
}

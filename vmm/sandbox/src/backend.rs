//! The one place that chooses a hypervisor, and a processor's board: that of the host.

use std::sync::OnceLock;

use cabana_hv::{Hypervisor, Probe};
use cabana_machine::Platform;

use crate::Error;

#[cfg(all(target_os = "macos", target_arch = "aarch64"))]
use cabana_hv_hvf::Hvf as Native;
#[cfg(all(target_os = "macos", target_arch = "x86_64"))]
use cabana_hv_hvf::intel::Hvf as Native;
/// The hypervisor of this operating system.
#[cfg(target_os = "linux")]
use cabana_hv_kvm::Kvm as Native;
#[cfg(windows)]
use cabana_hv_whp::Whp as Native;

/// The processor of guests.
#[cfg(target_arch = "x86_64")]
pub(crate) type Processor = cabana_hv::X86;
#[cfg(target_arch = "aarch64")]
pub(crate) type Processor = cabana_hv::Arm64;

/// A machine's board.
pub(crate) type Board = cabana_machine::Machine<Processor>;

/// An empty VM.
pub(crate) type Vm = <Processor as Platform>::Vm;

/// The file of Cabana's own kernel in its artifact: on x86-64 an ELF file, on arm64 an `Image`.
pub const KERNEL_FILE: &str = if cfg!(target_arch = "aarch64") { "Image" } else { "vmlinux" };

/// What the kernel of every machine is told, whatever it is told besides.
///
/// - `console=hvc0 quiet`: last words go to the virtio console, nothing else does;
/// - `panic=-1`: a panic ends the machine at once;
/// - x86-64's `reboot=t`: by a triple fault; `tsc=reliable no_timer_check`: nothing is measured that the hypervisor has
///   said; `percpu_alloc=page`: as much memory for each processor's variables as they need, in place of 2 MiB that
///   have to be cleared;
/// - `dhash_entries`, `ihash_entries`, `thash_entries`, `uhash_entries`: tables of names and inodes as a machine of 128 MiB has
///   them, of connections as one of 512 MiB, not 7 MiB with a ceiling of 4 GiB, which are cleared at the start;
/// - arm64's `swiotlb=noforce`: no bounce buffers, of which virtio needs none (x86-64's kernel has it built in).
///
/// Each word costs its comparison with every parameter that the kernel knows.
pub(crate) const COMMAND_LINE: &str = if cfg!(target_arch = "aarch64") {
    "console=hvc0 quiet panic=-1 dhash_entries=16384 ihash_entries=8192 thash_entries=4096 \
     uhash_entries=256 swiotlb=noforce"
} else {
    "console=hvc0 quiet panic=-1 dhash_entries=16384 ihash_entries=8192 thash_entries=4096 \
     uhash_entries=256 reboot=t tsc=reliable no_timer_check percpu_alloc=page"
};

static IN_PLACE: OnceLock<fn() -> Box<dyn Hypervisor>> = OnceLock::new();

/// The hypervisor of this host, or what [`use_hypervisor`] has put in its place.
pub fn hypervisor() -> Box<dyn Hypervisor> {
    match IN_PLACE.get() {
        Some(open) => open(),
        None => Box::new(Native::new()),
    }
}

/// Lets this process's machines run on another implementation of the contract: how backends for other operating
/// systems are tested. To be called once, before the first machine; later calls change nothing.
pub fn use_hypervisor(open: fn() -> Box<dyn Hypervisor>) {
    let _ = IN_PLACE.set(open);
}

/// What this host can do, found out by running a vCPU.
pub fn probe() -> Probe {
    hypervisor().probe()
}

/// An empty VM. When that fails the probe says why in words; it is not asked before, since it costs
/// time.
pub(crate) fn create_vm() -> Result<Box<Vm>, Error> {
    let hypervisor = hypervisor();
    Processor::create_vm(hypervisor.as_ref()).map_err(|error| {
        match hypervisor.probe().verdict.why() {
            Some(why) => Error::NoHypervisor(why.to_owned()),
            None => Error::NoHypervisor(error.to_string()),
        }
    })
}

//! Hypervisor.framework on Intel Macs, macOS 11 or later.
//!
//! The framework hands over a processor's own virtualization (Intel SDM 3C, chapters 24 to 28): fields of a VMCS to read
//! and write, and exits as the processor has them. Everything else is ours: the local APICs (`cabana-lapic`), CPUID,
//! model-specific registers, waiting, the start of processors, page tables where an instruction touches a device, and
//! that instruction itself (`cabana-hv-x86`). A process has one VM, and a thread has one vCPU.
//!
//! [`Functions`] is the part of the framework that is used, [`Host`] what else is asked of a Mac. All of it compiles on
//! every host and runs on Linux over `tests/shims/hvf-x86-on-kvm`.

mod clock;
mod control;
mod cpu;
mod cpuid;
mod functions;
mod msrs;
mod paging;
mod post;
mod probe;
mod state;
mod surroundings;
#[cfg(test)]
mod tests;
mod vcpu;
mod vm;
mod vmcs;

use std::sync::{Arc, OnceLock};

use cabana_hv::{HvError, Hypervisor, Probe, X86Vm};

pub use functions::{Framework, Functions, Host};
use vm::HvfVm;

/// Hypervisor.framework of this Intel Mac.
#[derive(Debug)]
pub struct Hvf {
    load: fn() -> Result<Framework, HvError>,
    framework: OnceLock<Arc<Framework>>,
}

impl Hvf {
    /// The framework of this macOS. Nothing is loaded yet.
    #[cfg(all(target_os = "macos", target_arch = "x86_64"))]
    pub fn new() -> Self {
        Self::over(Framework::load)
    }

    /// The framework behind other functions.
    pub fn over(load: fn() -> Result<Framework, HvError>) -> Self {
        Self { load, framework: OnceLock::new() }
    }

    /// The functions, loaded.
    fn framework(&self) -> Result<&Arc<Framework>, HvError> {
        if let Some(framework) = self.framework.get() {
            return Ok(framework);
        }
        let framework = Arc::new((self.load)()?);
        Ok(self.framework.get_or_init(|| framework))
    }
}

#[cfg(all(target_os = "macos", target_arch = "x86_64"))]
impl Default for Hvf {
    fn default() -> Self {
        Self::new()
    }
}

impl Hypervisor for Hvf {
    fn name(&self) -> &'static str {
        "Hypervisor.framework"
    }

    fn probe(&self) -> Probe {
        probe::probe(self)
    }

    fn create_x86_vm(&self) -> Result<Box<dyn X86Vm>, HvError> {
        Ok(Box::new(HvfVm::new(Arc::clone(self.framework()?))?))
    }
}

//! Apple's Hypervisor.framework (developer.apple.com/documentation/hypervisor). On Intel Macs it is another one, with
//! functions of its own: [`intel`]. The rest of this page is of Apple silicon's.
//!
//! The interrupt controller is the framework's `GICv3` (macOS 15), PSCI is ours. A process has one VM, and a thread has
//! one vCPU. Guest memory comes in pages of 16 KiB, device memory is what is not mapped: an access to it ends in the
//! processor's own description of it, the syndrome.
//!
//! [`Functions`] is the part of the framework that is used. On macOS it is loaded when it is first needed, so that a
//! program starts, and can say what is missing, on one that is too old. Everything else is the same source on every
//! operating system, and runs on Linux over other functions that keep the vendor's word
//! (`tests/shims/hvf-on-kvm`).

// The hypervisor is called through pointers to C functions.
#![allow(unsafe_code)]

#[macro_use]
mod functions;
pub mod intel;
mod memory;
mod post;
mod probe;
mod processor;
mod psci;
mod state;
mod syndrome;
#[cfg(test)]
mod tests;
mod trap;
mod vcpu;
mod vm;

use std::sync::{Arc, OnceLock};

use cabana_hv::arm64::Gic;
use cabana_hv::{Arm64Vm, HvError, Hypervisor, Probe};

pub use functions::{
    Exit, Functions, HV_BAD_ARGUMENT, HV_BUSY, HV_DENIED, HV_ERROR, HV_FAULT,
    HV_ILLEGAL_GUEST_STATE, HV_NO_DEVICE, HV_NO_RESOURCES, HV_SUCCESS, HV_UNSUPPORTED, Timebase,
    Vector,
};
use vm::HvfVm;

/// Hypervisor.framework of this host.
#[derive(Debug)]
pub struct Hvf {
    load: fn() -> Result<Functions, HvError>,
    functions: OnceLock<Arc<Functions>>,
}

impl Hvf {
    /// The framework of this macOS. Nothing is loaded yet.
    #[cfg(all(target_os = "macos", target_arch = "aarch64"))]
    pub fn new() -> Self {
        Self::over(Functions::load)
    }

    /// The framework behind other functions.
    pub fn over(load: fn() -> Result<Functions, HvError>) -> Self {
        Self { load, functions: OnceLock::new() }
    }

    /// The functions, loaded.
    fn functions(&self) -> Result<&Arc<Functions>, HvError> {
        if let Some(functions) = self.functions.get() {
            return Ok(functions);
        }
        let functions = Arc::new((self.load)()?);
        Ok(self.functions.get_or_init(|| functions))
    }
}

#[cfg(all(target_os = "macos", target_arch = "aarch64"))]
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

    fn create_arm64_vm(&self, gic: Gic) -> Result<Box<dyn Arm64Vm>, HvError> {
        Ok(Box::new(HvfVm::new(Arc::clone(self.functions()?), gic)?))
    }
}

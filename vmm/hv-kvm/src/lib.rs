//! KVM, the hypervisor of Linux (Documentation/virt/kvm/api.rst), x86-64 and arm64.
//!
//! Every ioctl is start-up time: [`Kvm`] makes none until it is asked for something, and asks the
//! kernel once what the processor can do.
//!
//! - x86-64: local APICs are the kernel's, the I/O APIC is ours ("split irqchip"); there is no PIT and no PIC.
//!   The pages from `0xfffb_c000` to `0xfffc_0000` of guest-physical memory belong to KVM (real mode
//!   on old Intel processors): map nothing there.
//! - arm64: the interrupt controller (a `GICv3`), the timers and PSCI are the kernel's.

#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
// KVM is a memory area shared with the kernel and ioctls on it; most have safe wrappers in
// kvm-ioctls, the rest is here.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod ioctl;
mod kick;
mod probe;
mod run_page;
mod stats;
mod vcpu;
mod vm;
#[cfg(target_arch = "x86_64")]
mod x86_64;

/// What differs between processors, under the same names.
mod arch {
    #[cfg(target_arch = "aarch64")]
    pub(crate) use crate::aarch64::*;
    #[cfg(target_arch = "x86_64")]
    pub(crate) use crate::x86_64::*;
}

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use cabana_hv::{HvError, Hypervisor, Probe};

use ioctl::failed;
use vm::KvmVm;

/// KVM of this host. Opened on first use, or by [`Kvm::open`].
#[derive(Debug)]
pub struct Kvm {
    device: PathBuf,
    system: OnceLock<Arc<System>>,
}

impl Kvm {
    /// KVM behind `/dev/kvm`, which is not touched yet.
    pub fn new() -> Self {
        Self::at("/dev/kvm")
    }

    /// KVM behind another device node.
    pub fn at(device: impl Into<PathBuf>) -> Self {
        Self { device: device.into(), system: OnceLock::new() }
    }

    /// KVM behind `/dev/kvm`, opened.
    pub fn open() -> Result<Self, HvError> {
        let kvm = Self::new();
        kvm.system()?;
        Ok(kvm)
    }

    /// The open device.
    fn system(&self) -> Result<&Arc<System>, HvError> {
        if let Some(system) = self.system.get() {
            return Ok(system);
        }
        let system = Arc::new(System::open(&self.device)?);
        Ok(self.system.get_or_init(|| system))
    }
}

impl Default for Kvm {
    fn default() -> Self {
        Self::new()
    }
}

impl Hypervisor for Kvm {
    fn name(&self) -> &'static str {
        "KVM"
    }

    fn probe(&self) -> Probe {
        probe::probe(self)
    }

    #[cfg(target_arch = "x86_64")]
    fn create_x86_vm(&self) -> Result<Box<dyn cabana_hv::X86Vm>, HvError> {
        let parts = arch::VmParts::default();
        Ok(Box::new(KvmVm::new(Arc::clone(self.system()?), parts)?))
    }

    #[cfg(target_arch = "aarch64")]
    fn create_arm64_vm(
        &self,
        gic: cabana_hv::arm64::Gic,
    ) -> Result<Box<dyn cabana_hv::Arm64Vm>, HvError> {
        let parts = arch::VmParts::new(gic);
        Ok(Box::new(KvmVm::new(Arc::clone(self.system()?), parts)?))
    }
}

/// The open device and what it said once.
#[derive(Debug)]
struct System {
    kvm: kvm_ioctls::Kvm,
    arch: arch::SystemParts,
}

impl System {
    fn open(device: &Path) -> Result<Self, HvError> {
        let path = CString::new(device.as_os_str().as_bytes()).map_err(|_| HvError::Call {
            call: "open",
            source: io::ErrorKind::InvalidInput.into(),
        })?;
        let kvm = kvm_ioctls::Kvm::new_with_path(path).map_err(failed("open /dev/kvm"))?;
        Ok(Self { kvm, arch: arch::SystemParts::default() })
    }
}

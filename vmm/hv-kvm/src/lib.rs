//! KVM, the hypervisor of Linux (Documentation/virt/kvm/api.rst), x86-64.
//!
//! Local APICs are the kernel's, the I/O APIC is ours ("split irqchip"); there is no PIT and no PIC.
//! Every ioctl is start-up time: [`Kvm`] makes none until it is asked for something, and asks the
//! kernel once what the processor can do.
//!
//! The pages from `0xfffb_c000` to `0xfffc_0000` of guest-physical memory belong to KVM (real mode
//! on old Intel processors): map nothing there.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
// KVM is a memory area shared with the kernel and ioctls on it; most have safe wrappers in
// kvm-ioctls, the rest is here.
#![allow(unsafe_code)]

mod convert;
mod ioctl;
mod kick;
mod probe;
mod quirks;
mod run_page;
mod state;
mod stats;
mod vcpu;
mod vm;

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use cabana_hv::x86::CpuidLeaf;
use cabana_hv::{HvError, Hypervisor, Probe, X86Vm};
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;

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

    fn create_x86_vm(&self) -> Result<Box<dyn X86Vm>, HvError> {
        Ok(Box::new(KvmVm::new(Arc::clone(self.system()?))?))
    }
}

/// The open device and what it said once.
#[derive(Debug)]
struct System {
    kvm: kvm_ioctls::Kvm,
    cpuid: OnceLock<Vec<CpuidLeaf>>,
    saved_msrs: OnceLock<Vec<u32>>,
}

impl System {
    fn open(device: &Path) -> Result<Self, HvError> {
        let path = CString::new(device.as_os_str().as_bytes()).map_err(|_| HvError::Call {
            call: "open",
            source: io::ErrorKind::InvalidInput.into(),
        })?;
        let kvm = kvm_ioctls::Kvm::new_with_path(path).map_err(failed("open /dev/kvm"))?;
        Ok(Self { kvm, cpuid: OnceLock::new(), saved_msrs: OnceLock::new() })
    }

    /// What the processor and KVM can show a guest, without what does not work on this host.
    fn supported_cpuid(&self) -> Result<&[CpuidLeaf], HvError> {
        if let Some(leaves) = self.cpuid.get() {
            return Ok(leaves);
        }
        let supported = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        let mut leaves: Vec<_> = supported.as_slice().iter().map(convert::leaf_from_kvm).collect();
        quirks::apply(&mut leaves);
        Ok(self.cpuid.get_or_init(|| leaves))
    }

    /// The model-specific registers that are part of a vCPU's saved state.
    fn saved_msrs(&self) -> Result<&[u32], HvError> {
        if let Some(list) = self.saved_msrs.get() {
            return Ok(list);
        }
        let list = self.kvm.get_msr_index_list().map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
        let list = list.as_slice().iter().copied().filter(|&msr| state::is_saved(msr)).collect();
        Ok(self.saved_msrs.get_or_init(|| list))
    }
}

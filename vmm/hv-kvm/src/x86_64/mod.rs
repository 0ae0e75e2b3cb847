//! x86-64: local APICs of the kernel, an I/O APIC of ours ("split irqchip"), neither PIT nor PIC.

mod convert;
mod exit;
mod ioctl;
mod probe;
mod quirks;
pub(crate) mod state;
mod vm;

use std::sync::OnceLock;

use cabana_hv::HvError;
use cabana_hv::x86::CpuidLeaf;
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::Kvm;

pub(crate) use cabana_hv::X86 as Guest;
pub(crate) use cabana_hv::x86::{BootState, VcpuSetup, VcpuState};

pub(crate) use exit::{INSTRUCTION_POINTER, exit};
pub(crate) use probe::{NEEDED, quirks, try_out, what_to_do};
pub(crate) use vm::{MAX_VCPUS, VmParts, create_vm};

use crate::ioctl::failed;

/// What the device said once.
#[derive(Debug, Default)]
pub(crate) struct SystemParts {
    cpuid: OnceLock<Vec<CpuidLeaf>>,
    saved_msrs: OnceLock<Vec<u32>>,
}

impl SystemParts {
    /// What the processor and KVM can show a guest, without what does not work on this host.
    pub(crate) fn supported_cpuid(&self, kvm: &Kvm) -> Result<&[CpuidLeaf], HvError> {
        if let Some(leaves) = self.cpuid.get() {
            return Ok(leaves);
        }
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        let mut leaves: Vec<_> = supported.as_slice().iter().map(convert::leaf_from_kvm).collect();
        quirks::apply(&mut leaves);
        Ok(self.cpuid.get_or_init(|| leaves))
    }

    /// The model-specific registers that are part of a vCPU's saved state.
    pub(crate) fn saved_msrs(&self, kvm: &Kvm) -> Result<&[u32], HvError> {
        if let Some(list) = self.saved_msrs.get() {
            return Ok(list);
        }
        let list = kvm.get_msr_index_list().map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
        let list = list.as_slice().iter().copied().filter(|&msr| state::is_saved(msr)).collect();
        Ok(self.saved_msrs.get_or_init(|| list))
    }
}

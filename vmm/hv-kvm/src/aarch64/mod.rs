//! arm64: the interrupt controller, the timers and PSCI are the kernel's.

mod exit;
mod gic;
mod probe;
pub(crate) mod state;
mod vm;

use std::sync::OnceLock;

use cabana_hv::HvError;
use kvm_bindings::RegList;
use kvm_ioctls::VcpuFd;

pub(crate) use cabana_hv::Arm64 as Guest;
pub(crate) use cabana_hv::arm64::{BootState, VcpuSetup, VcpuState};

pub(crate) use exit::{INSTRUCTION_POINTER, exit};
pub(crate) use probe::{NEEDED, quirks, try_out, what_to_do};
pub(crate) use vm::{MAX_VCPUS, VmParts, create_vm};

use crate::ioctl::failed;

/// What the list has room for; a vCPU that is made here has some 300.
const REGISTERS_MAX: usize = 500;

/// What the device said once.
#[derive(Debug, Default)]
pub(crate) struct SystemParts {
    registers: OnceLock<Vec<u64>>,
}

impl SystemParts {
    /// The registers of a vCPU, by KVM's numbers.
    pub(crate) fn registers(&self, vcpu: &VcpuFd) -> Result<&[u64], HvError> {
        if let Some(registers) = self.registers.get() {
            return Ok(registers);
        }
        let mut list = RegList::new(REGISTERS_MAX)
            .map_err(|_| HvError::Invalid(format!("{REGISTERS_MAX} registers")))?;
        vcpu.get_reg_list(&mut list).map_err(failed("KVM_GET_REG_LIST"))?;
        Ok(self.registers.get_or_init(|| list.as_slice().to_vec()))
    }
}

//! The functions of Hypervisor.framework that `hv-hvf` calls on Intel Macs, over KVM: so that the very backend that
//! ships for them runs guests on Linux. The README says how KVM is made to keep the vendor's word, and what the vendor's
//! documentation leaves open.
//!
//! What the vendor refuses is refused here too: a second VM, a call from another thread than the vCPU's, sizes that
//! are not whole pages, fields that are none or may only be read, controls that the processor does not have.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
// The functions have C's calling convention and take pointers; KVM is a shared memory area and ioctls.
#![allow(unsafe_code)]

mod abi;
mod fields;
mod host;
mod interview;
mod machine;
mod memory;
mod state;
mod timer;
mod vcpu;

use cabana_hv::HvError;
use cabana_hv_hvf::intel::{Framework, Hvf};
use cabana_hv_hvf::{HV_ERROR, HV_SUCCESS};

pub use abi::FUNCTIONS;

/// The framework over this host's KVM.
pub fn framework() -> Hvf {
    Hvf::over(functions)
}

/// The table of functions, and the Mac.
#[allow(clippy::unnecessary_wraps, reason = "a framework may lack one")]
fn functions() -> Result<Framework, HvError> {
    Ok(Framework { functions: FUNCTIONS, host: host::HOST })
}

/// What a function of the framework answers, for `?`.
type Answer<T> = Result<T, i32>;

/// As C has it.
fn code(answer: Answer<()>) -> i32 {
    answer.err().unwrap_or(HV_SUCCESS)
}

/// For what KVM refuses and the vendor would not.
fn failed<E>(_: E) -> i32 {
    HV_ERROR
}

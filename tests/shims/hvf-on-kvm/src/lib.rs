//! The functions of Hypervisor.framework that `hv-hvf` calls, over KVM: so that the very backend that ships for Apple
//! silicon runs guests on Linux. The README says how KVM is made to keep the vendor's word, and what the vendor's
//! documentation leaves open.
//!
//! What the vendor refuses is refused here too: a second VM, a call from another thread than the vCPU's, sizes that
//! are not whole pages of 16 KiB, calls in the wrong order, names that are none.

#![cfg(all(target_os = "linux", target_arch = "aarch64"))]
// The functions have C's calling convention and take pointers; KVM is a shared memory area and ioctls.
#![allow(unsafe_code)]

mod abi;
mod gic;
mod machine;
mod memory;
mod objects;
mod registers;
mod vcpu;

use cabana_hv::HvError;
use cabana_hv_hvf::{Functions, HV_ERROR, HV_SUCCESS, Hvf};

pub use abi::FUNCTIONS;

/// The framework over this host's KVM.
pub fn framework() -> Hvf {
    Hvf::over(functions)
}

/// The table of functions.
#[allow(clippy::unnecessary_wraps, reason = "a framework may lack one")]
fn functions() -> Result<Functions, HvError> {
    Ok(FUNCTIONS)
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

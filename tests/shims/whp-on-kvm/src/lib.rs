//! The functions of `WinHvPlatform.dll` that `hv-whp` calls, over KVM: so that the very backend that ships for
//! Windows runs guests on Linux. The README says how KVM is made to keep the vendor's word, and what the
//! vendor's documentation leaves open.
//!
//! What the vendor refuses is refused here too: wrong sizes and alignments, calls in the wrong order, names that
//! are none, a processor that runs already.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
// The functions have C's calling convention and take pointers; KVM is a shared memory area and ioctls.
#![allow(unsafe_code)]
#![allow(non_upper_case_globals, reason = "the vendor's constants are patterns")]
#![allow(
    clippy::wildcard_imports,
    reason = "the vendor has hundreds of names, all with one prefix"
)]

mod abi;
mod cpuid;
mod memory;
mod partition;
mod processor;
mod registers;

use cabana_hv::HvError;
use cabana_hv_whp::{Functions, Whp};
use windows_sys::core::HRESULT;

/// The platform over this host's KVM.
pub fn platform() -> Whp {
    Whp::over(functions)
}

/// The table of functions.
#[allow(clippy::unnecessary_wraps, reason = "a platform may lack its library")]
fn functions() -> Result<Functions, HvError> {
    Ok(abi::FUNCTIONS)
}

/// What a function of the platform answers, for `?`.
type Answer<T> = Result<T, HRESULT>;

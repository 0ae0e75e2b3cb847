//! What a hypervisor can refuse.

use std::io;

/// A failed call to the hypervisor, or one that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum HvError {
    /// The vendor's call failed.
    #[error("{call} failed: {source}")]
    Call {
        /// The vendor's name of the call (`KVM_CREATE_VM`).
        call: &'static str,
        /// Its code and what that means.
        source: io::Error,
    },
    /// The vendor's call failed with a code of the vendor's own.
    #[error("{call} failed with {code:#010x}: {meaning}")]
    Refused {
        /// The vendor's name of the call (`WHvMapGpaRange`).
        call: &'static str,
        /// Its code (an `HRESULT`).
        code: u32,
        /// What the code means.
        meaning: &'static str,
    },
    /// This host's hypervisor has no such thing.
    #[error("this hypervisor has no {0}")]
    Unsupported(&'static str),
    /// The caller's arguments do not fit the contract.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The processor refused the guest's state or the hypervisor met an instruction that it cannot
    /// carry out.
    #[error("the hypervisor cannot go on with the guest: {0}")]
    Guest(String),
}

impl HvError {
    /// The last system call's error, as the failure of `call`.
    pub fn last(call: &'static str) -> Self {
        Self::Call { call, source: io::Error::last_os_error() }
    }
}

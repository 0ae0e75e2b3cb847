//! The contract on arm64, by subject.

#![cfg(target_arch = "aarch64")]
// Payloads are assembled, and guest memory is mapped.
#![allow(unsafe_code)]

mod arm64 {
    mod entry;
    mod hostile;
    mod interrupts;
    mod kick;
    mod memory;
    mod mmio;
    mod psci;
    mod state;
}

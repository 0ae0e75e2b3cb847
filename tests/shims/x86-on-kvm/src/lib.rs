//! What the shims of x86-64 hypervisors over KVM have in common: other hypervisors hand an access over *before*
//! anything is done, and KVM has to be made to.
//!
//! - [`Slots`]: memory without holes, so that `KVM_RUN` fails at the instruction that touches what is not mapped.
//! - [`Place`]: what the guest's next instruction is, and what memory it touches.
//! - [`supported`]: what processors answer to CPUID.
//! - [`undo`]: ports, which KVM carries out in two halves, back to where they began.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
// KVM is ioctls and a shared memory area.
#![allow(unsafe_code)]

mod cpuid;
mod guest;
mod page;
mod slots;
pub mod undo;

pub use cpuid::supported;
pub use guest::{Fault, Memory, Place, translate};
pub use page::{Page, kvm_run};
pub use slots::{END, PAGE, Refused, Reserved, Slot, Slots, read_only};

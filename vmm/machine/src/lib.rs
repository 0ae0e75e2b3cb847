//! The board of a machine: guest RAM, buses, interrupt routing, and the threads that run vCPUs.
//!
//! A [`Setup`] says what the machine is made of; [`Machine::start`] builds and starts it over any
//! hypervisor; [`Machine::wait`] says how it ended; [`Machine::freeze`] and [`Machine::restore`] take it
//! to another process. No device is named here: they come in as
//! [`VirtioDevice`](cabana_virtio::VirtioDevice)s.

// Guest memory is handed to the hypervisor by its address.
#![allow(unsafe_code)]

pub mod arm64;
mod board;
mod control;
mod entry;
mod exits;
pub mod layout;
mod machine;
mod prefetch;
mod restore;
mod state;
mod timeline;
mod vcpu;
mod wiring;

pub use control::Outcome;
pub use exits::ExitCounts;
pub use machine::{
    DeviceMemory, Frozen, GuestClock, Machine, MachineError, Observation, Platform, Setup, X86Parts,
};
pub use prefetch::{Pages, Touched};
pub use restore::Restore;
pub use state::{Arm64State, AtRest, MachineState, STATE_VERSION, SavedVcpu};
pub use timeline::{Mark, Timeline};

//! Virtio 1.3 as every device here needs it: split virtqueues ([`Queue`], [`Chain`]), the contract
//! between a transport and a device ([`VirtioDevice`]), and the transport ([`MmioTransport`]).
//!
//! A device is written against this crate alone. The driver is hostile: whatever it puts into a
//! ring or a register ends in an error of that queue, never in a panic or an endless loop.

// The register page is memory that the guest reads too; its atomics are made from a raw address.
#![allow(unsafe_code)]

mod chain;
mod device;
mod page;
mod queue;
mod registers;
mod served;
mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod transport;

pub use chain::{Chain, Pieces, Reader, Writer};
pub use device::{DeviceInterrupt, Direct, Identity, QueueContext, StartError, VirtioDevice};
pub use page::RegisterPage;
pub use queue::{Queue, QueueError, QueueLayout, QueueState};
pub use served::ServedQueue;
pub use state::{QueueRegisters, TransportState};
pub use transport::{Doorbell, MmioTransport};

/// The device and the driver follow virtio 1.x (virtio 1.3 §6).
pub const F_VERSION_1: u64 = 1 << 32;
/// A chain may stand in a table of its own (virtio 1.3 §2.7.5.3).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Notifications are suppressed by index (virtio 1.3 §2.7.10).
pub const F_EVENT_IDX: u64 = 1 << 29;

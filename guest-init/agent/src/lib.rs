//! PID 1 of Cabana's guests.
//!
//! - [`Server`] serves a host's connections over any stream. Commands ([`exec`]) need neither a guest nor
//!   privileges; sessions need both.
//! - [`init`] is the life of PID 1, from the first instruction to the end of the machine.
//! - [`outbox`] is how bytes leave for the host.
//! - [`initramfs`] packs the agent for the kernel, on the host.

// `unsafe` is needed for what happens between fork and exec, for namespaces and credentials of threads,
// for signals by number, for vsock addresses, for a few calls that no safe wrapper covers, for pages
// that the kernel borrows, for the time stamp counter and for the exit port.
#![allow(unsafe_code)]

mod background;
mod events;
pub mod exec;
mod files;
mod fork;
pub mod init;
pub mod initramfs;
mod listeners;
pub mod outbox;
mod pages;
mod server;
mod service;
mod session;
mod sockets;

use std::time::Instant;

use rustix::event::Timespec;

pub use server::Server;

/// The time left until `end`.
fn timespec(end: Instant) -> Timespec {
    let left = end.saturating_duration_since(Instant::now());
    Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
}

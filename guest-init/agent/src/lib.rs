//! PID 1 of Cabana's guests.
//!
//! - [`exec`] runs commands for a host over any stream; it needs neither a guest nor privileges.
//! - [`init`] is the life of PID 1, from the first instruction to the end of the machine.
//! - [`initramfs`] packs the agent for the kernel, on the host.

// `unsafe` is needed for what happens between fork and exec, for signals by number, for vsock
// addresses, for a few calls that no safe wrapper covers, for the time stamp counter and for the exit
// port.
#![allow(unsafe_code)]

pub mod exec;
pub mod init;
pub mod initramfs;

//! PID 1 of Cabana's guests.
//!
//! [`exec`] runs commands for a host over any stream and needs neither a guest nor privileges.

// `unsafe` is needed for what happens between fork and exec, for signals by number, for vsock
// addresses, for the time stamp counter and for the exit port.
#![allow(unsafe_code)]

pub mod exec;

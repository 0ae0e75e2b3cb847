//! What differs between operating systems, behind one set of names: memory mappings, events that
//! one thread signals and another waits for, an event loop, positional and sparse file access,
//! and the life of a process.
//!
//! Everything above this crate is free of `cfg(target_os)`.

// Mappings and system calls without a safe wrapper need `unsafe`; it is confined to `sys`.
#![allow(unsafe_code)]

pub mod proxies;
mod sys;

pub use sys::*;

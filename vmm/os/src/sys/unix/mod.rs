//! What Linux and macOS have in common: `mmap(2)`, `preadv(2)`, clocks.

#[cfg(any(target_os = "macos", test))]
pub(super) mod channel;
pub(super) mod clocks;
pub(super) mod files;
pub(super) mod handle;
pub(super) mod inodes;
pub(super) mod local;
pub(super) mod mapping;
#[cfg(any(target_os = "macos", test))]
pub(super) mod packets;
pub(super) mod pieces;
pub(super) mod programs;
pub mod signals;
pub mod terminal;

#[cfg(target_os = "linux")]
use super::linux::{memory as host, socket as host_socket};
#[cfg(target_os = "macos")]
use super::macos::{memory as host, socket as host_socket};

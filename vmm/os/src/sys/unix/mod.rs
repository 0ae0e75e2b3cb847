//! What Linux and macOS have in common: `mmap(2)`, `preadv(2)`.

pub(super) mod mapping;
pub(super) mod pieces;

#[cfg(target_os = "linux")]
use super::linux::memory as host;
#[cfg(target_os = "macos")]
use super::macos::memory as host;

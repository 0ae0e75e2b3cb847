//! What the kernel is told of memory that is mapped (`madvise(2)`).

use std::io;

use rustix::mm::{Advice, madvise};

/// Asks for 2 MiB pages.
///
/// # Safety
/// The range is mapped.
pub(in crate::sys) unsafe fn advise_huge(at: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise; the content stays.
    Ok(unsafe { madvise(at.cast(), len, Advice::LinuxHugepage) }?)
}

/// Gives whole pages back.
///
/// # Safety
/// The range is mapped, and nobody has Rust references into it.
pub(in crate::sys) unsafe fn discard(at: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise.
    Ok(unsafe { madvise(at.cast(), len, Advice::LinuxDontNeed) }?)
}

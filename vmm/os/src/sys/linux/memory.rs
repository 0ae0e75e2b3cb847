//! What the kernel is told of memory that is mapped (`madvise(2)`).

use std::io;

use rustix::mm::{Advice, madvise};

/// `MADV_COLLAPSE` (include/uapi/asm-generic/mman-common.h), which rustix has not, and libc not for every C library.
const MADV_COLLAPSE: libc::c_int = 25;

/// Asks for 2 MiB pages.
///
/// # Safety
/// The range is mapped.
pub(in crate::sys) unsafe fn advise_huge(at: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise; the content stays.
    Ok(unsafe { madvise(at.cast(), len, Advice::LinuxHugepage) }?)
}

/// Asks for small pages, whatever the host's rule is.
///
/// # Safety
/// The range is mapped.
pub(in crate::sys) unsafe fn advise_small(at: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise; the content stays.
    Ok(unsafe { madvise(at.cast(), len, Advice::LinuxNoHugepage) }?)
}

/// Gives whole pages back.
///
/// # Safety
/// The range is mapped, and nobody has Rust references into it.
pub(in crate::sys) unsafe fn discard(at: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise.
    Ok(unsafe { madvise(at.cast(), len, Advice::LinuxDontNeed) }?)
}

/// Gives the process pages of its own, all of them, with what is there.
///
/// # Safety
/// The range is mapped.
pub(in crate::sys) unsafe fn populate(at: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise; the content stays.
    Ok(unsafe { madvise(at.cast(), len, Advice::LinuxPopulateWrite) }?)
}

/// Begins to read what is there of files.
///
/// # Safety
/// The range is mapped.
pub(in crate::sys) unsafe fn will_need(at: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise; the content stays.
    Ok(unsafe { madvise(at.cast(), len, Advice::WillNeed) }?)
}

/// Makes pages that stand beside each other come in together, or one by one: who touches a page of a file is
/// given others of the same mapping. Whether pages are part of a core dump is what makes mappings differ.
///
/// # Safety
/// The range is mapped.
pub(in crate::sys) unsafe fn separate(at: *mut u8, len: usize, apart: bool) -> io::Result<()> {
    let advice = if apart { Advice::LinuxDontDump } else { Advice::LinuxDoDump };
    // SAFETY: the caller's promise; the content stays.
    Ok(unsafe { madvise(at.cast(), len, advice) }?)
}

/// Puts what is there of a file into pages of 2 MiB, for all that map it (Linux 6.1, and file systems that can).
///
/// # Safety
/// The range is mapped.
pub(in crate::sys) unsafe fn enlarge(at: *mut u8, len: usize) -> io::Result<()> {
    // Pages that are large already cannot be entered where the process has no table for them yet.
    // SAFETY: the caller's promise; the content stays.
    let _ = unsafe { madvise(at.cast(), len.min(4096), Advice::LinuxPopulateRead) };
    // SAFETY: as above.
    let result = unsafe { libc::madvise(at.cast(), len, MADV_COLLAPSE) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

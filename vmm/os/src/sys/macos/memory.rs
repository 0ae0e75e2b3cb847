//! What the system is told of memory that is mapped.

use std::io;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// macOS chooses the size of pages by itself.
///
/// # Safety
/// None is needed here; other systems ask for a range that is mapped.
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub(in crate::sys) unsafe fn advise_huge(_at: *mut u8, _len: usize) -> io::Result<()> {
    Ok(())
}

/// macOS chooses the size of pages by itself.
///
/// # Safety
/// None is needed here; other systems ask for a range that is mapped.
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub(in crate::sys) unsafe fn advise_small(_at: *mut u8, _len: usize) -> io::Result<()> {
    Ok(())
}

/// Gives whole pages back: new memory takes their place.
///
/// # Safety
/// The range is mapped, and nobody has Rust references into it.
pub(in crate::sys) unsafe fn discard(at: *mut u8, len: usize) -> io::Result<()> {
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: the caller's promise.
    unsafe { mmap_anonymous(at.cast(), len, prot, flags | MapFlags::FIXED)? };
    Ok(())
}

/// macOS has no such thing.
///
/// # Safety
/// None is needed here; other systems ask for a range that is mapped.
pub(in crate::sys) unsafe fn populate(_at: *mut u8, _len: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Nothing is read before it is touched.
///
/// # Safety
/// None is needed here; other systems ask for a range that is mapped.
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub(in crate::sys) unsafe fn will_need(_at: *mut u8, _len: usize) -> io::Result<()> {
    Ok(())
}

/// macOS does not say which pages a process has touched, so that it makes no difference.
///
/// # Safety
/// None is needed here; other systems ask for a range that is mapped.
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub(in crate::sys) unsafe fn separate(_at: *mut u8, _len: usize, _apart: bool) -> io::Result<()> {
    Ok(())
}

/// macOS chooses the size of pages by itself.
///
/// # Safety
/// None is needed here; other systems ask for a range that is mapped.
pub(in crate::sys) unsafe fn enlarge(_at: *mut u8, _len: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

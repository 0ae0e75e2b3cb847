//! Files: positional vectored I/O on raw memory, holes, locks.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

pub use std::os::unix::fs::FileExt;

pub(in crate::sys) use crate::sys::portable::copy_in_kernel;
pub use crate::sys::sparse::{copy_sparse, copy_sparse_range, same_content};
pub use crate::sys::unix::files::{
    adopt, allocated, exchange, for_each_data, is_same, lock, open_folder, open_folder_itself,
    private_folder, remove_tree, room, seal, sync_folder, try_lock, try_lock_shared,
};
use crate::sys::unix::files::{create_then_rename, folder, named_then_unlinked};
pub use crate::sys::unix::pieces::{IoPiece, read_pieces_at, write_pieces_at};

/// Gives `len` bytes from `offset` back to the host's file system; they read as zeroes. What are no whole blocks, or
/// a file system that cannot punch holes, keeps the data (`Ok(false)`).
pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    let too_large = |_| io::ErrorKind::InvalidInput;
    let hole = libc::fpunchhole_t {
        fp_flags: 0,
        reserved: 0,
        fp_offset: offset.try_into().map_err(too_large)?,
        fp_length: len.try_into().map_err(too_large)?,
    };
    // SAFETY: the structure is read; the descriptor is open.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_PUNCHHOLE, &raw const hole) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOTSUP | libc::ENOTTY) => Ok(false),
        _ => Err(error),
    }
}

/// macOS has no way to zero a range but to write zeroes (`Ok(false)`).
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub fn zero_range(_file: &File, _offset: u64, _len: u64) -> io::Result<bool> {
    Ok(false)
}

/// A file without a name in `dir`, but for a moment: it is gone when the last handle is, even after SIGKILL.
pub fn unnamed(dir: &Path) -> io::Result<File> {
    named_then_unlinked(dir)
}

/// No file system of macOS lies in memory that is short.
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub fn is_in_memory(_file: &File) -> io::Result<bool> {
    Ok(false)
}

/// Makes the file `path` with what `fill` writes: whole or not at all. Killed half-way it leaves a file whose name
/// begins with a dot. Fails if the name is taken.
pub fn create_whole(path: &Path, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    create_then_rename(path, folder(path), fill)
}

/// Every file may have holes.
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub(in crate::sys) fn let_have_holes(_file: &File) -> io::Result<()> {
    Ok(())
}

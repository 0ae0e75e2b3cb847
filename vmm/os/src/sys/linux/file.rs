//! Files as disks: holes, sparse copies, locks.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use rustix::fs::{CWD, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

pub use std::os::unix::fs::FileExt;

pub use crate::sys::sparse::{copy_sparse, copy_sparse_range, same_content};
pub use crate::sys::unix::files::{
    adopt, allocated, exchange, for_each_data, is_same, lock, open_folder, open_folder_itself,
    private_folder, remove_tree, room, seal, sync_folder, try_lock, try_lock_shared,
};
use crate::sys::unix::files::{create_then_rename, folder, named_then_unlinked};
pub use crate::sys::unix::pieces::{IoPiece, read_pieces_at, write_pieces_at};

/// Gives `len` bytes from `offset` back to the host's file system; they read as zeroes. A file
/// system that cannot punch holes keeps the data (`Ok(false)`).
pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    unsupported_is_false(rustix::fs::fallocate(file, flags, offset, len))
}

/// Makes `len` bytes from `offset` read as zeroes without moving data, where the file system can.
pub fn zero_range(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    unsupported_is_false(rustix::fs::fallocate(file, flags, offset, len))
}

fn unsupported_is_false(result: Result<(), Errno>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A file without a name in `dir`: it is gone when the last handle is, even after SIGKILL.
pub fn unnamed(dir: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(fd.into()),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => named_then_unlinked(dir),
        Err(error) => Err(error.into()),
    }
}

/// Whether the file lies in memory (tmpfs), so that putting something into it frees none.
pub fn is_in_memory(file: &File) -> io::Result<bool> {
    // `TMPFS_MAGIC` of the kernel's `magic.h`.
    Ok(rustix::fs::fstatfs(file)?.f_type == 0x0102_1994)
}

/// Copies a range within the kernel, as far as that can; returns how many bytes it has copied.
pub(in crate::sys) fn copy_in_kernel(
    from: &File,
    range: Range<u64>,
    to: &File,
    at: u64,
) -> io::Result<u64> {
    let (mut read_at, mut write_at) = (range.start, at);
    while read_at < range.end {
        let left = usize::try_from(range.end - read_at).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), left) {
            Ok(0) | Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => break,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(read_at - range.start)
}

/// Makes the file `path` with what `fill` writes: whole or not at all, even after SIGKILL. Fails if
/// the name is taken.
pub fn create_whole(path: &Path, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let dir = folder(path);
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => {
            let file = File::from(fd);
            fill(&file)?;
            let handle = format!("/proc/self/fd/{}", file.as_raw_fd());
            let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
            Ok(rustix::fs::linkat(CWD, handle, CWD, path, follow)?)
        }
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => create_then_rename(path, dir, fill),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unnamed_file_never_has_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = unnamed(dir.path()).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_hole_can_be_punched_here() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 8192], 0).unwrap();
        assert!(punch_hole(&file, 0, 4096).unwrap());
        let mut bytes = [9; 2];
        file.read_exact_at(&mut bytes, 4095).unwrap();
        assert_eq!(bytes, [0, 1]);
    }
}

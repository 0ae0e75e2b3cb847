//! Files as disks: holes, sparse copies, locks.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use rustix::fs::{CWD, FallocateFlags, FlockOperation, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

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

/// For file systems without `O_TMPFILE` (9p, some FUSE): a name that lives for a moment.
fn named_then_unlinked(dir: &Path) -> io::Result<File> {
    let path = dir.join(format!(".cabana-{}-{:p}", std::process::id(), &raw const dir));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Makes the file `path` with what `fill` writes: whole or not at all, even after SIGKILL. Fails if
/// the name is taken.
pub fn create_whole(path: &Path, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
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

/// For file systems without `O_TMPFILE`. Killed half-way it leaves a file whose name begins with a
/// dot.
fn create_then_rename(
    path: &Path,
    dir: &Path,
    fill: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let unfinished = dir.join(format!(".cabana-{}-unfinished", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&unfinished)?;
    let named = fill(&file).and_then(|()| {
        // A link fails where the name is taken; a rename would replace it.
        Ok(rustix::fs::linkat(CWD, &unfinished, CWD, path, rustix::fs::AtFlags::empty())?)
    });
    std::fs::remove_file(&unfinished)?;
    named
}

/// Copies the data of `from` into `to` and leaves its holes as holes; `to` gets the same length.
pub fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let len = from.metadata()?.len();
    to.set_len(len)?;
    copy_sparse_range(from, 0..len, to, 0)
}

/// Copies the data of a range of `from` to `to` from `at` on; where the range has holes, `to` is left
/// alone.
pub fn copy_sparse_range(from: &File, range: Range<u64>, to: &File, at: u64) -> io::Result<()> {
    for_each_data(from, range.clone(), |data| {
        copy_range(from, to, data.start, data.end, at + (data.start - range.start))
    })
}

/// Calls `each` with the parts of a range that are no holes, in order.
pub fn for_each_data(
    file: &File,
    range: Range<u64>,
    mut each: impl FnMut(Range<u64>) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < range.end => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(range.end);
        each(start..end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, start: u64, end: u64, at: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let (mut read_at, mut write_at) = (start, at);
    while read_at < end {
        let left = usize::try_from(end - read_at).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), left) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let mut buffer = vec![0u8; 64 << 10];
    while read_at < end {
        let len = buffer.len().min(usize::try_from(end - read_at).unwrap_or(usize::MAX));
        let count = from.read_at(&mut buffer[..len], read_at)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all_at(&buffer[..count], read_at)?;
        read_at += count as u64;
    }
    Ok(())
}

/// Have two files the same first `len` bytes?
pub fn same_content(one: &File, other: &File, len: u64) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let (mut first, mut second) = (vec![0u8; 64 << 10], vec![0u8; 64 << 10]);
    let mut at = 0;
    while at < len {
        let count = first.len().min(usize::try_from(len - at).unwrap_or(usize::MAX));
        one.read_exact_at(&mut first[..count], at)?;
        other.read_exact_at(&mut second[..count], at)?;
        if first[..count] != second[..count] {
            return Ok(false);
        }
        at += count as u64;
    }
    Ok(true)
}

/// Takes the file for this process alone; false if another holds it. Freed with the last handle.
pub fn try_lock(file: &File) -> io::Result<bool> {
    flock(file, FlockOperation::NonBlockingLockExclusive)
}

/// Takes the file together with others that only read it; false if somebody holds it alone.
pub fn try_lock_shared(file: &File) -> io::Result<bool> {
    flock(file, FlockOperation::NonBlockingLockShared)
}

fn flock(file: &File, operation: FlockOperation) -> io::Result<bool> {
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn a_sparse_copy_has_the_same_bytes_and_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"early", 0).unwrap();
        from.write_all_at(b"late", 48 << 20).unwrap();
        copy_sparse(&from, &to).unwrap();
        assert_eq!(to.metadata().unwrap().len(), 64 << 20);
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
        let mut bytes = [0; 4];
        to.read_exact_at(&mut bytes, 48 << 20).unwrap();
        assert_eq!(&bytes, b"late");
    }

    #[test]
    fn a_punched_hole_reads_as_zero() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 8192], 0).unwrap();
        assert!(punch_hole(&file, 0, 4096).unwrap());
        let mut bytes = [9; 2];
        file.read_exact_at(&mut bytes, 4095).unwrap();
        assert_eq!(bytes, [0, 1]);
    }

    #[test]
    fn a_lock_is_held_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let first = File::create(&path).unwrap();
        assert!(try_lock(&first).unwrap());
        let second = File::open(&path).unwrap();
        assert!(!try_lock(&second).unwrap());
        drop(first);
        assert!(try_lock_shared(&second).unwrap());
        let third = File::open(&path).unwrap();
        assert!(try_lock_shared(&third).unwrap());
        assert!(!try_lock(&third).unwrap());
    }

    #[test]
    fn an_unnamed_file_leaves_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = unnamed(dir.path()).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    type Make = fn(&Path, &Path, fn(&File) -> io::Result<()>) -> io::Result<()>;

    #[test]
    fn a_file_is_made_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let ways: [Make; 2] = [
            |path, _, fill| create_whole(path, fill),
            |path, dir, fill| create_then_rename(path, dir, fill),
        ];
        for make in ways {
            assert!(make(&path, dir.path(), |_| Err(io::ErrorKind::StorageFull.into())).is_err());
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
            make(&path, dir.path(), |file| file.write_all_at(b"x", 0)).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"x");
            assert!(make(&path, dir.path(), |_| Ok(())).is_err(), "the name is taken");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
            std::fs::remove_file(&path).unwrap();
        }
    }
}

//! The few things that std cannot ask of a Unix file system.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags};
use rustix::io::Errno;

/// What changes when a file's content changes: size, and modification and status-change times in ns.
///
/// Device and inode are left out on purpose: they differ between mounts of the same disk (9p,
/// overlays, a reboot), and a file that took another's place has another status-change time anyway.
pub(crate) fn times(metadata: &Metadata) -> (u64, i128, i128) {
    let ns = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    (
        metadata.size(),
        ns(metadata.mtime(), metadata.mtime_nsec()),
        ns(metadata.ctime(), metadata.ctime_nsec()),
    )
}

/// The identity of a file or folder on this machine, for comparing two looks at one path.
pub(crate) fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Opens a folder, and not what a link in its place leads to.
pub(crate) fn open_folder(path: &Path) -> io::Result<File> {
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits() as i32;
    File::options().read(true).custom_flags(flags).open(path)
}

/// Bytes that a file takes on disk.
pub(crate) fn allocated(metadata: &Metadata) -> u64 {
    metadata.blocks() * 512
}

/// Takes away every permission to write.
pub(crate) fn make_read_only(file: &File) -> io::Result<()> {
    let mut permissions = file.metadata()?.permissions();
    permissions.set_mode(permissions.mode() & 0o555 | 0o444);
    file.set_permissions(permissions)
}

/// Locks a file against other processes; `false` if another has it and `wait` is not set.
pub(crate) fn lock(file: &File, wait: bool) -> io::Result<bool> {
    let operation =
        if wait { FlockOperation::LockExclusive } else { FlockOperation::NonBlockingLockExclusive };
    loop {
        match rustix::fs::flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Puts `new` in the place of `old` and `old` in the place of `new`, in one step.
///
/// `Ok(false)` where the file system cannot do that.
pub(crate) fn exchange(new: &Path, old: &Path) -> io::Result<bool> {
    match rustix::fs::renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The start of the next run of data at or after `offset`, and its end; `None` behind the last one.
///
/// A file system that knows no holes reports one run up to the end.
pub(crate) fn next_data(file: &File, offset: u64) -> io::Result<Option<(u64, u64)>> {
    use rustix::fs::{SeekFrom, seek};
    let start = match seek(file, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some((start, seek(file, SeekFrom::Hole(start))?)))
}

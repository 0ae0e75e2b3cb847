//! The few things that std cannot ask of a Unix file system.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::manifest::Run;

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

/// Makes a folder and those above it.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), make_folder)?;
    match fs::create_dir(path) {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => {
            adopt(path);
            Ok(())
        }
    }
}

/// Gives a new file or folder to the owner of the folder that it is in.
///
/// Images are built by root, often in the store of the user who called sudo: without this the user
/// could neither remove what was built nor build anything else. Where it is not allowed, nothing
/// needs it.
pub(crate) fn adopt(path: &Path) {
    let owner = |path: &Path| {
        fs::symlink_metadata(path).ok().map(|metadata| (metadata.uid(), metadata.gid()))
    };
    let Some((theirs, ours)) = path.parent().and_then(owner).zip(owner(path)) else { return };
    if theirs.0 != ours.0 {
        let _ = std::os::unix::fs::lchown(path, Some(theirs.0), Some(theirs.1));
    }
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

/// Where a file has data, in order. A file system that knows no holes reports one run of all.
pub(crate) fn data_runs(file: &File) -> io::Result<Vec<Run>> {
    use rustix::fs::{SeekFrom, seek};
    let mut runs = Vec::new();
    let mut offset = 0;
    loop {
        let start = match seek(file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(runs),
            Err(error) => return Err(error.into()),
        };
        offset = seek(file, SeekFrom::Hole(start))?;
        runs.push(Run(start, offset - start));
    }
}

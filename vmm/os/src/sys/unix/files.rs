//! Files on Linux and macOS: holes, locks, files that appear whole.

use std::fs::{DirBuilder, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FlockOperation, RenameFlags, SeekFrom};
use rustix::io::Errno;

/// Bytes that a file takes on the disk.
pub fn allocated(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks() * 512)
}

/// Bytes for which the file's file system has room.
pub fn room(file: &File) -> io::Result<u64> {
    let found = rustix::fs::fstatvfs(file)?;
    // A tmpfs without a limit says that it has no blocks at all.
    let limited = found.f_blocks > 0;
    Ok(if limited { found.f_bavail.saturating_mul(found.f_frsize) } else { u64::MAX })
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

/// Makes the entry of a path in its folder last.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder(path))?.sync_all()
}

/// The folder of a path.
pub(in crate::sys) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// For file systems without `O_TMPFILE` (9p, some FUSE): a name that lives for a moment.
pub(in crate::sys) fn named_then_unlinked(dir: &Path) -> io::Result<File> {
    let path = dir.join(format!(".cabana-{}-{:p}", std::process::id(), &raw const dir));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// For file systems without `O_TMPFILE`. Killed half-way it leaves a file whose name begins with a
/// dot.
pub(in crate::sys) fn create_then_rename(
    path: &Path,
    dir: &Path,
    fill: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let unfinished = dir.join(format!(".cabana-{}-unfinished", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&unfinished)?;
    let named = fill(&file).and_then(|()| {
        // A link fails where the name is taken; a rename would replace it.
        Ok(rustix::fs::linkat(CWD, &unfinished, CWD, path, AtFlags::empty())?)
    });
    std::fs::remove_file(&unfinished)?;
    named
}

/// Takes the file for this process alone; false if another holds it. Freed with the last handle.
pub fn try_lock(file: &File) -> io::Result<bool> {
    flock(file, FlockOperation::NonBlockingLockExclusive)
}

/// Takes the file together with others that only read it; false if somebody holds it alone.
pub fn try_lock_shared(file: &File) -> io::Result<bool> {
    flock(file, FlockOperation::NonBlockingLockShared)
}

/// Waits until the file is this process's alone.
pub fn lock(file: &File) -> io::Result<()> {
    flock(file, FlockOperation::LockExclusive).map(drop)
}

/// Opens a folder, links to it followed, for another process to open again; anything else fails at once.
pub fn open_folder(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_DIRECTORY).open(path)
}

/// Opens a folder, and not what a link in its place leads to.
pub fn open_folder_itself(path: &Path) -> io::Result<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    File::options().read(true).custom_flags(flags).open(path)
}

/// Gives a new file or folder to the owner of the folder that it is in. Where that is not allowed nothing needs it.
pub fn adopt(path: &Path) {
    let owner = |path: &Path| {
        std::fs::symlink_metadata(path).ok().map(|metadata| (metadata.uid(), metadata.gid()))
    };
    let Some((theirs, ours)) = path.parent().and_then(owner).zip(owner(path)) else { return };
    if theirs.0 != ours.0 {
        let _ = std::os::unix::fs::lchown(path, Some(theirs.0), Some(theirs.1));
    }
}

/// Lets nobody write to a file any more, and brings it to the disk; returns it open to be read.
pub fn seal(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    let mut permissions = file.metadata()?.permissions();
    permissions.set_mode(permissions.mode() & 0o555 | 0o444);
    file.set_permissions(permissions)?;
    file.sync_all()?;
    Ok(file)
}

/// Removes a folder with all that is in it, also what nobody may write to; links are removed, not followed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    std::fs::remove_dir_all(path)
}

/// Puts each of two files or folders in the other's place, in one step; `Ok(false)` where the file system cannot do that.
pub fn exchange(one: &Path, other: &Path) -> io::Result<bool> {
    match rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether two files are one.
pub fn is_same(one: &File, other: &File) -> io::Result<bool> {
    let [one, other] = [one.metadata()?, other.metadata()?];
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// Makes a folder for this user alone if it is not there; false if what is there is not.
pub fn private_folder(path: &Path) -> io::Result<bool> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = std::fs::symlink_metadata(path)?;
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    let open = metadata.permissions().mode() & 0o077 != 0;
    Ok(metadata.is_dir() && ours && !open)
}

fn flock(file: &File, operation: FlockOperation) -> io::Result<bool> {
    loop {
        match rustix::fs::flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::{FileExt, create_whole};

    #[test]
    fn a_folder_that_others_may_look_into_is_not_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        assert!(private_folder(&path).unwrap());
        assert!(private_folder(&path).unwrap());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(!private_folder(&path).unwrap());
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

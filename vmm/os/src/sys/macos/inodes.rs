//! Inodes on macOS.
//!
//! An inode is held by a descriptor that is good for events and attributes alone (`O_EVTONLY`), and found anew by its
//! number (`/.vol`, which APFS and HFS+ have): nobody can swap it for another on the way. What must not be opened
//! (fifos, sockets, devices), and what this user may not read, is held by its number alone. A child is found beneath
//! its directory's descriptor, by one component and without following links.
//!
//! An inode that has lost its last name can be looked at while it is held, and not be opened any more.
//!
//! **Placeholders** of cloud folders (`SF_DATALESS`) are filled by the kernel when they are read; it is asked for that,
//! once, and where it refuses or fails, reading does.

use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Once;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

pub use crate::sys::portable::allocate::{allocate, copy_range};
use crate::sys::portable::listing::{Entries, Item, Sequence};
use crate::sys::tree::{Access, Moment, Naming, NewTime, Space, Stat, flags, mode};
pub use crate::sys::unix::inodes::{
    append_at, c_name, descriptor_limit, owner, path_bytes, path_from_bytes, seek_sparse,
    set_append, set_len, set_permissions,
};

/// What this host's file systems make of names.
pub const NAMING: Naming = Naming::Macos;

/// The longest list of extended attributes that is asked for.
const XATTR_LIST_MAX: usize = 65536;
/// What holds an inode: no access to its content, itself if it is a link.
const HOLD: OFlags = OFlags::from_bits_retain((libc::O_EVTONLY | libc::O_SYMLINK) as u32)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);

/// The number that Linux has for one of macOS (`sys/errno.h`); the first ones are the same.
pub(in crate::sys) fn linux_error(code: i32) -> i32 {
    /// EIO.
    const FAILED: i32 = 5;
    match code {
        // What a placeholder that may not be filled answers; nothing else here does.
        libc::EDEADLK | libc::ETIMEDOUT => FAILED,
        1..=34 => code,
        libc::EAGAIN => 11,
        libc::ENOTSUP | libc::EOPNOTSUPP => 95,
        libc::ELOOP => 40,
        libc::ENAMETOOLONG => 36,
        libc::ENOTEMPTY => 39,
        libc::EDQUOT => 122,
        libc::ESTALE => 116,
        libc::ENOSYS => 38,
        libc::EOVERFLOW => 75,
        libc::EILSEQ => 84,
        libc::ENOATTR => 61,
        _ => FAILED,
    }
}

/// A name for an inode, without access to its content.
#[derive(Debug)]
pub struct Handle {
    held: Option<OwnedFd>,
    device: i32,
    ino: u64,
}

impl Handle {
    /// The directory at `path`, which the host's user chose: links in it are followed. Its volume has to find files by
    /// their numbers.
    pub fn of_directory(path: &Path) -> Result<Self> {
        fill_placeholders();
        let flags = OFlags::from_bits_retain(libc::O_EVTONLY as u32) | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags | OFlags::DIRECTORY, Mode::empty())?;
        if rustix::fs::fstatfs(&fd)?.f_flags & libc::MNT_DOVOLFS as u32 == 0 {
            let why = "its volume does not find files by their numbers, as APFS and HFS+ do";
            return Err(io::Error::new(ErrorKind::Unsupported, why));
        }
        Self::holding(fd)
    }

    fn holding(fd: OwnedFd) -> Result<Self> {
        let found = rustix::fs::fstat(&fd)?;
        Ok(Self { held: Some(fd), device: found.st_dev, ino: found.st_ino })
    }

    /// A second handle of the same inode.
    pub fn try_clone(&self) -> Result<Self> {
        let held = self.held.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(Self { held, ..*self })
    }

    /// The folder at `path` beneath this one, which an empty path names; no link is followed.
    pub fn beneath(&self, path: &Path) -> Result<Self> {
        let mut folder = self.try_clone()?;
        for component in path.components() {
            folder = match component {
                Component::CurDir => continue,
                Component::Normal(name) => folder.child(&c_name(Path::new(name))?)?,
                _ => return Err(ErrorKind::InvalidInput.into()),
            };
            if folder.stat()?.kind() != mode::DIRECTORY {
                return Err(Errno::NOTDIR.into());
            }
        }
        Ok(folder)
    }

    /// Where the inode is now.
    pub fn path(&self) -> Result<PathBuf> {
        let path = rustix::fs::getpath(self.descriptor()?)?;
        Ok(OsString::from_vec(path.into_bytes()).into())
    }

    /// Its path from `root` on; ESTALE if it is not beneath it any more.
    pub fn path_from(&self, root: &Self) -> Result<PathBuf> {
        let (root, path) = (root.path()?, self.path()?);
        Ok(path.strip_prefix(&root).map_err(|_| Errno::STALE)?.to_owned())
    }

    /// The entry `name` of this directory, itself if it is a link.
    pub fn child(&self, name: &CStr) -> Result<Self> {
        let directory = self.descriptor()?;
        let found = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let by_number = Self { held: None, device: found.st_dev, ino: found.st_ino };
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile | FileType::Directory | FileType::Symlink => {
                match rustix::fs::openat(directory, name, HOLD, Mode::empty()) {
                    Ok(fd) => Self::holding(fd),
                    Err(Errno::ACCESS | Errno::PERM) => Ok(by_number),
                    Err(error) => Err(error.into()),
                }
            }
            _ => Ok(by_number),
        }
    }

    /// A handle of the inode that `file` has open.
    pub fn of_file(file: &File) -> Result<Self> {
        Self::holding(file.as_fd().try_clone_to_owned()?)
    }

    /// A handle of the inode that `file` has open and that was just made in this directory as `name`.
    pub fn of_made(&self, name: &CStr, file: &File, made: &Stat) -> Result<Self> {
        match self.child(name) {
            Ok(handle) if handle.ino == made.ino => Ok(handle),
            _ => Self::of_file(file),
        }
    }

    /// What the host says of the inode.
    pub fn stat(&self) -> Result<Stat> {
        let found = match &self.held {
            Some(fd) => rustix::fs::fstat(fd)?,
            None => rustix::fs::statat(CWD, &*self.by_number(), AtFlags::SYMLINK_NOFOLLOW)?,
        };
        Ok(Stat::from(found))
    }

    /// The same; it takes as much here.
    pub fn attributes(&self) -> Result<Stat> {
        self.stat()
    }

    /// What the host says of the entry `name` of this directory, itself if it is a link.
    pub fn stat_child(&self, name: &CStr) -> Result<Stat> {
        let found = rustix::fs::statat(self.descriptor()?, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Stat::from(found))
    }

    /// Opens the inode, a regular file or a directory, for I/O. ESTALE if it has lost its last name.
    pub fn open(&self, access: Access) -> Result<File> {
        let flags = open_flags(access) | OFlags::NOFOLLOW;
        let file = match rustix::fs::open(&*self.by_number(), flags, Mode::empty()) {
            Err(Errno::NOENT) => return Err(Errno::STALE.into()),
            opened => File::from(opened?),
        };
        let found = rustix::fs::fstat(&file)?;
        if (found.st_dev, found.st_ino) != (self.device, self.ino) {
            return Err(Errno::STALE.into());
        }
        Ok(file)
    }

    /// Makes a file that did not exist; it gets just the permissions `mode`. Also what the host says of it.
    pub fn create(&self, name: &CStr, mode: u32, access: Access) -> Result<(File, Stat)> {
        let flags = open_flags(access) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file: File =
            rustix::fs::openat(self.descriptor()?, name, flags, permissions(mode))?.into();
        // This process's umask has no say.
        rustix::fs::fchmod(&file, permissions(mode))?;
        let stat = stat(&file)?;
        Ok((file, stat))
    }

    /// There are no files without a name that could get one.
    pub fn create_unnamed(&self, _mode: u32, _access: Access) -> Result<(File, Stat)> {
        Err(Errno::NOTSUP.into())
    }

    /// Makes a directory.
    pub fn make_directory(&self, name: &CStr, mode: u32) -> Result<()> {
        Ok(rustix::fs::mkdirat(self.descriptor()?, name, permissions(mode))?)
    }

    /// Makes a fifo; sockets are made by those who listen alone.
    pub fn make_special(&self, name: &CStr, kind: u32, mode: u32) -> Result<()> {
        if kind != mode::FIFO {
            return Err(Errno::NOTSUP.into());
        }
        let directory = self.descriptor()?.as_raw_fd();
        // SAFETY: the name ends with a NUL and is only read.
        let made = unsafe { libc::mkfifoat(directory, name.as_ptr(), (mode & mode::ALL) as u16) };
        checked(made)
    }

    /// Makes a symbolic link; nobody here ever follows it.
    pub fn make_symlink(&self, name: &CStr, target: &CStr) -> Result<()> {
        Ok(rustix::fs::symlinkat(target, self.descriptor()?, name)?)
    }

    /// Gives the inode `target` one more name in this directory.
    pub fn link(&self, name: &CStr, target: &Self) -> Result<()> {
        let (from, directory) = (target.by_number(), self.descriptor()?);
        Ok(rustix::fs::linkat(CWD, &*from, directory, name, AtFlags::empty())?)
    }

    /// Removes a name that is not a directory's.
    pub fn unlink(&self, name: &CStr) -> Result<()> {
        match rustix::fs::unlinkat(self.descriptor()?, name, AtFlags::empty()) {
            // What Linux says of a directory.
            Err(Errno::PERM) if self.stat_child(name)?.kind() == mode::DIRECTORY => {
                Err(Errno::ISDIR.into())
            }
            result => Ok(result?),
        }
    }

    /// Removes an empty directory.
    pub fn remove_directory(&self, name: &CStr) -> Result<()> {
        Ok(rustix::fs::unlinkat(self.descriptor()?, name, AtFlags::REMOVEDIR)?)
    }

    /// Moves `name` to `to_name` in `to`; [`flags`] say how.
    pub fn rename(&self, name: &CStr, to: &Self, to_name: &CStr, how: u32) -> Result<()> {
        let how = match how {
            0 => 0,
            flags::RENAME_NOREPLACE => libc::RENAME_EXCL,
            flags::RENAME_EXCHANGE => libc::RENAME_SWAP,
            _ => return Err(Errno::INVAL.into()),
        };
        let (from, into) = (self.descriptor()?.as_raw_fd(), to.descriptor()?.as_raw_fd());
        // SAFETY: both names end with a NUL and are only read.
        let moved = unsafe { libc::renameatx_np(from, name.as_ptr(), into, to_name.as_ptr(), how) };
        checked(moved)
    }

    /// Where this symbolic link points.
    pub fn read_link(&self) -> Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(CWD, &*self.by_number(), Vec::new())?.into_bytes())
    }

    /// Changes the permissions; not of a symbolic link.
    pub fn set_mode(&self, mode: u32) -> Result<()> {
        match &self.held {
            Some(fd) => Ok(rustix::fs::fchmod(fd, permissions(mode))?),
            None => Ok(rustix::fs::chmod(&*self.by_number(), permissions(mode))?),
        }
    }

    /// Changes owner and group, where this process may.
    pub fn set_owner(&self, uid: u32, gid: u32) -> Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        match &self.held {
            Some(fd) => Ok(rustix::fs::fchown(fd, uid, gid)?),
            None => Ok(rustix::fs::chownat(CWD, &*self.by_number(), uid, gid, no_follow)?),
        }
    }

    /// Sets the times of access and modification; `None` leaves one as it is.
    pub fn set_times(&self, accessed: Option<NewTime>, modified: Option<NewTime>) -> Result<()> {
        let times =
            Timestamps { last_access: timespec(accessed), last_modification: timespec(modified) };
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        match &self.held {
            Some(fd) => Ok(rustix::fs::futimens(fd, &times)?),
            None => Ok(rustix::fs::utimensat(CWD, &*self.by_number(), &times, no_follow)?),
        }
    }

    /// The room of its file system.
    pub fn space(&self) -> Result<Space> {
        let found = match &self.held {
            Some(fd) => rustix::fs::fstatfs(fd)?,
            None => rustix::fs::statfs(&*self.by_number())?,
        };
        Ok(Space {
            block: found.f_bsize.into(),
            blocks: found.f_blocks,
            free: found.f_bfree,
            available: found.f_bavail,
            files: found.f_files,
            free_files: found.f_ffree,
        })
    }

    /// The length of an extended attribute.
    pub fn xattr_len(&self, name: &CStr) -> Result<usize> {
        Ok(rustix::fs::fgetxattr(self.descriptor()?, name, &mut [0u8; 0][..])?)
    }

    /// Reads an extended attribute into `buffer`.
    pub fn xattr(&self, name: &CStr, buffer: &mut [u8]) -> Result<usize> {
        Ok(rustix::fs::fgetxattr(self.descriptor()?, name, buffer)?)
    }

    /// Sets an extended attribute; [`flags`] say how.
    pub fn set_xattr(&self, name: &CStr, value: &[u8], how: u32) -> Result<()> {
        let how = match how {
            0 => XattrFlags::empty(),
            flags::XATTR_CREATE => XattrFlags::CREATE,
            flags::XATTR_REPLACE => XattrFlags::REPLACE,
            _ => return Err(Errno::INVAL.into()),
        };
        Ok(rustix::fs::fsetxattr(self.descriptor()?, name, value, how)?)
    }

    /// The names of the extended attributes, each with its NUL.
    pub fn xattr_names(&self) -> Result<Vec<u8>> {
        let mut names = vec![0; XATTR_LIST_MAX];
        let len = rustix::fs::flistxattr(self.descriptor()?, names.as_mut_slice())?;
        names.truncate(len);
        Ok(names)
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, name: &CStr) -> Result<()> {
        Ok(rustix::fs::fremovexattr(self.descriptor()?, name)?)
    }

    fn descriptor(&self) -> Result<BorrowedFd<'_>> {
        self.held.as_ref().map(AsFd::as_fd).ok_or_else(|| Errno::ACCESS.into())
    }

    /// The path that leads to an inode by its number, wherever it is.
    fn by_number(&self) -> CString {
        CString::new(format!("/.vol/{}/{}", self.device, self.ino)).unwrap_or_default()
    }
}

impl From<rustix::fs::Stat> for Stat {
    fn from(found: rustix::fs::Stat) -> Self {
        let moment = |sec: i64, nsec: i64| Moment { sec, nsec: nsec as u32 };
        Self {
            device: u64::from(found.st_dev as u32),
            mount: 0,
            ino: found.st_ino,
            mode: found.st_mode.into(),
            links: found.st_nlink.into(),
            uid: found.st_uid,
            gid: found.st_gid,
            size: found.st_size as u64,
            blocks: found.st_blocks as u64,
            block_size: found.st_blksize as u32,
            accessed: moment(found.st_atime, found.st_atime_nsec),
            modified: moment(found.st_mtime, found.st_mtime_nsec),
            changed: moment(found.st_ctime, found.st_ctime_nsec),
            born: Some(moment(found.st_birthtime, found.st_birthtime_nsec)),
        }
    }
}

/// What the host says of an open file.
pub fn stat(file: &File) -> Result<Stat> {
    Ok(rustix::fs::fstat(file)?.into())
}

/// What the host says of what is at a path, itself if it is a link.
pub fn look(path: &Path) -> Result<Stat> {
    Ok(rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?.into())
}

/// Brings an open file to the disk; macOS knows no lesser way that does (`F_FULLFSYNC`).
pub fn sync(file: &File, _data_only: bool) -> Result<()> {
    file.sync_all()
}

/// Brings all file systems to the disk, and waits for this directory's.
pub fn sync_file_system(directory: &Handle) -> Result<()> {
    rustix::fs::sync();
    directory.open(Access::READ)?.sync_all()
}

/// No blocks are shared with a file that is there already (`clonefile(2)` makes new ones).
pub(in crate::sys) fn clone_content(_from: &File, _to: &File) -> bool {
    false
}

/// Takes room on the disk for a file up to `end`, of which it has `allocated` bytes.
pub(in crate::sys) fn reserve(file: &File, end: u64, allocated: u64) -> Result<()> {
    let Some(more) = end.checked_sub(allocated).filter(|more| *more > 0) else { return Ok(()) };
    let mut store = libc::fstore_t {
        fst_flags: libc::F_ALLOCATEALL,
        fst_posmode: libc::F_PEOFPOSMODE,
        fst_offset: 0,
        fst_length: more.try_into().map_err(|_| Errno::FBIG)?,
        fst_bytesalloc: 0,
    };
    // SAFETY: the structure is read and written; the descriptor is open.
    checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_PREALLOCATE, &raw mut store) })
}

/// A directory that is being read.
pub type Listing = Sequence<Directory>;

/// An open directory (`readdir(3)`).
pub struct Directory(rustix::fs::Dir);

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Directory").finish_non_exhaustive()
    }
}

impl Entries for Directory {
    fn open(directory: &Handle) -> Result<Self> {
        let flags = open_flags(Access::READ) | OFlags::DIRECTORY;
        let fd = rustix::fs::openat(directory.descriptor()?, c".", flags, Mode::empty())?;
        Ok(Self(rustix::fs::Dir::new(fd)?))
    }

    fn next(&mut self) -> Result<Option<Item>> {
        let Some(entry) = self.0.read() else { return Ok(None) };
        let entry = entry?;
        let kind = u32::from(entry.file_type().as_raw_mode()) & mode::TYPE;
        Ok(Some(Item { name: entry.file_name().to_owned(), ino: entry.ino(), kind }))
    }

    fn rewind(&mut self) -> Result<()> {
        self.0.rewind();
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(rustix::fs::fsync(self.0.fd()?)?)
    }
}

fn open_flags(access: Access) -> OFlags {
    let mut flags = match (access.read, access.write) {
        (true, true) => OFlags::RDWR,
        (false, true) => OFlags::WRONLY,
        _ => OFlags::RDONLY,
    };
    flags.set(OFlags::APPEND, access.append);
    if access.data_sync {
        flags |= OFlags::from_bits_retain(libc::O_DSYNC as u32);
    }
    if access.sync {
        flags |= OFlags::SYNC;
    }
    flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode((mode & mode::ALL) as u16)
}

fn timespec(time: Option<NewTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(NewTime::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(NewTime::At(time)) => Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() },
    }
}

fn checked(result: i32) -> Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks the kernel to fill placeholders when this process reads them (`setiopolicy_np(3)`), as it does unless somebody
/// has asked for the contrary.
fn fill_placeholders() {
    unsafe extern "C" {
        fn setiopolicy_np(iotype: i32, scope: i32, policy: i32) -> i32;
    }
    /// `IOPOL_TYPE_VFS_MATERIALIZE_DATALESS_FILES`, `IOPOL_SCOPE_PROCESS`, `IOPOL_MATERIALIZE_DATALESS_FILES_ON`.
    const MATERIALIZE: (i32, i32, i32) = (3, 0, 2);
    static ASKED: Once = Once::new();
    ASKED.call_once(|| {
        let (kind, scope, policy) = MATERIALIZE;
        // SAFETY: no memory is involved. Where it fails, the kernel's own setting stays.
        unsafe { setiopolicy_np(kind, scope, policy) };
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_linuxs() {
        for (macos, linux) in [
            (libc::ENOENT, 2),
            (libc::EAGAIN, 11),
            (libc::ENOTEMPTY, 39),
            (libc::ENOATTR, 61),
            (libc::EDEADLK, 5),
            (libc::ESTALE, 116),
        ] {
            assert_eq!(linux_error(macos), linux);
        }
    }
}

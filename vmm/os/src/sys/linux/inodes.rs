//! Inodes on Linux.
//!
//! An inode is held by an `O_PATH` handle, which names it and cannot read it. A child is opened
//! beneath its directory's handle, by one component and without following links. An inode is
//! opened for I/O by its handle alone, through `/proc/self/fd`: nobody can swap it for another on the way.
//!
//! It takes 5.8 (`openat2`, `STATX_MNT_ID`, times through an `O_PATH` handle) and /proc.

use std::ffi::{CStr, OsString};
use std::fs::File;
use std::io::{Result, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RawDir, RenameFlags, ResolveFlags,
    SeekFrom, Statx, StatxFlags, Timespec, Timestamps, XattrFlags,
};
use rustix::io::Errno;

use super::returns::after;
use crate::sys::tree::{Access, Listed, Moment, Naming, NewTime, Space, Stat, mode};
pub use crate::sys::unix::inodes::{
    append_at, c_name, descriptor_limit, owner, path_bytes, path_from_bytes, seek_sparse,
    set_append, set_len, set_permissions,
};

/// What this host's file systems make of names.
pub const NAMING: Naming = Naming::Linux;

/// The longest target of a symbolic link, in bytes.
const TARGET_MAX: usize = 4095;

/// The number is Linux's already.
pub(in crate::sys) fn linux_error(code: i32) -> i32 {
    code
}

const WANTED: StatxFlags =
    StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(StatxFlags::MNT_ID);

fn stat_of(fd: impl AsFd) -> Result<Stat> {
    Ok(Stat::from(&after(rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, WANTED))?))
}

impl From<&Statx> for Stat {
    fn from(found: &Statx) -> Self {
        let time =
            |time: rustix::fs::StatxTimestamp| Moment { sec: time.tv_sec, nsec: time.tv_nsec };
        let has_birth = found.stx_mask & StatxFlags::BTIME.bits() != 0;
        Self {
            device: u64::from(found.stx_dev_major) << 32 | u64::from(found.stx_dev_minor),
            mount: found.stx_mnt_id,
            ino: found.stx_ino,
            mode: u32::from(found.stx_mode),
            links: found.stx_nlink,
            uid: found.stx_uid,
            gid: found.stx_gid,
            size: found.stx_size,
            blocks: found.stx_blocks,
            block_size: found.stx_blksize,
            accessed: time(found.stx_atime),
            modified: time(found.stx_mtime),
            changed: time(found.stx_ctime),
            born: has_birth.then(|| time(found.stx_btime)),
        }
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
        flags |= OFlags::DSYNC;
    }
    if access.sync {
        flags |= OFlags::SYNC;
    }
    flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK
}

/// A name for an inode, without access to its content.
#[derive(Debug)]
pub struct Handle(OwnedFd);

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Handle {
    /// The directory at `path`, which the host's user chose: links in it are followed.
    pub fn of_directory(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// The folder at `path` beneath this one, which an empty path names; no link is followed.
    pub fn beneath(&self, path: &Path) -> Result<Self> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(&self.0, path, flags, Mode::empty(), resolve) {
            // A link is no folder.
            Err(Errno::LOOP) => Err(Errno::NOTDIR.into()),
            opened => Ok(Self(opened?)),
        }
    }

    /// Where the inode is now.
    pub fn path(&self) -> Result<PathBuf> {
        let path = rustix::fs::readlinkat(CWD, magic_link(&self.0).path(), Vec::new())?;
        Ok(OsString::from_vec(path.into_bytes()).into())
    }

    /// Its path from `root` on; ESTALE if it is not beneath it any more.
    pub fn path_from(&self, root: &Self) -> Result<PathBuf> {
        let (root, path) = (root.path()?, self.path()?);
        Ok(path.strip_prefix(&root).map_err(|_| Errno::STALE)?.to_owned())
    }

    /// A second handle of the same inode.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// The entry `name` of this directory, itself if it is a link. Mounts below a share are part
    /// of it, as they are for a process on the host.
    pub fn child(&self, name: &CStr) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        Ok(Self(after(rustix::fs::openat2(&self.0, name, flags, Mode::empty(), resolve))?))
    }

    /// A handle of the inode that `file` has open.
    pub fn of_file(file: &File) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(magic_link(file).path(), flags, Mode::empty())?))
    }

    /// A handle of the inode that `file` has open and that was just made in this directory as `name`.
    /// By its name it takes less than through /proc, unless the host has it moved or replaced already.
    pub fn of_made(&self, name: &CStr, file: &File, made: &Stat) -> Result<Self> {
        let by_name = self.child(name).and_then(|handle| Ok((handle.stat()?, handle)));
        match by_name {
            Ok((found, handle)) if found.is_of(made) => Ok(handle),
            _ => Self::of_file(file),
        }
    }

    /// What the host says of the inode.
    pub fn stat(&self) -> Result<Stat> {
        stat_of(&self.0)
    }

    /// The same without the mount and the time of birth, which takes less.
    pub fn attributes(&self) -> Result<Stat> {
        let found = after(rustix::fs::fstat(&self.0))?;
        let time = |sec: i64, nsec: u64| Moment { sec, nsec: nsec as u32 };
        let (major, minor) = (rustix::fs::major(found.st_dev), rustix::fs::minor(found.st_dev));
        Ok(Stat {
            device: u64::from(major) << 32 | u64::from(minor),
            mount: 0,
            ino: found.st_ino,
            mode: found.st_mode,
            links: found.st_nlink as u32,
            uid: found.st_uid,
            gid: found.st_gid,
            size: found.st_size as u64,
            blocks: found.st_blocks as u64,
            block_size: found.st_blksize as u32,
            accessed: time(found.st_atime, found.st_atime_nsec),
            modified: time(found.st_mtime, found.st_mtime_nsec),
            changed: time(found.st_ctime, found.st_ctime_nsec),
            born: None,
        })
    }

    /// What the host says of the entry `name` of this directory, itself if it is a link.
    pub fn stat_child(&self, name: &CStr) -> Result<Stat> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        Ok(Stat::from(&after(rustix::fs::statx(&self.0, name, flags, WANTED))?))
    }

    /// Opens the inode, a regular file or a directory, for I/O.
    pub fn open(&self, access: Access) -> Result<File> {
        let flags = open_flags(access);
        let path = magic_link(&self.0);
        Ok(after(rustix::fs::open(path.path(), flags, Mode::empty()))?.into())
    }

    /// Makes a file that did not exist; it gets just the permissions `mode`. Also what the host says of it.
    pub fn create(&self, name: &CStr, mode: u32, access: Access) -> Result<(File, Stat)> {
        let flags = open_flags(access) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let fd = rustix::fs::openat2(
            &self.0,
            name,
            flags,
            Mode::from_raw_mode(mode & mode::ALL),
            resolve,
        )?;
        past_umask(fd.into(), mode)
    }

    /// Makes a file without a name on this directory's file system.
    pub fn create_unnamed(&self, mode: u32, access: Access) -> Result<(File, Stat)> {
        let flags = open_flags(access) | OFlags::TMPFILE;
        let fd = rustix::fs::open(
            magic_link(&self.0).path(),
            flags,
            Mode::from_raw_mode(mode & mode::ALL),
        )?;
        past_umask(fd.into(), mode)
    }

    /// Makes a directory.
    pub fn make_directory(&self, name: &CStr, mode: u32) -> Result<()> {
        Ok(rustix::fs::mkdirat(&self.0, name, Mode::from_raw_mode(mode & mode::ALL))?)
    }

    /// Makes a fifo or a socket, as `kind` says; no other kind.
    pub fn make_special(&self, name: &CStr, kind: u32, mode: u32) -> Result<()> {
        let kind = match kind {
            mode::FIFO => FileType::Fifo,
            mode::SOCKET => FileType::Socket,
            _ => return Err(Errno::PERM.into()),
        };
        Ok(rustix::fs::mknodat(&self.0, name, kind, Mode::from_raw_mode(mode & mode::ALL), 0)?)
    }

    /// Makes a symbolic link; nobody here ever follows it.
    pub fn make_symlink(&self, name: &CStr, target: &CStr) -> Result<()> {
        Ok(rustix::fs::symlinkat(target, &self.0, name)?)
    }

    /// Gives the inode `target` one more name in this directory.
    pub fn link(&self, name: &CStr, target: &Self) -> Result<()> {
        let from = magic_link(&target.0);
        let follow = AtFlags::SYMLINK_FOLLOW;
        Ok(rustix::fs::linkat(CWD, from.path(), &self.0, name, follow)?)
    }

    /// Removes a name that is not a directory's.
    pub fn unlink(&self, name: &CStr) -> Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// Removes an empty directory.
    pub fn remove_directory(&self, name: &CStr) -> Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR)?)
    }

    /// Moves `name` to `to_name` in `to`. `flags` are `renameat2(2)`'s.
    pub fn rename(&self, name: &CStr, to: &Self, to_name: &CStr, flags: u32) -> Result<()> {
        let flags = RenameFlags::from_bits_retain(flags);
        let (from, into) = (name, to_name);
        Ok(rustix::fs::renameat_with(&self.0, from, &to.0, into, flags)?)
    }

    /// Where this symbolic link points.
    pub fn read_link(&self) -> Result<Vec<u8>> {
        let buffer = Vec::with_capacity(TARGET_MAX + 1);
        Ok(rustix::fs::readlinkat(&self.0, c"", buffer)?.into_bytes())
    }

    /// Changes the permissions; a symbolic link has none.
    pub fn set_mode(&self, mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode & mode::ALL);
        Ok(rustix::fs::chmod(magic_link(&self.0).path(), mode)?)
    }

    /// Changes owner and group, where this process may.
    pub fn set_owner(&self, uid: u32, gid: u32) -> Result<()> {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        Ok(rustix::fs::chownat(&self.0, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
    }

    /// Sets the times of access and modification; `None` leaves one as it is.
    pub fn set_times(&self, accessed: Option<NewTime>, modified: Option<NewTime>) -> Result<()> {
        let times =
            Timestamps { last_access: timespec(accessed), last_modification: timespec(modified) };
        Ok(rustix::fs::utimensat(&self.0, c"", &times, AtFlags::EMPTY_PATH)?)
    }

    /// The room of its file system.
    pub fn space(&self) -> Result<Space> {
        let found = rustix::fs::fstatvfs(&self.0)?;
        Ok(Space {
            block: found.f_frsize,
            blocks: found.f_blocks,
            free: found.f_bfree,
            available: found.f_bavail,
            files: found.f_files,
            free_files: found.f_ffree,
        })
    }

    /// The length of an extended attribute.
    pub fn xattr_len(&self, name: &CStr) -> Result<usize> {
        Ok(rustix::fs::getxattr_query(magic_link(&self.0).path(), name)?)
    }

    /// Reads an extended attribute into `buffer`.
    pub fn xattr(&self, name: &CStr, buffer: &mut [u8]) -> Result<usize> {
        Ok(rustix::fs::getxattr(magic_link(&self.0).path(), name, buffer)?)
    }

    /// Sets an extended attribute. `flags` are `setxattr(2)`'s.
    pub fn set_xattr(&self, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
        let flags = XattrFlags::from_bits_retain(flags);
        Ok(rustix::fs::setxattr(magic_link(&self.0).path(), name, value, flags)?)
    }

    /// The names of the extended attributes, each with its NUL.
    pub fn xattr_names(&self) -> Result<Vec<u8>> {
        let mut names = vec![0; XATTR_LIST_MAX];
        let len = rustix::fs::listxattr(magic_link(&self.0).path(), names.as_mut_slice())?;
        names.truncate(len);
        Ok(names)
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, name: &CStr) -> Result<()> {
        Ok(rustix::fs::removexattr(magic_link(&self.0).path(), name)?)
    }
}

/// The longest list of extended attributes (`XATTR_LIST_MAX`).
const XATTR_LIST_MAX: usize = 65536;

fn timespec(time: Option<NewTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(NewTime::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(NewTime::At(time)) => Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() },
    }
}

/// What the host says of an open file.
pub fn stat(file: &File) -> Result<Stat> {
    stat_of(file)
}

/// What the host says of what is at a path, itself if it is a link.
pub fn look(path: &Path) -> Result<Stat> {
    Ok(Stat::from(&rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, WANTED)?))
}

/// Brings an open file or directory to the disk.
pub fn sync(file: &File, data_only: bool) -> Result<()> {
    let result = if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) };
    Ok(result?)
}

/// Brings the whole file system of a directory to the disk.
pub fn sync_file_system(directory: &Handle) -> Result<()> {
    Ok(rustix::fs::syncfs(directory.open(Access::READ)?)?)
}

/// Allocates, zeroes or punches. `mode` are `fallocate(2)`'s flags.
pub fn allocate(file: &File, mode: u32, offset: u64, len: u64) -> Result<()> {
    let flags = FallocateFlags::from_bits_retain(mode);
    Ok(rustix::fs::fallocate(file, flags, offset, len)?)
}

/// Copies between two open files within the host; returns the bytes copied.
pub fn copy_range(
    from: &File,
    mut from_offset: u64,
    to: &File,
    mut to_offset: u64,
    len: usize,
) -> Result<usize> {
    let (from_offset, to_offset) = (Some(&mut from_offset), Some(&mut to_offset));
    Ok(rustix::fs::copy_file_range(from, from_offset, to, to_offset, len)?)
}

/// A directory that is being read.
#[derive(Debug)]
pub struct Listing(File);

impl Listing {
    /// Begins to read a directory.
    pub fn open(directory: &Handle) -> Result<Self> {
        let flags = open_flags(Access::READ) | OFlags::DIRECTORY;
        Ok(Self(rustix::fs::openat(&directory.0, c".", flags, Mode::empty())?.into()))
    }

    /// Calls `each` for the entries that one read of `room` bytes gives, until it says false. The
    /// position is then behind all that were read.
    pub fn read(&mut self, room: usize, mut each: impl FnMut(&Listed) -> bool) -> Result<()> {
        let mut buffer: Vec<MaybeUninit<u8>> = vec![MaybeUninit::uninit(); room];
        let mut entries = RawDir::new(&self.0, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let found = Listed {
                name: entry.file_name(),
                ino: entry.ino(),
                kind: entry.file_type().as_raw_mode() & mode::TYPE,
                next: entry.next_entry_cookie(),
            };
            if !each(&found) || entries.is_buffer_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Moves the position to what [`Listed::next`] said; zero is the beginning.
    pub fn seek(&mut self, position: u64) -> Result<()> {
        rustix::fs::seek(&self.0, SeekFrom::Start(position))?;
        Ok(())
    }

    /// Brings the directory to the disk.
    pub fn sync(&self, data_only: bool) -> Result<()> {
        sync(&self.0, data_only)
    }
}

/// The one magic link that is ever followed: that of our own descriptor.
fn magic_link(fd: impl AsFd) -> MagicLink {
    let mut path = [0; MagicLink::ROOM];
    // It has room for the largest number, and for the NUL that is there already.
    let _ = write!(&mut path[..], "/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    MagicLink(path)
}

/// The path of a descriptor, made without an allocation.
#[derive(Clone, Copy)]
struct MagicLink([u8; Self::ROOM]);

impl MagicLink {
    const ROOM: usize = "/proc/self/fd/".len() + 11;

    fn path(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

/// This process's umask has no say.
fn past_umask(file: File, mode: u32) -> Result<(File, Stat)> {
    let mut stat = stat_of(&file)?;
    if (stat.mode ^ mode) & mode::ALL != 0 {
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & mode::ALL))?;
        stat = stat_of(&file)?;
    }
    Ok((file, stat))
}

/// Lets `to` share the blocks of `from`, if the file system can.
pub(in crate::sys) fn clone_content(from: &File, to: &File) -> bool {
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

//! The host's file system, as the server uses it: one file to replace for another operating
//! system.
//!
//! An inode is held by an `O_PATH` handle, which names it and cannot read it. A child is opened
//! beneath its directory's handle, by one component and without following links. An inode is
//! opened for I/O by its handle alone, through `/proc/self/fd`, and only regular files and
//! directories are: nobody can swap it for another on the way, and no device is touched.
//!
//! On Linux it takes 5.8 (`openat2`, `STATX_MNT_ID`, times through an `O_PATH` handle) and /proc.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RawDir, RenameFlags, ResolveFlags,
    SeekFrom, Statx, StatxFlags, Timespec, Timestamps, XattrFlags,
};

use crate::host_names::NameRules;
use crate::names::{NAME_MAX, Name, TARGET_MAX};
use crate::wire::{self, Errno, Result};

impl From<rustix::io::Errno> for Errno {
    fn from(error: rustix::io::Errno) -> Self {
        match Self(error.raw_os_error()) {
            // The process's limit is the whole guest's.
            Self::EMFILE => Self::ENFILE,
            error => error,
        }
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull => Self::ENOSPC,
            _ => error.raw_os_error().map_or(Self::EINVAL, Self),
        }
    }
}

/// What this host's file systems make of names. Those of Linux that ignore case say so of single folders,
/// and find a name by any case of it themselves.
pub(crate) const NAME_RULES: NameRules = NameRules::LINUX;

/// The process's owner: what it makes belongs to them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Owner {
    pub(crate) fn of_this_process() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }
}

/// How many descriptors this process may have open now.
pub(crate) fn descriptor_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// A moment: seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time {
    pub(crate) sec: i64,
    pub(crate) nsec: u32,
}

/// What the host says of an inode.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stat {
    pub(crate) device: u64,
    pub(crate) mount: u64,
    pub(crate) ino: u64,
    pub(crate) mode: u32,
    pub(crate) links: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) blocks: u64,
    pub(crate) block_size: u32,
    pub(crate) accessed: Time,
    pub(crate) modified: Time,
    pub(crate) changed: Time,
    /// `None` where the file system does not keep it.
    pub(crate) born: Option<Time>,
}

impl Stat {
    const WANTED: StatxFlags =
        StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(StatxFlags::MNT_ID);

    pub(crate) fn kind(&self) -> u32 {
        self.mode & wire::mode::TYPE
    }

    /// Is it said of the same inode, found through the same mount?
    fn is_of(&self, other: &Self) -> bool {
        (self.mount, self.device, self.ino) == (other.mount, other.device, other.ino)
    }

    fn of(fd: impl AsFd) -> Result<Self> {
        Ok(Self::from(&rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, Self::WANTED)?))
    }
}

impl From<&Statx> for Stat {
    fn from(found: &Statx) -> Self {
        let time = |time: rustix::fs::StatxTimestamp| Time { sec: time.tv_sec, nsec: time.tv_nsec };
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

/// What the host says of a file system.
pub(crate) fn statfs(handle: &Handle) -> Result<wire::StatfsOut> {
    let found = rustix::fs::fstatvfs(&handle.0)?;
    Ok(wire::StatfsOut {
        blocks: found.f_blocks,
        bfree: found.f_bfree,
        bavail: found.f_bavail,
        files: found.f_files,
        ffree: found.f_ffree,
        bsize: found.f_bsize as u32,
        namelen: NAME_MAX as u32,
        frsize: found.f_frsize as u32,
        ..wire::StatfsOut::default()
    })
}

/// How to open a file for I/O.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// Writes go to the end, wherever that is by then.
    pub(crate) append: bool,
    /// Writes reach the disk before they return: data alone, or all.
    pub(crate) data_sync: bool,
    pub(crate) sync: bool,
}

impl Access {
    pub(crate) const READ: Self =
        Self { read: true, write: false, append: false, data_sync: false, sync: false };
    pub(crate) const WRITE: Self = Self { read: false, write: true, ..Self::READ };

    fn flags(self) -> OFlags {
        let mut flags = match (self.read, self.write) {
            (true, true) => OFlags::RDWR,
            (false, true) => OFlags::WRONLY,
            _ => OFlags::RDONLY,
        };
        flags.set(OFlags::APPEND, self.append);
        if self.data_sync {
            flags |= OFlags::from_bits_retain(wire::open::DSYNC);
        }
        if self.sync {
            flags |= OFlags::SYNC;
        }
        flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK
    }
}

/// A name for an inode, without access to its content.
#[derive(Debug)]
pub(crate) struct Handle(OwnedFd);

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Handle {
    /// The directory at `path`, which the host's user chose: links in it are followed.
    pub(crate) fn of_directory(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// The handle as the crate `os` takes it.
    pub(crate) fn as_host(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// A second handle of the same inode.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// The entry `name` of this directory, itself if it is a link. Mounts below a share are part
    /// of it, as they are for a process on the host.
    pub(crate) fn child(&self, name: Name) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        Ok(Self(rustix::fs::openat2(&self.0, name.as_c_str(), flags, Mode::empty(), resolve)?))
    }

    /// A handle of the inode that `file` has open.
    pub(crate) fn of_file(file: &File) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(magic_link(file).path(), flags, Mode::empty())?))
    }

    /// A handle of the inode that `file` has open and that was just made in this directory as `name`.
    /// By its name it takes less than through /proc, unless the host has it moved or replaced already.
    pub(crate) fn of_made(&self, name: Name, file: &File, made: &Stat) -> Result<Self> {
        let by_name = self.child(name).and_then(|handle| Ok((handle.stat()?, handle)));
        match by_name {
            Ok((found, handle)) if found.is_of(made) => Ok(handle),
            _ => Self::of_file(file),
        }
    }

    pub(crate) fn stat(&self) -> Result<Stat> {
        Stat::of(&self.0)
    }

    /// The same without the mount and the time of birth, which takes less.
    pub(crate) fn attributes(&self) -> Result<Stat> {
        let found = rustix::fs::fstat(&self.0)?;
        let time = |sec: i64, nsec: u64| Time { sec, nsec: nsec as u32 };
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
    pub(crate) fn stat_child(&self, name: Name) -> Result<Stat> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        Ok(Stat::from(&rustix::fs::statx(&self.0, name.as_c_str(), flags, Stat::WANTED)?))
    }

    /// Opens the inode for I/O. `kind` is what it is, as [`Stat::kind`] said.
    pub(crate) fn open(&self, kind: u32, access: Access) -> Result<File> {
        let flags = match kind {
            wire::mode::REGULAR => access.flags(),
            wire::mode::DIRECTORY => access.flags() | OFlags::DIRECTORY,
            wire::mode::SYMLINK => return Err(Errno::ELOOP),
            _ => return Err(Errno::EACCES),
        };
        Ok(rustix::fs::open(magic_link(&self.0).path(), flags, Mode::empty())?.into())
    }

    /// Makes a file that did not exist; it gets just the permissions `mode`. Also what the host says of it.
    pub(crate) fn create(&self, name: Name, mode: u32, access: Access) -> Result<(File, Stat)> {
        let flags = access.flags() | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let fd = rustix::fs::openat2(&self.0, name.as_c_str(), flags, permissions(mode), resolve)?;
        past_umask(fd.into(), mode)
    }

    /// Makes a file without a name on this directory's file system.
    pub(crate) fn create_unnamed(&self, mode: u32, access: Access) -> Result<(File, Stat)> {
        let flags = access.flags() | OFlags::TMPFILE;
        let fd = rustix::fs::open(magic_link(&self.0).path(), flags, permissions(mode))?;
        past_umask(fd.into(), mode)
    }

    /// Makes a directory.
    pub(crate) fn make_directory(&self, name: Name, mode: u32) -> Result<()> {
        Ok(rustix::fs::mkdirat(&self.0, name.as_c_str(), permissions(mode))?)
    }

    /// Makes a fifo or a socket, as `kind` says; no other kind.
    pub(crate) fn make_special(&self, name: Name, kind: u32, mode: u32) -> Result<()> {
        let kind = match kind {
            wire::mode::FIFO => FileType::Fifo,
            wire::mode::SOCKET => FileType::Socket,
            _ => return Err(Errno::EPERM),
        };
        Ok(rustix::fs::mknodat(&self.0, name.as_c_str(), kind, permissions(mode), 0)?)
    }

    /// Makes a symbolic link; nobody here ever follows it.
    pub(crate) fn make_symlink(&self, name: Name, target: &CStr) -> Result<()> {
        Ok(rustix::fs::symlinkat(target, &self.0, name.as_c_str())?)
    }

    /// Gives the inode `target` one more name in this directory.
    pub(crate) fn link(&self, name: Name, target: &Self) -> Result<()> {
        let from = magic_link(&target.0);
        let follow = AtFlags::SYMLINK_FOLLOW;
        Ok(rustix::fs::linkat(CWD, from.path(), &self.0, name.as_c_str(), follow)?)
    }

    /// Removes a name that is not a directory's.
    pub(crate) fn unlink(&self, name: Name) -> Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name.as_c_str(), AtFlags::empty())?)
    }

    /// Removes an empty directory.
    pub(crate) fn remove_directory(&self, name: Name) -> Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name.as_c_str(), AtFlags::REMOVEDIR)?)
    }

    /// Moves `name` to `to_name` in `to`. `flags` are `renameat2(2)`'s.
    pub(crate) fn rename(&self, name: Name, to: &Self, to_name: Name, flags: u32) -> Result<()> {
        let flags = RenameFlags::from_bits_retain(flags);
        let (from, into) = (name.as_c_str(), to_name.as_c_str());
        Ok(rustix::fs::renameat_with(&self.0, from, &to.0, into, flags)?)
    }

    /// Where this symbolic link points.
    pub(crate) fn read_link(&self) -> Result<Vec<u8>> {
        let buffer = Vec::with_capacity(TARGET_MAX + 1);
        Ok(rustix::fs::readlinkat(&self.0, c"", buffer)?.into_bytes())
    }

    /// Changes the permissions; not of a symbolic link, which has none.
    pub(crate) fn set_permissions(&self, kind: u32, mode: u32) -> Result<()> {
        if kind == wire::mode::SYMLINK {
            return Err(Errno::EOPNOTSUPP);
        }
        Ok(rustix::fs::chmod(magic_link(&self.0).path(), permissions(mode))?)
    }

    /// Sets the times of access and modification; `None` leaves one as it is.
    pub(crate) fn set_times(
        &self,
        accessed: Option<NewTime>,
        modified: Option<NewTime>,
    ) -> Result<()> {
        let times =
            Timestamps { last_access: timespec(accessed), last_modification: timespec(modified) };
        Ok(rustix::fs::utimensat(&self.0, c"", &times, AtFlags::EMPTY_PATH)?)
    }

    /// The length of an extended attribute.
    pub(crate) fn xattr_len(&self, name: &CStr) -> Result<usize> {
        Ok(rustix::fs::getxattr_query(magic_link(&self.0).path(), name)?)
    }

    /// Reads an extended attribute into `buffer`.
    pub(crate) fn xattr(&self, name: &CStr, buffer: &mut [u8]) -> Result<usize> {
        Ok(rustix::fs::getxattr(magic_link(&self.0).path(), name, buffer)?)
    }

    /// Sets an extended attribute. `flags` are `setxattr(2)`'s.
    pub(crate) fn set_xattr(&self, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
        let flags = XattrFlags::from_bits_retain(flags);
        Ok(rustix::fs::setxattr(magic_link(&self.0).path(), name, value, flags)?)
    }

    /// The names of the extended attributes, each with its NUL.
    pub(crate) fn xattr_names(&self) -> Result<Vec<u8>> {
        let mut names = vec![0; XATTR_LIST_MAX];
        let len = rustix::fs::listxattr(magic_link(&self.0).path(), names.as_mut_slice())?;
        names.truncate(len);
        Ok(names)
    }

    /// Removes an extended attribute.
    pub(crate) fn remove_xattr(&self, name: &CStr) -> Result<()> {
        Ok(rustix::fs::removexattr(magic_link(&self.0).path(), name)?)
    }
}

/// The longest list of extended attributes (`XATTR_LIST_MAX`).
const XATTR_LIST_MAX: usize = 65536;

/// A time to set.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NewTime {
    /// The host's present.
    Now,
    /// This one.
    At(Time),
}

fn timespec(time: Option<NewTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(NewTime::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(NewTime::At(time)) => Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() },
    }
}

/// What the host says of an open file.
pub(crate) fn stat(file: &File) -> Result<Stat> {
    Stat::of(file)
}

/// Changes the permissions of an open file.
pub(crate) fn set_permissions(file: &File, mode: u32) -> Result<()> {
    Ok(rustix::fs::fchmod(file, permissions(mode))?)
}

/// Turns appending on or off.
pub(crate) fn set_append(file: &File, append: bool) -> Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(file)?;
    flags.set(OFlags::APPEND, append);
    Ok(rustix::fs::fcntl_setfl(file, flags)?)
}

/// Changes the length of an open file.
pub(crate) fn set_len(file: &File, len: u64) -> Result<()> {
    if i64::try_from(len).is_err() {
        return Err(Errno::EFBIG);
    }
    Ok(rustix::fs::ftruncate(file, len)?)
}

/// Brings an open file or directory to the disk.
pub(crate) fn sync(file: &File, data_only: bool) -> Result<()> {
    let result = if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) };
    Ok(result?)
}

/// Brings the whole file system of an open directory to the disk.
pub(crate) fn sync_file_system(directory: &File) -> Result<()> {
    Ok(rustix::fs::syncfs(directory)?)
}

/// Allocates, zeroes or punches. `mode` are `fallocate(2)`'s flags.
pub(crate) fn allocate(file: &File, mode: u32, offset: u64, len: u64) -> Result<()> {
    let flags = FallocateFlags::from_bits_retain(mode);
    Ok(rustix::fs::fallocate(file, flags, offset, len)?)
}

/// The next data or hole from `offset` on.
pub(crate) fn seek_sparse(file: &File, offset: u64, hole: bool) -> Result<u64> {
    let from = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
    Ok(rustix::fs::seek(file, from)?)
}

/// Copies between two open files within the host; returns the bytes copied.
pub(crate) fn copy_range(
    from: &File,
    mut from_offset: u64,
    to: &File,
    mut to_offset: u64,
    len: usize,
) -> Result<usize> {
    let (from_offset, to_offset) = (Some(&mut from_offset), Some(&mut to_offset));
    Ok(rustix::fs::copy_file_range(from, from_offset, to, to_offset, len)?)
}

/// An entry of a directory on the host.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a CStr,
    pub(crate) ino: u64,
    /// The type, as it stands in the top bits of a mode; zero if the host does not say.
    pub(crate) kind: u32,
    /// Where the directory goes on behind it.
    pub(crate) next: u64,
}

/// Calls `each` for the entries that one read of `room` bytes gives, until it says false. The
/// file's position is then behind all that were read.
pub(crate) fn read_entries(
    directory: &File,
    room: usize,
    mut each: impl FnMut(&Entry) -> bool,
) -> Result<()> {
    let mut buffer: Vec<MaybeUninit<u8>> = vec![MaybeUninit::uninit(); room];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let found = Entry {
            name: entry.file_name(),
            ino: entry.ino(),
            kind: entry.file_type().as_raw_mode() & wire::mode::TYPE,
            next: entry.next_entry_cookie(),
        };
        if !each(&found) || entries.is_buffer_empty() {
            break;
        }
    }
    Ok(())
}

/// Moves an open directory's position to what [`Entry::next`] said.
pub(crate) fn seek_entries(directory: &File, position: u64) -> Result<()> {
    rustix::fs::seek(directory, SeekFrom::Start(position))?;
    Ok(())
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

/// Nothing on the host becomes set-user-ID or set-group-ID by the guest's doing.
fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & wire::mode::PERMISSIONS)
}

/// The guest has applied its own umask; this process's has no say.
fn past_umask(file: File, mode: u32) -> Result<(File, Stat)> {
    let mut stat = Stat::of(&file)?;
    if (stat.mode ^ mode) & wire::mode::PERMISSIONS != 0 {
        rustix::fs::fchmod(&file, permissions(mode))?;
        stat = Stat::of(&file)?;
    }
    Ok((file, stat))
}

//! The inodes of a folder: naming, looking at, linking, moving and copying them, with all that belongs
//! to them, beneath directory handles.
//!
//! A handle (`O_PATH`) names an inode without touching it. A path is resolved beneath a directory,
//! without following links. It takes Linux 5.8 and /proc.

use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, ResolveFlags, StatxFlags, Timespec,
    Timestamps, XattrFlags,
};
use rustix::io::Errno;

use super::file::copy_sparse;

/// A directory and the name of an entry in it.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The directory's handle.
    pub directory: BorrowedFd<'a>,
    /// One component.
    pub name: &'a CStr,
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InodeKind {
    /// With content.
    Regular,
    /// With entries.
    Directory,
    /// With a target.
    Symlink,
    /// A fifo, a socket or a device.
    Special,
}

/// What the host says of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InodeStat {
    /// The file system.
    pub device: u64,
    /// Where that is mounted.
    pub mount: u64,
    /// The inode's number.
    pub ino: u64,
    /// What it is.
    pub kind: InodeKind,
    /// Type and permissions (`st_mode`).
    pub mode: u32,
    /// Its names.
    pub links: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its length in bytes.
    pub size: u64,
    /// The bytes that it takes on the disk.
    pub allocated: u64,
    /// When its content last changed, in nanoseconds since 1970.
    pub modified: i128,
    /// When it was made, in nanoseconds since 1970: tells inodes apart that had one number after
    /// another. Zero where the file system does not keep it.
    pub born: i128,
}

/// What belongs to an inode beside its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions, with the set-ID bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was last read: seconds and nanoseconds since 1970.
    pub accessed: (i64, u32),
    /// When its content last changed.
    pub modified: (i64, u32),
    /// Extended attributes, by name.
    pub extended: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The folder at `path`; links in it are followed.
pub fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// The folder at `path` beneath `root`, which an empty path names; no link is followed.
pub fn open_beneath(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)?)
}

/// Where the inode of a handle is now.
pub fn path_of(handle: impl AsFd) -> io::Result<PathBuf> {
    let path = rustix::fs::readlinkat(CWD, magic_link(handle.as_fd()), Vec::new())?;
    Ok(OsString::from_vec(path.into_bytes()).into())
}

/// The path of a directory's handle from `root` on; ESTALE if it is not beneath it any more.
pub fn path_beneath(root: impl AsFd, handle: impl AsFd) -> io::Result<PathBuf> {
    let (root, path) = (path_of(root)?, path_of(handle)?);
    Ok(path.strip_prefix(&root).map_err(|_| Errno::STALE)?.to_owned())
}

impl Entry<'_> {
    /// A handle of the entry, itself if it is a link.
    pub fn handle(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(self.directory, self.name, flags, Mode::empty())?)
    }

    /// What is there; `None` for nothing.
    pub fn stat(&self) -> io::Result<Option<InodeStat>> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        match rustix::fs::statx(self.directory, self.name, flags, wanted()) {
            Ok(found) => Ok(Some(InodeStat::of(&found))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes an empty file for this user alone; the name must be free.
    pub fn create(&self) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(self.directory, self.name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(fd.into())
    }

    /// Makes an empty folder; the name must be free.
    pub fn make_folder(&self, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(self.directory, self.name, Mode::from_raw_mode(mode))?)
    }

    /// Makes a symbolic link that says this; the name must be free.
    pub fn make_link(&self, target: &Path) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, self.directory, self.name)?)
    }

    /// Opens a regular file for reading; a link is not followed, and nothing is waited for.
    pub fn open(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let flags = flags | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(self.directory, self.name, flags, Mode::empty())?);
        if stat(&file)?.kind == InodeKind::Regular {
            return Ok(file);
        }
        Err(io::ErrorKind::InvalidInput.into())
    }

    /// Sets the permissions of what is there, which is no link.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        let handle = self.handle()?;
        if stat(&handle)?.kind == InodeKind::Symlink {
            return Err(Errno::LOOP.into());
        }
        Ok(rustix::fs::chmod(magic_link(handle.as_fd()), Mode::from_raw_mode(mode))?)
    }

    /// Gives the inode of `handle` this name too.
    pub fn link(&self, handle: impl AsFd) -> io::Result<()> {
        let from = magic_link(handle.as_fd());
        let follow = AtFlags::SYMLINK_FOLLOW;
        Ok(rustix::fs::linkat(CWD, from, self.directory, self.name, follow)?)
    }

    /// Moves the entry to a name that must be free.
    pub fn move_to(&self, to: &Entry) -> io::Result<()> {
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(self.directory, self.name, to.directory, to.name, flags) {
            // A file system that does not know the flag.
            Err(Errno::INVAL | Errno::NOSYS) if to.stat()?.is_none() => self.replace(to),
            result => Ok(result?),
        }
    }

    /// Moves the entry over what has the name `to`.
    pub fn replace(&self, to: &Entry) -> io::Result<()> {
        Ok(rustix::fs::renameat(self.directory, self.name, to.directory, to.name)?)
    }

    /// Removes the name, if it is there; a folder must be empty.
    pub fn remove(&self) -> io::Result<()> {
        match rustix::fs::unlinkat(self.directory, self.name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {
                Ok(rustix::fs::unlinkat(self.directory, self.name, AtFlags::REMOVEDIR)?)
            }
            Err(Errno::NOENT) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Makes the entry an inode like `handle`'s: content with its holes, sharing its blocks where the
    /// file system can (`FICLONE`), target and attributes; of a folder all but its entries. Returns
    /// the new inode if it is a file.
    pub fn copy_of(&self, handle: impl AsFd) -> io::Result<Option<File>> {
        let handle = handle.as_fd();
        let stat = stat(handle)?;
        let private = Mode::RUSR | Mode::WUSR;
        let file = match stat.kind {
            InodeKind::Regular => {
                let copy = self.create()?;
                copy_content(&open_to_read(handle)?, &copy)?;
                Some(copy)
            }
            InodeKind::Directory => {
                rustix::fs::mkdirat(self.directory, self.name, private | Mode::XUSR)?;
                None
            }
            InodeKind::Symlink => {
                rustix::fs::symlinkat(link_target(handle)?, self.directory, self.name)?;
                None
            }
            InodeKind::Special => {
                let kind = FileType::from_raw_mode(stat.mode);
                rustix::fs::mknodat(self.directory, self.name, kind, private, 0)?;
                None
            }
        };
        attributes(handle)?.apply(&self.handle()?)?;
        Ok(file)
    }
}

/// Makes `to` what `from` is, sharing its blocks where the file system can, else with its holes.
pub fn copy_content(from: &File, to: &File) -> io::Result<()> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(()),
        Err(_) => copy_sparse(from, to),
    }
}

/// Where a symbolic link points.
pub fn link_target(handle: impl AsFd) -> io::Result<CString> {
    Ok(rustix::fs::readlinkat(handle, c"", Vec::new())?)
}

/// Opens a regular file's content, by its handle, for a process that owns it whatever its mode.
pub fn open_to_read(handle: impl AsFd) -> io::Result<File> {
    open(handle, OFlags::RDONLY, Mode::RUSR)
}

/// As [`open_to_read`], to read and write.
pub fn open_to_write(handle: impl AsFd) -> io::Result<File> {
    open(handle, OFlags::RDWR, Mode::RUSR | Mode::WUSR)
}

fn open(handle: impl AsFd, flags: OFlags, need: Mode) -> io::Result<File> {
    let handle = handle.as_fd();
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    match rustix::fs::open(magic_link(handle), flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            let mode = Mode::from_raw_mode(stat(handle)?.mode);
            rustix::fs::chmod(magic_link(handle), mode | need)?;
            let opened = rustix::fs::open(magic_link(handle), flags, Mode::empty());
            rustix::fs::chmod(magic_link(handle), mode)?;
            Ok(opened?.into())
        }
        opened => Ok(opened?.into()),
    }
}

/// The names in a folder.
pub fn names(handle: impl AsFd) -> io::Result<Vec<CString>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(handle, c".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::new(folder)? {
        let name = entry?.file_name().to_owned();
        if name.as_c_str() != c"." && name.as_c_str() != c".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// What the host says of a handle's inode.
pub fn stat(handle: impl AsFd) -> io::Result<InodeStat> {
    Ok(InodeStat::of(&rustix::fs::statx(handle, c"", AtFlags::EMPTY_PATH, wanted())?))
}

fn wanted() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID
}

impl InodeStat {
    fn of(found: &rustix::fs::Statx) -> Self {
        let mode = u32::from(found.stx_mode);
        let kind = match FileType::from_raw_mode(mode) {
            FileType::RegularFile => InodeKind::Regular,
            FileType::Directory => InodeKind::Directory,
            FileType::Symlink => InodeKind::Symlink,
            _ => InodeKind::Special,
        };
        let nanoseconds = |time: rustix::fs::StatxTimestamp| {
            i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
        };
        let has_birth = found.stx_mask & StatxFlags::BTIME.bits() != 0;
        Self {
            device: u64::from(found.stx_dev_major) << 32 | u64::from(found.stx_dev_minor),
            mount: found.stx_mnt_id,
            ino: found.stx_ino,
            kind,
            mode,
            links: found.stx_nlink,
            uid: found.stx_uid,
            gid: found.stx_gid,
            size: found.stx_size,
            allocated: found.stx_blocks * 512,
            modified: nanoseconds(found.stx_mtime),
            born: if has_birth { nanoseconds(found.stx_btime) } else { 0 },
        }
    }
}

/// What belongs to a handle's inode.
pub fn attributes(handle: impl AsFd) -> io::Result<Attributes> {
    let handle = handle.as_fd();
    let found = rustix::fs::statx(handle, c"", AtFlags::EMPTY_PATH, wanted())?;
    let time = |time: rustix::fs::StatxTimestamp| (time.tv_sec, time.tv_nsec);
    let mode = u32::from(found.stx_mode);
    // Links have no attributes of users, and /proc would follow them.
    let extended = match FileType::from_raw_mode(mode) {
        FileType::RegularFile | FileType::Directory => extended(handle)?,
        _ => Vec::new(),
    };
    Ok(Attributes {
        mode: mode & 0o7777,
        uid: found.stx_uid,
        gid: found.stx_gid,
        accessed: time(found.stx_atime),
        modified: time(found.stx_mtime),
        extended,
    })
}

fn extended(handle: BorrowedFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    for name in extended_names(handle)? {
        let mut value = vec![0; 64 << 10];
        match rustix::fs::getxattr(magic_link(handle), &name, value.as_mut_slice()) {
            Ok(len) => {
                value.truncate(len);
                found.push((name.into_bytes(), value));
            }
            // Gone since, or for others only.
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

fn extended_names(handle: BorrowedFd) -> io::Result<Vec<CString>> {
    match rustix::fs::listxattr_query(magic_link(handle)) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::listxattr(magic_link(handle), names.as_mut_slice())?;
    let names = names[..len].split_inclusive(|byte| *byte == 0);
    Ok(names.filter_map(|name| CStr::from_bytes_with_nul(name).ok().map(CStr::to_owned)).collect())
}

impl Attributes {
    /// Gives them to a handle's inode: owner and foreign attributes as far as this process may.
    pub fn apply(&self, handle: impl AsFd) -> io::Result<()> {
        let handle = handle.as_fd();
        let now = attributes(handle)?;
        let kind = stat(handle)?.kind;
        if (self.uid, self.gid) != (now.uid, now.gid) {
            let (uid, gid) =
                (rustix::fs::Uid::from_raw(self.uid), rustix::fs::Gid::from_raw(self.gid));
            // Who may not give files away keeps them.
            let _ = rustix::fs::chownat(handle, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH);
        }
        if kind != InodeKind::Symlink {
            for (name, _) in &now.extended {
                if !self.extended.iter().any(|(wanted, _)| wanted == name) {
                    set_extended(handle, name, None)?;
                }
            }
            for (name, value) in &self.extended {
                if !now.extended.iter().any(|have| have.0 == *name && have.1 == *value) {
                    set_extended(handle, name, Some(value))?;
                }
            }
            rustix::fs::chmod(magic_link(handle), Mode::from_raw_mode(self.mode))?;
        }
        let time = |(sec, nsec): (i64, u32)| Timespec { tv_sec: sec, tv_nsec: nsec.into() };
        let times =
            Timestamps { last_access: time(self.accessed), last_modification: time(self.modified) };
        Ok(rustix::fs::utimensat(handle, c"", &times, AtFlags::EMPTY_PATH)?)
    }
}

fn set_extended(handle: BorrowedFd, name: &[u8], value: Option<&[u8]>) -> io::Result<()> {
    let Ok(c_name) = CString::new(name) else { return Ok(()) };
    let path = magic_link(handle);
    let result = match value {
        Some(value) => rustix::fs::setxattr(path, &c_name, value, XattrFlags::empty()),
        None => rustix::fs::removexattr(path, &c_name),
    };
    match result {
        // Capabilities, labels and the like belong to whoever may set them.
        Err(_) if !name.starts_with(b"user.") => Ok(()),
        Err(Errno::NODATA) => Ok(()),
        result => Ok(result?),
    }
}

/// The one magic link that is ever followed: that of our own descriptor.
fn magic_link(fd: BorrowedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// A path's last component as a name.
pub fn c_name(path: &Path) -> io::Result<CString> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    CString::new(name.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// The bytes of a path, `/` between its components.
pub fn path_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// A path of such bytes.
pub fn path_from_bytes(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

    #[test]
    fn a_copy_has_all_that_the_original_has() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"late", 4 << 20).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4051)).unwrap();
        let folder = open_folder(dir.path()).unwrap();
        let entry = |name| Entry { directory: folder.as_fd(), name };
        let original = entry(c"file").handle().unwrap();
        let has_xattrs = set_extended(original.as_fd(), b"user.x", Some(b"value")).is_ok();
        entry(c"copy").copy_of(&original).unwrap();
        let copy = entry(c"copy").handle().unwrap();
        let (mut one, mut two) = (attributes(&original).unwrap(), attributes(&copy).unwrap());
        // Reading it may have changed that.
        one.accessed = (0, 0);
        two.accessed = (0, 0);
        assert_eq!(one, two);
        assert_eq!(two.extended.len(), usize::from(has_xattrs));
        let metadata = fs::metadata(dir.path().join("copy")).unwrap();
        assert_eq!((metadata.len(), metadata.mode() & 0o7777), (8 << 20, 0o4051));
        assert!(metadata.blocks() * 512 < 1 << 20, "holes stay holes");
        assert_eq!(fs::read(&path).unwrap(), fs::read(dir.path().join("copy")).unwrap());
    }

    #[test]
    fn links_fifos_and_folders_are_copied_as_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("some/where", dir.path().join("link")).unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        fs::set_permissions(dir.path().join("folder"), fs::Permissions::from_mode(0o1751)).unwrap();
        let folder = open_folder(dir.path()).unwrap();
        let entry = |name| Entry { directory: folder.as_fd(), name };
        rustix::fs::mknodat(&folder, c"fifo", FileType::Fifo, Mode::RUSR, 0).unwrap();
        for (name, copy) in [(c"link", c"link2"), (c"folder", c"folder2"), (c"fifo", c"fifo2")] {
            let original = entry(name).handle().unwrap();
            entry(copy).copy_of(&original).unwrap();
            assert_eq!(entry(copy).stat().unwrap().unwrap().mode, stat(&original).unwrap().mode);
        }
        assert_eq!(fs::read_link(dir.path().join("link2")).unwrap(), Path::new("some/where"));
    }

    #[test]
    fn no_link_leads_out_and_no_name_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("in/out")).unwrap();
        fs::write(dir.path().join("in/a"), "a").unwrap();
        fs::write(dir.path().join("in/b"), "b").unwrap();
        let root = open_folder(&dir.path().join("in")).unwrap();
        assert!(open_beneath(&root, Path::new("out")).is_err());
        assert!(open_beneath(&root, Path::new("..")).is_err());
        assert!(open_beneath(&root, Path::new("")).is_ok());
        let entry = |name| Entry { directory: root.as_fd(), name };
        let moved = entry(c"a").move_to(&entry(c"b"));
        assert_eq!(moved.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(dir.path().join("in/b")).unwrap(), b"b");
        assert_eq!(path_of(&root).unwrap(), dir.path().join("in"));
    }
}

//! What sessions keep: a folder for each on the machine's writable disk, with a quota.
//!
//! On an ext4 disk a session has `sessions/NAME` with `home`, `tmp` and `var-tmp`, all in one project,
//! whose number is the session's user. The kernel counts what the project has and holds it to the limit
//! (`Documentation/filesystems/ext4`, `ioctl_fsgetxattr(2)`). Where the writable layer is in memory, a
//! session's folder is a tmpfs of its own and ends with its mount namespace.
//!
//! A session's files are its own: names, depth, permissions and links in them are hostile.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::{io, mem, thread};

use rustix::fs::{
    AtFlags, Dir, Gid, Mode, OFlags, Uid, chownat, fstat, mkdirat, openat, renameat, statat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::path::Arg;

use super::users::Users;

/// The folders of a session.
pub(super) const HOME: &str = "home";
pub(super) const TMP: &str = "tmp";
pub(super) const VAR_TMP: &str = "var-tmp";

const SESSIONS: &str = "sessions";
const TRASH: &str = "trash";

/// `FS_IOC_FSSETXATTR`, `struct fsxattr`, `FS_XFLAG_PROJINHERIT` (`linux/fs.h`).
const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401c_5820;
const FS_XFLAG_PROJINHERIT: u32 = 0x200;

#[repr(C)]
#[derive(Default)]
struct FsXattr {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

/// `quotactl_fd(2)`: commands, the type, units, and what of `struct dqblk` is set (`linux/quota.h`).
const PROJECT_QUOTA: libc::c_int = 2;
const Q_QUOTAON: libc::c_int = 0x80_0002;
const Q_GETQUOTA: libc::c_int = 0x80_0007;
const Q_SETQUOTA: libc::c_int = 0x80_0008;
const QIF_BLIMITS: u32 = 1;
const QIF_ILIMITS: u32 = 4;
const QUOTA_BLOCK: u64 = 1024;

/// A session with a quota has an inode for so many of its bytes, and at least so many: the disk's inodes
/// are as finite as its blocks, of which it has 16 KiB for each.
const INODE_BYTES: u64 = 8 << 10;
const LEAST_INODES: u64 = 4096;

#[repr(C)]
#[derive(Default)]
struct QuotaBlock {
    hard_blocks: u64,
    soft_blocks: u64,
    bytes: u64,
    hard_inodes: u64,
    soft_inodes: u64,
    inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// Where sessions keep what they have.
#[derive(Debug)]
pub(super) enum Disk {
    /// An ext4 file system.
    Ext4(Ext4),
    /// Guest memory.
    Memory,
}

#[derive(Debug)]
pub(super) struct Ext4 {
    /// Its root.
    root: OwnedFd,
    sessions: OwnedFd,
    /// Why there are no quotas, if there are none.
    no_quota: Option<Errno>,
    sweeper: Sender<Litter>,
}

/// A folder that waits for its deletion, and the user who is free afterwards.
struct Litter {
    name: String,
    uid: u32,
}

/// A session's folder as its view needs it.
pub(super) enum Folder {
    /// Detached mounts of home, `/tmp` and `/var/tmp`.
    Mounts([OwnedFd; 3]),
    /// A tmpfs to be made, of this size at most.
    Memory(Option<u64>),
}

impl Disk {
    /// Prepares the writable layer: `root` is that of an ext4 file system, if there is a disk.
    pub(super) fn prepare(root: Option<OwnedFd>, users: &Arc<Users>) -> io::Result<Self> {
        let Some(root) = root else { return Ok(Self::Memory) };
        for folder in [SESSIONS, TRASH] {
            make_folder(&root, folder, 0o700)?;
        }
        let sessions = open_folder(&root, SESSIONS)?;
        let no_quota = quotactl(&sessions, Q_QUOTAON, 0, &mut QuotaBlock::default()).err();
        // Enforced since an earlier life of the disk.
        let no_quota = no_quota.filter(|errno| *errno != Errno::BUSY && *errno != Errno::EXIST);

        // Sessions of an earlier machine keep their users until they are removed.
        for name in names(&sessions)? {
            let status = statat(&sessions, format!("{name}/{HOME}"), AtFlags::SYMLINK_NOFOLLOW);
            if let Ok(status) = status {
                users.keep(&name, status.st_uid);
            }
        }
        let trash = open_folder(&root, TRASH)?;
        let (sweeper, litter) = mpsc::channel::<Litter>();
        for name in names(&trash)? {
            let _ = sweeper.send(Litter { name, uid: 0 });
        }
        let users = Arc::clone(users);
        thread::Builder::new().name("sweeper".into()).stack_size(64 << 10).spawn(move || {
            for Litter { name, uid } in litter {
                match sweep(&trash, &name) {
                    Ok(()) => users.release(uid),
                    // The user stays taken: somebody else's files would be theirs.
                    Err(error) => eprintln!("cabana-agent: deleting a session's files: {error}"),
                }
            }
        })?;
        Ok(Self::Ext4(Ext4 { root, sessions, no_quota, sweeper }))
    }

    /// The device that limits of I/O are for.
    pub(super) fn device(&self) -> Option<(u32, u32)> {
        let Self::Ext4(ext4) = self else { return None };
        let device = fstat(&ext4.root).ok()?.st_dev;
        Some((rustix::fs::major(device), rustix::fs::minor(device)))
    }

    /// Makes a session's folder, or takes that of an earlier machine's session of the same name.
    pub(super) fn create(&self, name: &str, uid: u32, quota: Option<u64>) -> io::Result<Folder> {
        let Self::Ext4(ext4) = self else { return Ok(Folder::Memory(quota)) };
        let made = ext4.create(name, uid, quota);
        if made.is_err() {
            let _ = self.remove(name, uid);
        }
        made.map(Folder::Mounts)
    }

    /// Changes the quota. A tmpfs is changed where it is mounted.
    pub(super) fn set_quota(&self, uid: u32, quota: Option<u64>) -> io::Result<()> {
        match self {
            Self::Ext4(ext4) => ext4.set_quota(uid, quota),
            Self::Memory => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The bytes that the session has on the disk.
    pub(super) fn used(&self, uid: u32) -> u64 {
        let Self::Ext4(ext4) = self else { return 0 };
        let mut block = QuotaBlock::default();
        match quotactl(&ext4.sessions, Q_GETQUOTA, uid, &mut block) {
            Ok(()) => block.bytes,
            Err(_) => 0,
        }
    }

    /// Puts the session's folder out of sight and has it deleted; the user is free afterwards. It takes
    /// no space on the disk.
    pub(super) fn remove(&self, name: &str, uid: u32) -> io::Result<Removed> {
        let Self::Ext4(ext4) = self else { return Ok(Removed::Whole) };
        let litter = format!("{uid}-{name}");
        match renameat(&ext4.sessions, name, &ext4.root, format!("{TRASH}/{litter}")) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(Removed::Whole),
            Err(errno) => return Err(errno.into()),
        }
        let _ = ext4.set_quota(uid, None);
        let _ = ext4.sweeper.send(Litter { name: litter, uid });
        Ok(Removed::Later)
    }
}

/// What is left of a removed session's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removed {
    /// Nothing.
    Whole,
    /// Its files, which are being deleted; their user is released after that.
    Later,
}

impl Ext4 {
    fn create(&self, name: &str, uid: u32, quota: Option<u64>) -> io::Result<[OwnedFd; 3]> {
        let owner = (Uid::from_raw(uid), Gid::from_raw(uid));
        make_folder(&self.sessions, name, 0o700)?;
        let folder = open_folder(&self.sessions, name)?;
        set_project(&folder, uid, self.no_quota.is_none())?;
        self.set_quota(uid, quota)?;
        for temporary in [TMP, VAR_TMP] {
            // What an earlier machine left there is no use to anybody.
            let stale = format!("{TRASH}/{uid}-{temporary}-{name}");
            if renameat(&folder, temporary, &self.root, &stale).is_ok() {
                let name = stale.trim_start_matches("trash/").to_owned();
                let _ = self.sweeper.send(Litter { name, uid: 0 });
            }
        }
        let mount = |part: &str| -> io::Result<OwnedFd> {
            if make_folder(&folder, part, 0o700)? {
                let open = open_folder(&folder, part)?;
                set_project(&open, uid, self.no_quota.is_none())?;
                chownat(&folder, part, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
            Ok(open_tree(&folder, part, flags)?)
        };
        Ok([mount(HOME)?, mount(TMP)?, mount(VAR_TMP)?])
    }

    fn set_quota(&self, uid: u32, quota: Option<u64>) -> io::Result<()> {
        match (self.no_quota, quota) {
            (None, _) => {}
            (Some(_), None) => return Ok(()),
            (Some(_), Some(_)) => return Err(io::ErrorKind::Unsupported.into()),
        }
        let hard_blocks = quota.map_or(0, |bytes| bytes.div_ceil(QUOTA_BLOCK));
        let hard_inodes = quota.map_or(0, |bytes| (bytes / INODE_BYTES).max(LEAST_INODES));
        let valid = QIF_BLIMITS | QIF_ILIMITS;
        let mut block = QuotaBlock { hard_blocks, hard_inodes, valid, ..QuotaBlock::default() };
        Ok(quotactl(&self.sessions, Q_SETQUOTA, uid, &mut block)?)
    }
}

/// Puts a folder, and what will be made in it, into a project.
fn set_project(folder: &OwnedFd, project: u32, supported: bool) -> io::Result<()> {
    if !supported {
        return Ok(());
    }
    let mut attributes = FsXattr { flags: FS_XFLAG_PROJINHERIT, project, ..FsXattr::default() };
    // SAFETY: the kernel reads a `struct fsxattr`.
    let result =
        unsafe { libc::ioctl(folder.as_raw_fd(), FS_IOC_FSSETXATTR as _, &raw mut attributes) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn quotactl(
    fd: &OwnedFd,
    command: libc::c_int,
    project: u32,
    block: &mut QuotaBlock,
) -> Result<(), Errno> {
    const { assert!(mem::size_of::<QuotaBlock>() == 72) };
    // SAFETY: the kernel reads or writes a `struct if_dqblk`, or nothing (Q_QUOTAON).
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            fd.as_raw_fd(),
            command << 8 | PROJECT_QUOTA,
            project,
            std::ptr::from_mut(block),
        )
    };
    if result < 0 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL));
    }
    Ok(())
}

/// Deletes a folder with all that is in it, however deep and wide: it goes down into the first folder that
/// is not empty and up again by `..`, so that neither memory nor descriptors grow. Nobody else is there.
fn sweep(trash: &OwnedFd, name: &str) -> io::Result<()> {
    let mut folder = open_folder(trash, name)?;
    let mut depth = 0u64;
    loop {
        match empty(&folder)? {
            Some(child) => {
                folder = open_folder(&folder, &child)?;
                depth += 1;
            }
            None if depth > 0 => {
                folder = open_folder(&folder, c"..")?;
                depth -= 1;
            }
            None => return Ok(unlinkat(trash, name, AtFlags::REMOVEDIR)?),
        }
    }
}

/// Deletes what is in a folder up to the first folder that is not empty, which it returns.
fn empty(folder: &OwnedFd) -> io::Result<Option<CString>> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let deleted = unlinkat(folder, name, AtFlags::empty()).or_else(|errno| match errno {
            Errno::ISDIR => unlinkat(folder, name, AtFlags::REMOVEDIR),
            other => Err(other),
        });
        match deleted {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(Some(name.into())),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(None)
}

fn names(folder: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        if let Ok(name) = entry?.file_name().to_str()
            && !matches!(name, "." | "..")
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Makes a folder unless it exists; says whether it is new.
fn make_folder(parent: &OwnedFd, name: &str, mode: u32) -> io::Result<bool> {
    match mkdirat(parent, name, Mode::from_raw_mode(mode)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Opens a folder itself, never what a link of this name leads to.
fn open_folder(parent: &OwnedFd, name: impl Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_deep_and_hostile_tree_is_deleted_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let root = OwnedFd::from(fs::File::open(folder.path()).unwrap());
        fs::create_dir(folder.path().join("keep")).unwrap();
        fs::write(folder.path().join("keep/file"), "kept").unwrap();
        fs::create_dir(folder.path().join("tree")).unwrap();
        // Deeper than descriptors or a path allow.
        let mut deep = open_folder(&root, "tree").unwrap();
        for level in 0..3000 {
            let name = format!("a-name-that-makes-the-path-long-{level}");
            make_folder(&deep, &name, 0o700).unwrap();
            deep = open_folder(&deep, name.as_str()).unwrap();
        }
        for wide in 0..50 {
            fs::create_dir_all(folder.path().join(format!("tree/{wide}/a/b"))).unwrap();
            fs::write(folder.path().join(format!("tree/{wide}/file")), "").unwrap();
        }
        symlink("../keep", folder.path().join("tree/link")).unwrap();
        fs::hard_link(folder.path().join("keep/file"), folder.path().join("tree/hard")).unwrap();
        let mode = fs::Permissions::from_mode(0o555);
        if rustix::process::geteuid().is_root() {
            fs::set_permissions(folder.path().join("tree/7"), mode).unwrap();
        }
        sweep(&root, "tree").unwrap();
        assert!(!folder.path().join("tree").exists());
        assert_eq!(fs::read_to_string(folder.path().join("keep/file")).unwrap(), "kept");
    }
}

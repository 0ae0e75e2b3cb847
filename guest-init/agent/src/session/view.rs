//! What a session sees: namespaces of its own, with a root that is put together for it.
//!
//! | path | what stands there |
//! |---|---|
//! | `/` | a tmpfs, read-only: the machine's links at its root, and folders for what follows |
//! | `/usr`, `/etc`, every folder of the machine's root that is not empty | the same, read-only |
//! | `/etc/passwd`, `/etc/group` | with the session's user |
//! | `/sessions/NAME`, `/tmp`, `/var/tmp` | its own, on the disk, within its quota |
//! | `/dev`, `/dev/pts`, `/dev/shm` | its own: the harmless devices, its terminals, its shared memory |
//! | `/proc`, `/sys`, `/sys/fs/cgroup` | of its own namespaces, the latter two read-only |
//! | `/run` | empty: no socket of the machine's services |
//!
//! It is made on a thread that leaves the machine's namespaces for it, so that this is ordinary code, and
//! kept by the process that [`keeper`](super::keeper) forks from that thread.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::{fs, io};

use cabana_protocol::SessionCard;
use rustix::fs::{CWD, Dev, FileType, Mode, makedev, mknodat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount, mount_bind,
    mount_change, move_mount, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::card::Parent;
use super::disk::{Folder, HOME, TMP, VAR_TMP};
use super::{SessionError, mounting, share, users};
use crate::fork;
use crate::init::settings;

/// Where the root is put together.
const ROOT: &str = "/run/cabana/root";

/// Folders at the root that a session has anew. `root` and `run` hold what is the machine's.
const OWN: [&str; 8] = ["dev", "proc", "sys", "run", "tmp", "sessions", "root", "lost+found"];

/// Character devices, with their numbers (`Documentation/admin-guide/devices.txt`).
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const DEVICE_LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

const NO_DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const NO_PROGRAMS: MountFlags = NO_DEVICES.union(MountFlags::NOEXEC);

/// What a view is made of.
pub(super) struct Plan<'a> {
    pub(super) name: &'a str,
    pub(super) uid: u32,
    pub(super) folder: Folder,
    /// The most bytes in `/dev/shm`.
    pub(super) shared_memory: Option<u64>,
    pub(super) shares: Vec<share::Ready>,
    /// What it reaches beyond its loopback interface.
    pub(super) card: Option<&'a SessionCard>,
}

/// Leaves this thread's namespaces for those of a new session and makes its view in them. The thread is of
/// no use for anything else afterwards.
pub(super) fn enter(plan: Plan<'_>) -> Result<(), SessionError> {
    let at_card = SessionError::at::<io::Error>;
    let parent = plan.card.map(Parent::find).transpose();
    let parent = parent.map_err(at_card("the machine's network card"))?;
    let flags = UnshareFlags::FS
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWNET;
    // SAFETY: descriptors stay shared; what this thread no longer shares are its root, its folder and
    // namespaces, on which nothing else that it does depends.
    unsafe { unshare_unsafe(flags) }.map_err(SessionError::at("new namespaces"))?;
    rustix::process::umask(Mode::empty());
    // What is mounted here shall not appear in the machine, whatever its root has made of its mounts.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(SessionError::at("making mounts private"))?;
    rustix::system::sethostname(plan.name.as_bytes())
        .map_err(SessionError::at("setting the host name"))?;
    settings::try_loopback_up().map_err(SessionError::at("the loopback interface"))?;
    if let (Some(parent), Some(card)) = (&parent, plan.card) {
        parent.give(card).map_err(at_card("its network card"))?;
    }
    build(plan)
}

fn build(plan: Plan<'_>) -> Result<(), SessionError> {
    let Plan { name, uid, folder, shared_memory, shares, .. } = plan;
    mount("session", ROOT, "tmpfs", NO_DEVICES, c"mode=755,nr_inodes=4096,size=4m")
        .map_err(SessionError::at("its root"))?;
    rustix::process::chdir(ROOT).map_err(SessionError::at("its root"))?;
    for (path, mode) in [
        ("dev", 0o755),
        ("proc", 0o555),
        ("sys", 0o555),
        ("run", 0o755),
        ("root", 0o700),
        ("tmp", 0o755),
        ("sessions", 0o755),
    ] {
        make_folder(path, mode)?;
    }
    let home = format!("sessions/{name}");
    make_folder(&home, 0o755)?;
    let folders = base()?;
    for share in &shares {
        share.prepare(&folders)?;
    }
    for base in &folders {
        mount_bind(Path::new("/").join(base), base)
            .map_err(SessionError::at("the machine's root"))?;
    }
    tables(name, uid)?;
    lock()?;

    devices(shared_memory)?;
    mount("sys", "sys", "sysfs", NO_PROGRAMS | MountFlags::RDONLY, None)
        .map_err(SessionError::at("/sys"))?;
    disk(folder, uid, &home)?;
    for share in shares {
        share.attach(CWD)?;
    }
    change_root().map_err(SessionError::at("changing to its root"))
}

/// Makes the machine's links and empty folders at the root, and folders for its others, which it returns.
fn base() -> Result<Vec<PathBuf>, SessionError> {
    let mut folders = Vec::new();
    let entries = fs::read_dir("/").map_err(SessionError::at("the machine's root"))?;
    for entry in entries {
        let entry = entry.map_err(SessionError::at("the machine's root"))?;
        let (name, path) = (entry.file_name(), entry.path());
        let kind = entry.file_type().map_err(SessionError::at("the machine's root"))?;
        if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(SessionError::at("the machine's root"))?;
            symlink(target, &name).map_err(SessionError::at("its root"))?;
        } else if kind.is_dir() && !OWN.iter().any(|own| name == *own) {
            make_folder(&name, 0o755)?;
            // An empty one is the session's, so that mount points in it are nobody else's business.
            let mut content =
                fs::read_dir(&path).map_err(SessionError::at("the machine's root"))?;
            if content.next().is_some() {
                folders.push(name.into());
            }
        }
    }
    Ok(folders)
}

/// Puts the session's own tables of users and groups over the machine's.
fn tables(name: &str, uid: u32) -> Result<(), SessionError> {
    for (file, table) in users::tables(name, uid) {
        let Some(table) = table else { continue };
        let at = SessionError::at("its /etc/passwd and /etc/group");
        let place = format!("etc/{file}");
        let put = || -> io::Result<()> {
            fork::without_children(|| fs::write(file, table))?;
            rustix::fs::chmod(file, Mode::from_raw_mode(0o644))?;
            mount_bind(file, place.as_str())?;
            // It stays as long as it is mounted.
            fs::remove_file(file)
        };
        put().map_err(at)?;
    }
    Ok(())
}

fn devices(shared_memory: Option<u64>) -> Result<(), SessionError> {
    let at = |what| SessionError::at::<io::Error>(what);
    mount(
        "dev",
        "dev",
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"mode=755,nr_inodes=64,size=64k",
    )
    .map_err(SessionError::at("/dev"))?;
    let make = || -> io::Result<()> {
        for (name, major, minor) in DEVICES {
            let device: Dev = makedev(major, minor);
            let mode = Mode::from_raw_mode(0o666);
            mknodat(CWD, format!("dev/{name}"), FileType::CharacterDevice, mode, device)?;
        }
        for (link, target) in DEVICE_LINKS {
            symlink(target, format!("dev/{link}"))?;
        }
        fs::create_dir("dev/pts")?;
        fs::create_dir("dev/shm")
    };
    make().map_err(at("/dev"))?;
    // Of a number that all sessions share.
    let options = c"mode=620,gid=5,ptmxmode=666,max=256";
    mount("devpts", "dev/pts", "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, options)
        .map_err(SessionError::at("/dev/pts"))?;
    let size = shared_memory.map_or_else(String::new, |size| format!(",size={size}"));
    mount("shm", "dev/shm", "tmpfs", NO_DEVICES, text(format!("mode=1777{size}")).as_deref())
        .map_err(SessionError::at("/dev/shm"))?;
    // Nothing more is made in /dev.
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::RDONLY | MountFlags::BIND;
    rustix::mount::mount_remount("dev", flags, "").map_err(SessionError::at("/dev"))
}

/// Mounts home, `/tmp` and `/var/tmp`.
fn disk(folder: Folder, uid: u32, home: &str) -> Result<(), SessionError> {
    let at = SessionError::at::<io::Error>;
    match folder {
        Folder::Mounts(mounts) => {
            for (mount, place) in mounts.iter().zip([home, "tmp", "var/tmp"]) {
                let set = mounting::NOSUID | mounting::NODEV;
                mounting::change(mount.as_fd(), c"", libc::AT_EMPTY_PATH, set, 0)
                    .map_err(at("its disk"))?;
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                move_mount(mount, "", CWD, place, flags).map_err(SessionError::at("its disk"))?;
            }
        }
        Folder::Memory(size) => {
            let size = size.map_or_else(String::new, |size| format!(",size={size}"));
            mount("disk", home, "tmpfs", NO_DEVICES, text(format!("mode=711{size}")).as_deref())
                .map_err(SessionError::at("its disk"))?;
            let make = || -> io::Result<()> {
                for part in [TMP, VAR_TMP, HOME] {
                    let path = Path::new(home).join(part);
                    fs::DirBuilder::new().mode(0o700).create(&path)?;
                    std::os::unix::fs::chown(&path, Some(uid), Some(uid))?;
                }
                mount_bind(Path::new(home).join(TMP), "tmp")?;
                mount_bind(Path::new(home).join(VAR_TMP), "var/tmp")?;
                mount_bind(Path::new(home).join(HOME), home)?;
                Ok(())
            };
            make().map_err(at("its disk"))?;
        }
    }
    Ok(())
}

/// Makes everything that is mounted so far read-only, without set-user-ID programs and devices.
fn lock() -> Result<(), SessionError> {
    let set = mounting::RDONLY | mounting::NOSUID | mounting::NODEV;
    mounting::change(CWD, c".", libc::AT_RECURSIVE, set, 0)
        .map_err(SessionError::at("making its root read-only"))
}

/// Makes the current folder the root of this thread, and lets go of the machine's.
fn change_root() -> io::Result<()> {
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

fn make_folder(path: impl AsRef<Path>, mode: u32) -> Result<(), SessionError> {
    fs::DirBuilder::new().mode(mode).create(path).map_err(SessionError::at("its root"))
}

/// Options of a mount, which have no zero in them.
fn text(options: String) -> Option<CString> {
    CString::new(options).ok()
}

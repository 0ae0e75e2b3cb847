//! The kernel's file systems and the root.
//!
//! The root is an overlay: the EROFS image below, and above it an ext4 file system on a disk or, without
//! one, guest RAM. It is put together in the initramfs and then moved over it. The initramfs itself
//! holds nothing but the running agent, so there is nothing to free.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use cabana_protocol::{RootSetup, SetupFailed};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, inotify};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move, mount_remount};

use super::{IMAGE, NEW_ROOT, SCRATCH, failed};

/// `redirect_dir` lets folders of the image be renamed; `xino` gives all files of the root one device
/// number where inode numbers leave room.
const OVERLAY_OPTIONS: &CStr =
    c"lowerdir=/image,upperdir=/scratch/upper,workdir=/scratch/work,redirect_dir=on,xino=auto";

/// `discard` returns the space of deleted files to the host.
const SCRATCH_OPTIONS: &CStr = c"discard,noinit_itable,no_prefetch_block_bitmaps";

/// How long a device's node may take to appear once the agent runs.
const DEVICE_LIMIT: Duration = Duration::from_secs(60);

/// How long to rest before a device without a disk is tried again.
const DEVICE_REST: Duration = Duration::from_millis(1);

const NO_PROGRAMS: MountFlags =
    MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// What is left to do for the root when the machine ends.
pub(super) struct Root {
    /// The root of the ext4 file system, which has no path any more.
    scratch: Option<OwnedFd>,
}

impl Root {
    /// The root of the writable ext4 file system, for sessions.
    pub(super) fn disk(&self) -> io::Result<Option<OwnedFd>> {
        self.scratch.as_ref().map(OwnedFd::try_clone).transpose()
    }
}

/// Mounts the device nodes.
pub(super) fn mount_dev() -> io::Result<()> {
    Ok(mount("dev", "/dev", "devtmpfs", MountFlags::NOSUID | MountFlags::NOEXEC, c"mode=755")?)
}

/// Mounts what every Linux program expects and no setup changes; what fails is a warning.
pub(super) fn mount_kernel_file_systems() -> Vec<String> {
    let mut warnings = Vec::new();
    let mut attempt = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            warnings.push(format!("{what}: {error}"));
        }
    };
    let list: [(&str, &str, MountFlags, Option<&CStr>); 5] = [
        ("/proc", "proc", NO_PROGRAMS, None),
        ("/sys", "sysfs", NO_PROGRAMS, None),
        ("/sys/fs/cgroup", "cgroup2", NO_PROGRAMS, None),
        (
            "/dev/pts",
            "devpts",
            MountFlags::NOSUID.union(MountFlags::NOEXEC),
            Some(c"mode=620,gid=5,ptmxmode=666"),
        ),
        ("/dev/shm", "tmpfs", MountFlags::NOSUID.union(MountFlags::NODEV), Some(c"mode=1777")),
    ];
    for (target, kind, flags, options) in list {
        let result = if target.starts_with("/dev/") { make_folder(target) } else { Ok(()) };
        let result = result.and_then(|()| Ok(mount(kind, target, kind, flags, options)?));
        attempt(&format!("mounting {target} ({kind})"), result);
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        attempt(&format!("linking {link}"), symlink(target, link));
    }
    warnings
}

/// Puts the root together and makes it the root of this and every later process.
pub(super) fn mount_root(setup: &RootSetup) -> Result<Root, SetupFailed> {
    let dax = if setup.dax { Some(c"dax=always") } else { None };
    mount_device(&setup.image, IMAGE, "erofs", MountFlags::RDONLY, dax)?;
    let scratch = mount_scratch(setup.scratch.as_deref())?;
    mount("overlay", NEW_ROOT, "overlay", MountFlags::NOATIME, OVERLAY_OPTIONS)
        .map_err(|errno| failed("mounting the root (overlay)", io::Error::from(errno)))?;
    enter_root().map_err(|error| failed("changing to the root", error))?;
    Ok(Root { scratch })
}

/// Mounts what stands above the image, with the two folders that the overlay needs; the descriptor is
/// for a disk.
fn mount_scratch(device: Option<&str>) -> Result<Option<OwnedFd>, SetupFailed> {
    match device {
        Some(device) => {
            let options = Some(SCRATCH_OPTIONS);
            mount_device(device, SCRATCH, "ext4", MountFlags::NOATIME, options)?;
        }
        None => mount("scratch", SCRATCH, "tmpfs", MountFlags::NOATIME, c"mode=755")
            .map_err(|errno| failed("mounting RAM above the root image", io::Error::from(errno)))?,
    }
    let prepared = (|| {
        make_folder(&format!("{SCRATCH}/upper"))?;
        make_folder(&format!("{SCRATCH}/work"))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(SCRATCH, flags, Mode::empty())?)
    })();
    let scratch = prepared.map_err(|error: io::Error| {
        failed(format!("preparing {}", device.unwrap_or("RAM above the root image")), error)
    })?;
    Ok(device.map(|_| scratch))
}

/// Mounts what is on a device, once that is there. For a moment after its node has appeared the kernel
/// knows no disk behind it yet (`device_add_disk`) and answers ENXIO.
fn mount_device(
    device: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    options: Option<&CStr>,
) -> Result<(), SetupFailed> {
    let deadline = Instant::now() + DEVICE_LIMIT;
    await_device(device);
    loop {
        match mount(device, target, kind, flags, options) {
            Err(Errno::NXIO) if Instant::now() < deadline => thread::sleep(DEVICE_REST),
            result => return result.map_err(|errno| device_failure(device, kind, errno)),
        }
    }
}

/// Waits until a device's node is there, for drivers that probe in the background (pmem's does). The
/// mount that follows says what is wrong with one that does not come.
fn await_device(path: &str) {
    let path = Path::new(path);
    if path.exists() {
        return;
    }
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let Ok(watch) = inotify::init(flags) else { return };
    if inotify::add_watch(&watch, "/dev", inotify::WatchFlags::CREATE).is_err() {
        return;
    }
    let deadline = Instant::now() + DEVICE_LIMIT;
    let mut events = [0; 1024];
    while !path.exists() {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(timeout) = left.try_into() else { return };
        if !matches!(poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&timeout)), Ok(1)) {
            return;
        }
        // That there were events is all they say.
        while rustix::io::read(&watch, &mut events).is_ok() {}
    }
}

/// Takes the kernel's file systems along and puts the new root over the initramfs.
fn enter_root() -> io::Result<()> {
    rustix::process::chdir(NEW_ROOT)?;
    for folder in ["dev", "proc", "sys", "run"] {
        make_folder(folder)?;
    }
    for folder in ["dev", "proc", "sys"] {
        mount_move(format!("/{folder}").as_str(), folder)?;
    }
    mount("run", "run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=755")?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    Ok(rustix::process::chdir("/")?)
}

/// Writes everything to the disk and leaves its file system clean, so that the next start has no
/// journal to replay.
pub(super) fn flush(root: &Root) {
    rustix::fs::sync();
    let Some(scratch) = &root.scratch else {
        return;
    };
    let path = format!("/proc/self/fd/{}", scratch.as_raw_fd());
    for (what, path) in [("the root", "/"), ("the writable disk", path.as_str())] {
        if let Err(errno) = mount_remount(path, MountFlags::RDONLY, "") {
            let error = io::Error::from(errno);
            eprintln!("cabana-agent: {what} is flushed but not closed: {error}");
        }
    }
}

/// Makes a folder unless it exists.
fn make_folder(path: &str) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Says why a device cannot be mounted in words that tell what to do.
fn device_failure(device: &str, kind: &str, errno: Errno) -> SetupFailed {
    let what = format!("mounting {device} ({kind})");
    match errno {
        Errno::NOENT | Errno::NXIO => failed(what, "the machine has no such device"),
        Errno::NODEV => failed(what, format!("the guest's kernel has no {kind}")),
        Errno::INVAL => failed(what, format!("it does not hold a sound {kind} file system")),
        other => failed(what, io::Error::from(other)),
    }
}

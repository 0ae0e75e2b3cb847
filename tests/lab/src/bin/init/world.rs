//! The outer machine's world: modules, the host's files, devices, kernel file systems.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use cabana_lab::initramfs::{MODULES, WRITABLE};
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{Resource, Rlimit, chdir, chroot, setrlimit};
use rustix::system::{finit_module, sethostname};

/// Where the new root is put together before it becomes `/`.
const ROOT: &str = "/new";
/// The host's root for reading, with caches that trust it not to change.
const LOWER: &str = "/lower";
/// The host's root for the writable folders, with caches that ask again.
const SHARED: &str = "/shared";
/// How many files a process may open: what a desktop Linux allows.
const OPEN_FILES: u64 = 1 << 20;

/// What init could not do.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub(crate) struct Error {
    what: String,
    source: io::Error,
}

impl Error {
    /// `what` continues the sentence "cannot …".
    pub(crate) fn new(what: impl Into<String>, source: io::Error) -> Self {
        Self { what: what.into(), source }
    }
}

/// Builds everything; afterwards `/` looks like the host's.
pub(crate) fn build() -> Result<(), Error> {
    file_system("devtmpfs", "/dev", "devtmpfs", "")?;
    load_modules()?;
    file_system("root", LOWER, "virtiofs", "")?;
    file_system("shared", SHARED, "virtiofs", "")?;
    file_system("upper", "/upper", "tmpfs", "size=75%")?;
    directory("/upper/files")?;
    directory("/upper/work")?;
    let layers = format!(
        "lowerdir={LOWER},upperdir=/upper/files,workdir=/upper/work,xino=off,redirect_dir=off,index=off,metacopy=off"
    );
    file_system("overlay", ROOT, "overlay", &layers)?;
    kernel_file_systems()?;
    for folder in writable()? {
        bind_writable(&folder)?;
    }
    enter()?;
    comforts()
}

/// Inserts the modules in the order of their names, which start with a number.
fn load_modules() -> Result<(), Error> {
    let what = || format!("list {MODULES}");
    let mut modules = fs::read_dir(MODULES)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(|error| Error::new(what(), error))?;
    modules.sort_by_key(fs::DirEntry::file_name);
    for module in modules {
        let path = module.path();
        let what = || format!("load {}", path.display());
        let file = fs::File::open(&path).map_err(|error| Error::new(what(), error))?;
        finit_module(file, c"", 0).map_err(|error| Error::new(what(), error.into()))?;
    }
    Ok(())
}

/// The folders that the host gives for writing, as absolute paths of the host.
fn writable() -> Result<Vec<PathBuf>, Error> {
    let list = fs::read(WRITABLE).map_err(|error| Error::new(format!("read {WRITABLE}"), error))?;
    let paths = list.split(|byte| *byte == 0).filter(|path| !path.is_empty());
    Ok(paths.map(|path| PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()))).collect())
}

/// What every Linux has under `/dev`, `/proc`, `/sys`, `/run` and `/tmp`.
fn kernel_file_systems() -> Result<(), Error> {
    let inside = |path: &str| format!("{ROOT}{path}");
    mount_move("/dev", inside("/dev"))
        .map_err(|error| Error::new("move /dev into the new root", error.into()))?;
    for (kind, path, options) in [
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("tmpfs", "/run", "mode=0755"),
        ("tmpfs", "/tmp", "mode=1777"),
        ("tmpfs", "/dev/shm", "mode=1777"),
        ("devpts", "/dev/pts", "mode=0620,ptmxmode=0666"),
        ("cgroup2", "/sys/fs/cgroup", ""),
        ("debugfs", "/sys/kernel/debug", ""),
        ("tracefs", "/sys/kernel/tracing", ""),
    ] {
        file_system(kind, &inside(path), kind, options)?;
    }
    Ok(())
}

/// Lays one of the host's folders over the overlay, at the same path.
fn bind_writable(folder: &Path) -> Result<(), Error> {
    let relative = folder.strip_prefix("/").unwrap_or(folder);
    let (from, to) = (Path::new(SHARED).join(relative), Path::new(ROOT).join(relative));
    let what = || format!("share {}", folder.display());
    fs::create_dir_all(&to).map_err(|error| Error::new(what(), error))?;
    mount_bind(&from, &to).map_err(|error| Error::new(what(), error.into()))
}

/// Makes the new root `/`, by moving and not by a mere chroot, so that the commands may use user
/// namespaces.
fn enter() -> Result<(), Error> {
    let entered = chdir(ROOT).and_then(|()| mount_move(".", "/")).and_then(|()| chroot("."));
    entered.and_then(|()| chdir("/")).map_err(|error| Error::new("enter the root", error.into()))
}

/// The small things that programs expect of a machine.
fn comforts() -> Result<(), Error> {
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        match symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::new(format!("link {link}"), error));
            }
            _ => {}
        }
    }
    fs::set_permissions("/dev/kvm", Permissions::from_mode(0o666)).map_err(|error| {
        Error::new("open /dev/kvm to everybody (does the kernel have KVM?)", error)
    })?;
    fs::create_dir_all("/run/lock").map_err(|error| Error::new("make /run/lock", error))?;
    sethostname(b"lab").map_err(|error| Error::new("set the host name", error.into()))?;
    let limit = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    setrlimit(Resource::Nofile, limit)
        .map_err(|error| Error::new("raise the limit of open files", error.into()))?;
    loopback_up()
}

/// Brings `lo` up, for tests that talk to themselves.
fn loopback_up() -> Result<(), Error> {
    // IFF_UP | IFF_LOOPBACK, through sysfs, which needs no ioctl.
    fs::write("/sys/class/net/lo/flags", "0x9")
        .map_err(|error| Error::new("bring the loopback interface up", error))
}

/// Mounts a file system, making its mount point.
fn file_system(source: &str, target: &str, kind: &str, options: &str) -> Result<(), Error> {
    directory(target)?;
    let data = CString::new(options).unwrap_or_default();
    mount(source, target, kind, MountFlags::empty(), &*data).map_err(|error| {
        Error::new(format!("mount {kind} on {target} with {options:?}"), error.into())
    })
}

/// Makes a directory unless it is there.
fn directory(path: &str) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|error| Error::new(format!("make {path}"), error))
}

//! Connected folders: one virtio-fs device serves them all as children of one root, from which each is
//! bind-mounted onto its path.

use std::path::{Component, Path};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use cabana_protocol::control::SHARES_TAG;
use cabana_protocol::{SetupFailed, ShareMount};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

use super::{failed, watch};

/// Where the device's root is mounted.
pub(super) const ROOT: &str = "/run/cabana/shares";

/// What is mounted: the machine has one device, which shares come to and go from.
static MOUNTED: Mutex<Mounted> = Mutex::new(Mounted { root: false, shares: Vec::new() });

struct Mounted {
    root: bool,
    /// What is shown to the machine itself, the latest last.
    shares: Vec<ShareMount>,
}

/// Mounts all shares; without any, the device need not exist.
pub(super) fn mount_all(shares: &[ShareMount]) -> Result<(), SetupFailed> {
    shares.iter().try_for_each(mount_one)
}

/// Where every share of the machine is a folder; mounted when it is first asked for.
pub(crate) fn root() -> Result<&'static Path, SetupFailed> {
    let mut mounted = lock();
    if !mounted.root {
        let what = "mounting the shared folders (virtio-fs)";
        fs::create_dir_all(ROOT).map_err(|error| failed(what, error))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount(SHARES_TAG, ROOT, "virtiofs", flags, None).map_err(|errno| match errno {
            Errno::NODEV => failed(what, "the guest's kernel has no virtiofs"),
            Errno::INVAL => {
                failed(what, format!("the machine has no device with tag `{SHARES_TAG}`"))
            }
            other => failed(what, io::Error::from(other)),
        })?;
        mounted.root = true;
    }
    Ok(Path::new(ROOT))
}

/// Shows a share to the machine itself.
pub(crate) fn mount_one(share: &ShareMount) -> Result<(), SetupFailed> {
    let ShareMount { name, guest_path, read_only } = share;
    let what = format!("mounting share `{name}` on {guest_path}");
    let mut components = Path::new(name).components();
    if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
        return Err(failed(what, "its name is not that of a folder"));
    }
    if !guest_path.starts_with('/') {
        return Err(failed(what, "the path in the guest has to begin with /"));
    }
    match fs::metadata(guest_path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(failed(what, format!("{guest_path} is a file in the guest"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(guest_path).map_err(|error| failed(what.as_str(), error))?;
        }
        Err(error) => return Err(failed(what, error)),
    }
    mount_bind(root()?.join(name), guest_path.as_str()).map_err(|errno| match errno {
        Errno::NOENT => failed(what.as_str(), "the host serves no share of this name"),
        Errno::NOTDIR => failed(what.as_str(), "the share is a file on the host"),
        other => failed(what.as_str(), io::Error::from(other)),
    })?;
    if *read_only {
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        mount_remount(guest_path.as_str(), flags, "")
            .map_err(|errno| failed(what, io::Error::from(errno)))?;
    }
    lock().shares.push(share.clone());
    Ok(())
}

/// Shows the share at this path to the machine itself no longer.
pub(crate) fn unmount_one(guest_path: &str) -> Result<(), SetupFailed> {
    let mut mounted = lock();
    let what = || format!("unmounting the share on {guest_path}");
    let Some(index) = mounted.shares.iter().rposition(|share| share.guest_path == guest_path)
    else {
        return Err(failed(what(), "there is none"));
    };
    unmount(guest_path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
        .map_err(|errno| failed(what(), io::Error::from(errno)))?;
    mounted.shares.remove(index);
    Ok(())
}

/// Lets go of the device: unmounts all shares, and says which; or none, if something stands on one.
pub(super) fn release() -> Result<Vec<ShareMount>, SetupFailed> {
    let shares = std::mem::take(&mut lock().shares);
    let is_mounted = lock().root;
    if !is_mounted {
        return Ok(shares);
    }
    watch::release();
    let paths = shares.iter().rev().map(|share| share.guest_path.as_str()).chain([ROOT]);
    for (count, path) in paths.enumerate() {
        if let Err(errno) = unmount(path, UnmountFlags::NOFOLLOW) {
            let what = format!("unmounting the share on {path}");
            // Those that are gone already come back.
            let kept = shares.len().saturating_sub(count);
            lock().shares = shares[..kept].to_vec();
            let _ = mount_all(&shares[kept..]);
            watch::start(ROOT);
            return Err(match errno {
                Errno::BUSY => failed(what, "a program uses it; end that, or let it leave"),
                other => failed(what, io::Error::from(other)),
            });
        }
    }
    lock().root = false;
    Ok(shares)
}

/// Unmounts all shares, so that the host hears of every file's end.
pub(super) fn unmount_all() {
    let mounted = lock();
    if mounted.root {
        watch::stop();
    }
    let root = mounted.root.then_some(ROOT);
    let paths = mounted.shares.iter().rev().map(|share| share.guest_path.as_str());
    for path in paths.chain(root) {
        if unmount(path, UnmountFlags::NOFOLLOW).is_err() {
            // Something still stands on it: it goes with the machine.
            let _ = unmount(path, UnmountFlags::DETACH);
        }
    }
}

fn lock() -> MutexGuard<'static, Mounted> {
    MOUNTED.lock().unwrap_or_else(PoisonError::into_inner)
}

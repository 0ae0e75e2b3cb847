//! Connected folders: one virtio-fs device serves them all as children of one root, from which each is
//! bind-mounted onto its path.

use std::path::{Component, Path};
use std::{fs, io};

use cabana_protocol::control::SHARES_TAG;
use cabana_protocol::{SetupFailed, ShareMount};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

use super::failed;

/// Where the device's root is mounted.
pub(super) const ROOT: &str = "/run/cabana/shares";

/// Mounts all shares; without any, the device need not exist.
pub(super) fn mount_all(shares: &[ShareMount]) -> Result<(), SetupFailed> {
    if shares.is_empty() {
        return Ok(());
    }
    let what = "mounting the shared folders (virtio-fs)";
    fs::create_dir_all(ROOT).map_err(|error| failed(what, error))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount(SHARES_TAG, ROOT, "virtiofs", flags, None).map_err(|errno| match errno {
        Errno::NODEV => failed(what, "the guest's kernel has no virtiofs"),
        Errno::INVAL => failed(what, format!("the machine has no device with tag `{SHARES_TAG}`")),
        other => failed(what, io::Error::from(other)),
    })?;
    shares.iter().try_for_each(mount_one)
}

fn mount_one(share: &ShareMount) -> Result<(), SetupFailed> {
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
    mount_bind(format!("{ROOT}/{name}").as_str(), guest_path.as_str()).map_err(
        |errno| match errno {
            Errno::NOENT => failed(what.as_str(), "the host serves no share of this name"),
            Errno::NOTDIR => failed(what.as_str(), "the share is a file on the host"),
            other => failed(what.as_str(), io::Error::from(other)),
        },
    )?;
    if *read_only {
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        mount_remount(guest_path.as_str(), flags, "")
            .map_err(|errno| failed(what, io::Error::from(errno)))?;
    }
    Ok(())
}

/// Unmounts all shares, so that the host hears of every file's end.
pub(super) fn unmount_all(shares: &[ShareMount]) {
    if shares.is_empty() {
        return;
    }
    for path in shares.iter().rev().map(|share| share.guest_path.as_str()).chain([ROOT]) {
        if unmount(path, UnmountFlags::NOFOLLOW).is_err() {
            // Something still stands on it: it goes with the machine.
            let _ = unmount(path, UnmountFlags::DETACH);
        }
    }
}

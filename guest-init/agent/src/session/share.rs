//! Connected folders in a session: a mount of its own for each, on which the host's user is the session's.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use cabana_protocol::{Cause, ShareMount};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use super::{SessionError, mounting};
use crate::fork;
use crate::init::shares;

/// A share that is ready to be mounted in a session.
pub(super) struct Ready {
    /// A mount that is attached nowhere.
    mount: OwnedFd,
    /// Where it goes, from the session's root.
    path: PathBuf,
}

impl Ready {
    /// Takes a share of the machine's, before the session's namespaces are entered.
    pub(super) fn take(share: &ShareMount, uid: u32) -> Result<Self, SessionError> {
        let ShareMount { name, guest_path, read_only } = share;
        let invalid = |why| SessionError::refused(Cause::Invalid, format!("share `{name}`: {why}"));
        let Ok(path) = Path::new(guest_path).strip_prefix("/") else {
            return Err(invalid("the path in the guest has to begin with /"));
        };
        let normal = |component| matches!(component, Component::Normal(_));
        if path.as_os_str().is_empty() || !path.components().all(normal) {
            return Err(invalid("the path in the guest is not one that a folder can have"));
        }
        if ["dev", "proc", "sys"].iter().any(|own| path.starts_with(own)) {
            return Err(invalid("nothing can be shown in /dev, /proc and /sys"));
        }
        let mut components = Path::new(name).components();
        if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
            return Err(invalid("its name is not that of a folder"));
        }
        let root = shares::root().map_err(|failed| SessionError::of_setup(&failed))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        let mount = open_tree(CWD, root.join(name), flags).map_err(|errno| match errno {
            Errno::NOENT => {
                SessionError::refused(Cause::NotFound, format!("the host serves no share `{name}`"))
            }
            other => SessionError::at("taking a share")(other),
        })?;
        let set =
            mounting::NOSUID | mounting::NODEV | if *read_only { mounting::RDONLY } else { 0 };
        mounting::change(mount.as_fd(), c"", libc::AT_EMPTY_PATH, set, 0)
            .map_err(SessionError::at("taking a share"))?;
        let namespace = map(uid).map_err(SessionError::at("a user namespace for a share"))?;
        mounting::map_owners(mount.as_fd(), namespace.as_fd()).map_err(|error| {
            let message = format!("mapping the owners of share `{name}`: {error}");
            SessionError::refused(Cause::Unsupported, message)
        })?;
        Ok(Self { mount, path: path.to_owned() })
    }

    /// Makes the folder that it will be mounted on, from the session's root as the current folder, while
    /// that and the machine's root can still be written. `base` are the folders that the machine's root
    /// will be mounted on.
    pub(super) fn prepare(&self, base: &[PathBuf]) -> Result<(), SessionError> {
        let at = SessionError::at::<io::Error>("the folder for a share");
        let start = if base.iter().any(|base| self.path.starts_with(base)) { "/" } else { "." };
        if self.path.starts_with("sessions") || self.path.starts_with("tmp") {
            // On the session's disk, which is not there yet.
            return Ok(());
        }
        fs::create_dir_all(Path::new(start).join(&self.path)).map_err(at)
    }

    /// Mounts it in the view whose root this is. The session may be alive: links are not followed.
    pub(super) fn attach(self, root: BorrowedFd<'_>) -> Result<(), SessionError> {
        let at = |errno| SessionError::at::<Errno>("mounting a share")(errno);
        let place = place(root, &self.path).map_err(at)?;
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&self.mount, "", &place, "", flags).map_err(at)
    }
}

impl Ready {
    /// Mounts it in the view of a session that lives, whose root this is.
    pub(super) fn attach_alive(self, root: BorrowedFd<'_>) -> Result<(), SessionError> {
        match place(root, &self.path) {
            // Its folder is missing and the view is read-only: nobody but root may write there, so that
            // this can be lifted for a moment.
            Err(Errno::ROFS) => {
                let attributes = |set, clear| {
                    mounting::change(root, c"", libc::AT_EMPTY_PATH, set, clear)
                        .map_err(SessionError::at("the folder for a share"))
                };
                attributes(0, mounting::RDONLY)?;
                let made = place(root, &self.path);
                attributes(mounting::RDONLY, 0)?;
                made.map_err(SessionError::at("the folder for a share"))?;
            }
            Err(errno) => return Err(SessionError::at("the folder for a share")(errno)),
            Ok(_) => {}
        }
        self.attach(root)
    }
}

/// Unmounts the share at this path of a session that lives, whose root this is.
pub(super) fn hide(root: BorrowedFd<'_>, guest_path: &str) -> Result<(), SessionError> {
    let at = |errno| SessionError::at::<Errno>("unmounting a share")(errno);
    let path = Path::new(guest_path.trim_start_matches('/'));
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(at(Errno::INVAL));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    // The session may have put links in the way: by a descriptor of its folder the name is no path.
    rustix::process::fchdir(place(root, parent).map_err(at)?).map_err(at)?;
    unmount(name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(at)
}

/// Opens the folder for a share beneath `root`, making what is missing of it.
pub(super) fn place(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open =
        |from: BorrowedFd<'_>, part: &Path| openat2(from, part, flags, Mode::empty(), resolve);
    match open(root, path) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let mut folder = open(root, Path::new("."))?;
    for component in path.components() {
        let part = Path::new(component.as_os_str());
        match mkdirat(&folder, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        folder = open(folder.as_fd(), part)?;
    }
    Ok(folder)
}

/// A user namespace in which the host's user, who is root on a share, is the session's user.
fn map(uid: u32) -> io::Result<OwnedFd> {
    let (hold, release) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: the child makes system calls alone and ends.
    let child = unsafe { fork::fork(libc::CLONE_NEWUSER, None) }?;
    let Some(child) = child else {
        // It lives until the other end is closed, here too.
        drop(release);
        let _ = rustix::io::read(&hold, &mut [0; 1]);
        fork::exit(0);
    };
    let pid = child.pid.as_raw_pid();
    let mapped = (|| {
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{pid}/{map}"), format!("0 {uid} 1"))?;
        }
        fs::File::open(format!("/proc/{pid}/ns/user"))
    })();
    drop(release);
    let _ = rustix::process::waitid(
        rustix::process::WaitId::PidFd(child.pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    );
    Ok(mapped?.into())
}

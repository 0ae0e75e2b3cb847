//! The shares: host folders under one synthetic root, each beneath its own directory handle.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use cabana_journal::Recorder;

use crate::host::{Handle, Time};
use crate::names::Name;
use crate::observer::{Change, Observer};
use crate::wire::{self, Errno, Result};

/// A host folder to be shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// What the guest calls it: the name of its directory under the device's root.
    pub name: String,
    /// The folder on the host.
    pub path: PathBuf,
    /// The guest may change nothing in it.
    pub read_only: bool,
}

/// A folder that cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// There is nothing at the path.
    #[error("cannot share {0}: it does not exist; create it or correct the path")]
    DoesNotExist(PathBuf),
    /// The path leads to something else.
    #[error("cannot share {0}: it is not a folder; share the folder that it stands in")]
    NotAFolder(PathBuf),
    /// The folder may not be read.
    #[error("cannot share {0}: you may not read it; change its permissions or share another")]
    NotReadable(PathBuf),
    /// The name is not one that a directory can have.
    #[error("cannot share a folder as {0:?}: choose a name of 1 to 255 bytes without '/'")]
    Name(String),
    /// Another share has the name.
    #[error("cannot share a second folder as {0:?}: choose another name for it")]
    NameTaken(String),
    /// There is no share of the name.
    #[error("there is no share {0:?} to detach")]
    NotShared(String),
    /// The host refuses.
    #[error("cannot share {path}: {source}")]
    Host {
        /// The folder.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// A share while it is attached.
#[derive(Debug)]
pub(crate) struct Attached {
    /// Ascends over the life of the table; never used twice.
    pub(crate) id: u64,
    pub(crate) name: CString,
    pub(crate) root: Handle,
    pub(crate) observer: Observer,
    live: AtomicBool,
}

impl Attached {
    /// Fails where the guest may change nothing.
    pub(crate) fn check_writable(&self) -> Result<()> {
        self.observer.check_writable()
    }

    /// Makes a change, unless the share is read-only or its journal refuses. Every change that the
    /// guest asks for is made here.
    pub(crate) fn change<T>(
        &self,
        change: &Change<'_>,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.observer.change(change, make)
    }

    /// False once it is detached.
    pub(crate) fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }
}

/// All shares. They come and go while the guest runs.
#[derive(Debug, Default)]
pub(crate) struct ShareTable {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_id: BTreeMap<u64, Arc<Attached>>,
    last_id: u64,
    /// When a share last came or went.
    changed: Time,
}

impl ShareTable {
    pub(crate) fn attach(
        &self,
        share: &Share,
        journal: Option<Arc<Recorder>>,
        now: Time,
    ) -> std::result::Result<(), ShareError> {
        let bad_name = || ShareError::Name(share.name.clone());
        let name = CString::new(share.name.as_str()).map_err(|_| bad_name())?;
        Name::of_entry(&name).ok_or_else(bad_name)?;
        let root = open_readable(&share.path)?;
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        if inner.by_id.values().any(|other| other.name == name) {
            return Err(ShareError::NameTaken(share.name.clone()));
        }
        inner.last_id += 1;
        inner.changed = now;
        let id = inner.last_id;
        let live = AtomicBool::new(true);
        let observer = Observer { read_only: share.read_only, journal };
        let attached = Attached { id, name, root, observer, live };
        inner.by_id.insert(id, Arc::new(attached));
        Ok(())
    }

    pub(crate) fn detach(&self, name: &str, now: Time) -> Option<Arc<Attached>> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let found = inner.by_id.values().find(|share| share.name.to_bytes() == name.as_bytes());
        let id = found?.id;
        let share = inner.by_id.remove(&id)?;
        inner.changed = now;
        share.live.store(false, Ordering::Release);
        Some(share)
    }

    pub(crate) fn find(&self, name: Name) -> Result<Arc<Attached>> {
        let inner = self.read();
        let found = inner.by_id.values().find(|share| share.name.to_bytes() == name.as_bytes());
        found.map(Arc::clone).ok_or(Errno::ENOENT)
    }

    /// The shares with a number of at least `first`, ascending.
    pub(crate) fn from(&self, first: u64) -> Vec<Arc<Attached>> {
        self.read().by_id.range(first..).map(|(_, share)| Arc::clone(share)).collect()
    }

    /// What the guest sees of the synthetic root.
    pub(crate) fn attr(&self) -> wire::Attr {
        let inner = self.read();
        let (sec, nsec) = (inner.changed.sec as u64, inner.changed.nsec);
        wire::Attr {
            ino: wire::ROOT_ID,
            atime: sec,
            mtime: sec,
            ctime: sec,
            atimensec: nsec,
            mtimensec: nsec,
            ctimensec: nsec,
            mode: wire::mode::DIRECTORY | 0o555,
            nlink: 2 + inner.by_id.len() as u32,
            blksize: 4096,
            ..wire::Attr::default()
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_readable(path: &Path) -> std::result::Result<Handle, ShareError> {
    let refused = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ShareError::DoesNotExist(path.to_owned()),
        io::ErrorKind::NotADirectory => ShareError::NotAFolder(path.to_owned()),
        io::ErrorKind::PermissionDenied => ShareError::NotReadable(path.to_owned()),
        _ => ShareError::Host { path: path.to_owned(), source },
    };
    let handle = Handle::of_directory(path).map_err(refused)?;
    std::fs::read_dir(path).map_err(refused)?;
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(name: &str, path: &Path) -> Share {
        Share { name: name.into(), path: path.into(), read_only: false }
    }

    #[test]
    fn what_cannot_be_shared_is_said_in_a_sentence() {
        let table = ShareTable::default();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let attach = |name: &str, path: &Path| {
            table.attach(&share(name, path), None, Time::default()).unwrap_err().to_string()
        };
        assert!(attach("a", &dir.path().join("none")).contains("does not exist"));
        assert!(attach("a", &file).contains("is not a folder"));
        // Windows has one word for both.
        let below = attach("a", &file.join("below"));
        assert!(below.contains("is not a folder") || below.contains("does not exist"), "{below}");
        for name in ["", ".", "..", "a/b", "a\0b"] {
            assert!(attach(name, dir.path()).contains("choose a name"), "{name:?}");
        }
        table.attach(&share("a", dir.path()), None, Time::default()).unwrap();
        assert!(attach("a", dir.path()).contains("choose another name"));
    }

    #[test]
    fn a_name_is_free_again_after_detaching() {
        let table = ShareTable::default();
        let dir = tempfile::tempdir().unwrap();
        table.attach(&share("a", dir.path()), None, Time::default()).unwrap();
        let detached = table.detach("a", Time::default()).unwrap();
        assert!(!detached.is_live());
        assert!(table.detach("a", Time::default()).is_none());
        table.attach(&share("a", dir.path()), None, Time::default()).unwrap();
        assert!(table.from(0).iter().all(|share| share.id > detached.id));
    }
}

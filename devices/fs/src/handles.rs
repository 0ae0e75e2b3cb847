//! The files and directories that the guest has open, by numbers that are never used twice.

use std::fs::File;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cabana_journal::Mark;
use rustc_hash::FxHashMap;

use crate::host::{Access, Listing};
use crate::nodes::Node;
use crate::share::Attached;
use crate::wire::{self, Errno, Result};

/// Something open.
#[derive(Debug)]
pub(crate) enum Open {
    File(OpenFile),
    Directory(OpenDirectory),
    /// The synthetic root.
    Root,
}

/// A regular file.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) node: Arc<Node>,
    pub(crate) file: File,
    /// Its length when it was opened, in bytes.
    pub(crate) len: u64,
    /// Do writes go to the end?
    pub(crate) append: AtomicBool,
    /// What the share's journal knows of this opening.
    pub(crate) mark: Mark,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.node.share.observer.closed(&self.node, &self.mark);
    }
}

/// A directory of a share.
#[derive(Debug)]
pub(crate) struct OpenDirectory {
    pub(crate) node: Arc<Node>,
    pub(crate) stream: Mutex<Stream>,
}

/// A directory that is being read.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) listing: Listing,
    /// Its position; `None` where nobody knows.
    pub(crate) position: Option<u64>,
}

impl OpenFile {
    /// `file` is the node's, opened with `access` when it was `len` bytes long.
    pub(crate) fn new(node: Arc<Node>, file: File, len: u64, access: Access) -> Self {
        Self { node, file, len, append: AtomicBool::new(access.append), mark: Mark::default() }
    }
}

impl Open {
    fn node(&self) -> Option<&Arc<Node>> {
        match self {
            Self::File(open) => Some(&open.node),
            Self::Directory(open) => Some(&open.node),
            Self::Root => None,
        }
    }

    fn node_id(&self) -> u64 {
        self.node().map_or(wire::ROOT_ID, |node| node.id)
    }

    /// The open file, if it is one.
    pub(crate) fn as_file(&self) -> Result<&OpenFile> {
        match self {
            Self::File(open) => Ok(open),
            Self::Directory(_) | Self::Root => Err(Errno::EISDIR),
        }
    }
}

/// All that one device has open.
#[derive(Debug)]
pub(crate) struct HandleTable {
    inner: RwLock<Inner>,
    limit: usize,
}

#[derive(Debug, Default)]
struct Inner {
    by_id: FxHashMap<u64, Arc<Open>>,
    last_id: u64,
}

impl HandleTable {
    pub(crate) fn new(limit: usize) -> Self {
        Self { inner: RwLock::default(), limit }
    }

    /// Fails if there is no room for one more.
    pub(crate) fn check_room(&self) -> Result<()> {
        if self.len() < self.limit { Ok(()) } else { Err(Errno::ENFILE) }
    }

    /// Keeps it and gives it a number.
    pub(crate) fn insert(&self, open: Open) -> Result<u64> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        if inner.by_id.len() >= self.limit {
            return Err(Errno::ENFILE);
        }
        if open.node().is_some_and(|node| !node.share.is_live()) {
            return Err(Errno::ESTALE);
        }
        inner.last_id += 1;
        let id = inner.last_id;
        inner.by_id.insert(id, Arc::new(open));
        Ok(id)
    }

    /// What the guest has open as `id`, if it is of the node `node`.
    pub(crate) fn get(&self, id: u64, node: u64) -> Result<Arc<Open>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let open = inner.by_id.get(&id).filter(|open| open.node_id() == node);
        open.map(Arc::clone).ok_or(Errno::ESTALE)
    }

    /// A file that the guest has open of a node. It takes a look at everything that is open.
    pub(crate) fn any_of(&self, node: &Node) -> Option<Arc<Open>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let mut all = inner.by_id.values();
        let of_node = |open: &&Arc<Open>| open.as_file().is_ok_and(|file| file.node.id == node.id);
        all.find(of_node).map(Arc::clone)
    }

    /// Closes it, once no operation uses it any more.
    pub(crate) fn remove(&self, id: u64, node: u64) -> Result<()> {
        self.get(id, node)?;
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let removed = inner.by_id.remove(&id);
        drop(inner);
        removed.map(drop).ok_or(Errno::ESTALE)
    }

    /// Closes all of a share that was detached.
    pub(crate) fn remove_share(&self, share: &Attached) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.by_id.retain(|_, open| open.node().is_none_or(|node| node.share.id != share.id));
    }

    /// Closes everything. The numbers go on.
    pub(crate) fn clear(&self) {
        self.inner.write().unwrap_or_else(PoisonError::into_inner).by_id = <_>::default();
    }

    pub(crate) fn len(&self) -> usize {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).by_id.len()
    }
}

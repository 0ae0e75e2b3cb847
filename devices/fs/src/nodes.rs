//! The inodes that the guest knows, by the numbers that it knows them by. A number is never used
//! for another inode, so a stale or invented one finds nothing.
//!
//! A node keeps a descriptor, the scarcest thing here: there are at most as many as the limit
//! says, and the guest gets ENFILE for one more. A guest remembers names for as long as it has
//! memory, except those that were never valid: Linux's virtio-fs driver (`fc->delete_stale`) forgets
//! them as soon as nobody uses them. So when the table is crowded, names are given out without
//! validity: the guest then works slower, but is refused only if it has too much open at once.

use std::hash::Hasher;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cabana_os::tree::Entry;
use rustc_hash::{FxHashMap, FxHashSet, FxHasher};

use crate::coherence::Cached;
use crate::host::{Handle, Stat};
use crate::host_names::NameRules;
use crate::names::Name;
use crate::share::Attached;
use crate::wire::{self, Errno, Result};

/// An inode of a share that the guest knows.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) share: Arc<Attached>,
    pub(crate) handle: Handle,
    /// Its type, as it stands in the top bits of a mode.
    pub(crate) kind: u32,
    pub(crate) device: u64,
    pub(crate) cached: Mutex<Cached>,
    /// Of a directory: is what is looked up in it mostly known already?
    pub(crate) known_below: AtomicBool,
    /// Of a directory: it is watched on the host.
    pub(crate) watched: AtomicBool,
    /// The directory and the hash of the name that the guest was last told it by.
    pub(crate) seen_in: AtomicU64,
    pub(crate) seen_name: AtomicU64,
    /// How often the guest has been told of it and not forgotten it.
    lookups: AtomicU64,
    key: Key,
}

impl Node {
    /// An entry of this directory.
    pub(crate) fn entry<'a>(&'a self, name: Name<'a>) -> Entry<'a> {
        Entry { directory: self.handle.as_host(), name: name.as_c_str() }
    }
}

/// One inode of one share. The mount tells bind mounts with other rights apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    share: u64,
    mount: u64,
    device: u64,
    ino: u64,
}

impl Key {
    fn of(share: &Attached, stat: &Stat) -> Self {
        Self { share: share.id, mount: stat.mount, device: stat.device, ino: stat.ino }
    }
}

impl Node {
    /// Has the guest been told of it more than once?
    pub(crate) fn is_known(&self) -> bool {
        self.lookups.load(Ordering::Relaxed) > 1
    }

    /// Is it the inode that the host says that of?
    pub(crate) fn is(&self, share: &Attached, stat: &Stat) -> bool {
        self.key == Key::of(share, stat)
    }
}

/// What [`NodeTable::seen_in`] finds.
pub(crate) type Seen = FxHashMap<(u64, u64), Arc<Node>>;

/// A name in few bits, to find nodes by; two names may have the same, and all spellings of one have.
pub(crate) fn hash_name(rules: NameRules, name: Name) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(&rules.key(name.as_bytes()));
    hasher.finish()
}

/// All nodes of one device.
#[derive(Debug)]
pub(crate) struct NodeTable {
    inner: RwLock<Inner>,
    /// How many there are.
    count: AtomicUsize,
    limit: usize,
}

#[derive(Debug)]
struct Inner {
    by_id: FxHashMap<u64, Arc<Node>>,
    by_key: FxHashMap<Key, Arc<Node>>,
    last_id: u64,
}

impl NodeTable {
    pub(crate) fn new(limit: usize) -> Self {
        let last_id = wire::ROOT_ID;
        let inner = Inner { by_id: <_>::default(), by_key: <_>::default(), last_id };
        Self { inner: RwLock::new(inner), count: AtomicUsize::new(0), limit }
    }

    /// The node of that number.
    pub(crate) fn get(&self, id: u64) -> Result<Arc<Node>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.by_id.get(&id).map(Arc::clone).ok_or(Errno::ESTALE)
    }

    /// The node of an inode that the guest is being told of, if it is not new; counts one lookup.
    pub(crate) fn enter_known(&self, share: &Attached, stat: &Stat) -> Option<Arc<Node>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let node = inner.by_key.get(&Key::of(share, stat))?;
        node.lookups.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(node))
    }

    /// The node of an inode that the guest is being told of, new or not; counts one lookup.
    pub(crate) fn enter(
        &self,
        share: &Arc<Attached>,
        handle: Handle,
        stat: &Stat,
    ) -> Result<Arc<Node>> {
        if let Some(node) = self.enter_known(share, stat) {
            return Ok(node);
        }
        let key = Key::of(share, stat);
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = inner.by_key.get(&key) {
            node.lookups.fetch_add(1, Ordering::Relaxed);
            return Ok(Arc::clone(node));
        }
        if !share.is_live() {
            return Err(Errno::ESTALE);
        }
        if inner.by_id.len() >= self.limit {
            return Err(Errno::ENFILE);
        }
        inner.last_id += 1;
        let node = Arc::new(Node {
            id: inner.last_id,
            share: Arc::clone(share),
            handle,
            kind: stat.kind(),
            device: stat.device,
            cached: Mutex::default(),
            known_below: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            seen_in: AtomicU64::new(0),
            seen_name: AtomicU64::new(0),
            lookups: AtomicU64::new(1),
            key,
        });
        inner.by_id.insert(node.id, Arc::clone(&node));
        inner.by_key.insert(key, Arc::clone(&node));
        self.note_count(&inner);
        Ok(node)
    }

    /// The nodes of some directories, by directory and hash of the name that the guest was last told
    /// them by. It takes a look at every node, for what happens seldom.
    pub(crate) fn seen_in(&self, directories: &FxHashSet<u64>) -> Seen {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let mut seen = Seen::default();
        for node in inner.by_id.values() {
            let directory = node.seen_in.load(Ordering::Relaxed);
            if directories.contains(&directory) {
                let name = node.seen_name.load(Ordering::Relaxed);
                let found = seen.entry((directory, name)).or_insert_with(|| Arc::clone(node));
                // Of two that had the name, the guest heard of the later one last.
                if found.id < node.id {
                    *found = Arc::clone(node);
                }
            }
        }
        seen
    }

    /// A number that is no node's and never will be.
    pub(crate) fn unused_id(&self) -> u64 {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.last_id += 1;
        inner.last_id
    }

    /// The guest forgets `count` lookups; more than it has are as good as all.
    pub(crate) fn forget(&self, id: u64, count: u64) {
        let Ok(node) = self.get(id) else { return };
        let less = |lookups: u64| Some(lookups.saturating_sub(count));
        let before = node.lookups.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        if before.is_ok_and(|before| before > count) {
            return;
        }
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        // It may have been looked up again in between.
        if node.lookups.load(Ordering::Acquire) == 0 {
            inner.remove(&node);
            self.note_count(&inner);
        }
    }

    /// Forgets all of a share that was detached.
    pub(crate) fn remove_share(&self, share: &Attached) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.by_id.retain(|_, node| node.share.id != share.id);
        inner.by_key.retain(|key, _| key.share != share.id);
        self.note_count(&inner);
    }

    /// Forgets everything. The numbers go on.
    pub(crate) fn clear(&self) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.by_id = <_>::default();
        inner.by_key = <_>::default();
        self.note_count(&inner);
    }

    /// Is it time for the guest to forget more than it learns? At three quarters of the limit.
    pub(crate) fn is_crowded(&self) -> bool {
        self.len() >= self.limit - self.limit / 4
    }

    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn note_count(&self, inner: &Inner) {
        self.count.store(inner.by_id.len(), Ordering::Relaxed);
    }
}

impl Inner {
    /// The descriptor is closed with the last operation that uses the node.
    fn remove(&mut self, node: &Node) {
        // A later node may stand at the key if this one was removed before.
        if self.by_id.remove(&node.id).is_some() {
            self.by_key.remove(&node.key);
        }
    }
}

/// Inode numbers that are unique over all file systems below the shares, and stable.
#[derive(Debug, Default)]
pub(crate) struct InodeNumbers {
    /// The devices, in the order in which they were met.
    devices: RwLock<Vec<u64>>,
    /// The first of them, which most shares never leave, and one more; zero for none.
    first: AtomicU64,
}

impl InodeNumbers {
    /// What the guest sees as the number of inode `ino` on `device`: the host's own on the first
    /// device, with other top bits on every other.
    pub(crate) fn number(&self, device: u64, ino: u64) -> u64 {
        if self.first.load(Ordering::Relaxed) == device.wrapping_add(1) {
            return ino;
        }
        ino ^ (self.index(device) << 48)
    }

    fn index(&self, device: u64) -> u64 {
        let find = |devices: &[u64]| devices.iter().position(|known| *known == device);
        let found = find(&self.devices.read().unwrap_or_else(PoisonError::into_inner));
        let index = found.unwrap_or_else(|| {
            let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
            find(&devices).unwrap_or_else(|| {
                if devices.is_empty() {
                    self.first.store(device.wrapping_add(1), Ordering::Relaxed);
                }
                devices.push(device);
                devices.len() - 1
            })
        });
        index as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Time;
    use crate::share::{Share, ShareTable};

    fn share(dir: &std::path::Path) -> Arc<Attached> {
        let shares = ShareTable::default();
        let share = Share { name: "s".into(), path: dir.into(), read_only: false };
        shares.attach(&share, None, Time::default()).unwrap();
        shares.from(0).remove(0)
    }

    fn enter(nodes: &NodeTable, share: &Arc<Attached>, ino: u64) -> Result<Arc<Node>> {
        let stat = Stat { ino, ..Stat::default() };
        nodes.enter(share, share.root.try_clone().unwrap(), &stat)
    }

    #[test]
    fn a_node_lives_until_its_last_lookup_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (nodes, share) = (NodeTable::new(10), share(dir.path()));
        let id = enter(&nodes, &share, 5).unwrap().id;
        assert_eq!(enter(&nodes, &share, 5).unwrap().id, id);
        nodes.forget(id, 1);
        assert!(nodes.get(id).is_ok());
        nodes.forget(id, u64::MAX);
        assert_eq!(nodes.get(id).unwrap_err(), Errno::ESTALE);
        assert!(enter(&nodes, &share, 5).unwrap().id > id, "numbers are not used twice");
    }

    #[test]
    fn the_limit_is_an_error_until_one_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (nodes, share) = (NodeTable::new(2), share(dir.path()));
        let first = enter(&nodes, &share, 1).unwrap().id;
        enter(&nodes, &share, 2).unwrap();
        assert_eq!(enter(&nodes, &share, 3).unwrap_err(), Errno::ENFILE);
        enter(&nodes, &share, 2).unwrap();
        nodes.forget(first, 1);
        enter(&nodes, &share, 3).unwrap();
        nodes.clear();
        assert_eq!(nodes.len(), 0);
    }

    #[test]
    fn devices_share_no_inode_numbers() {
        let numbers = InodeNumbers::default();
        assert_eq!(numbers.number(8, 77), 77);
        assert_ne!(numbers.number(9, 77), 77);
        assert_eq!(numbers.number(8, 77), 77);
    }
}

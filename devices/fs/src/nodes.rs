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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cabana_os::tree::Entry;
use rustc_hash::{FxHashMap, FxHashSet, FxHasher};

use crate::coherence::Cached;
use crate::host::{Handle, Stat};
use crate::host_names::NameRules;
use crate::names::Name;
use crate::share::Attached;
use crate::wire::{self, Errno, Result};

/// An inode of a share that the guest knows. Files that are met one after the other often lie side by side in memory:
/// threads that use two of them have no cache line in common.
#[derive(Debug)]
#[repr(align(64))]
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
        Entry { directory: &self.handle, name: name.as_c_str() }
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
    /// The guest is being told of it once more.
    fn meet(self: &Arc<Self>) -> Arc<Self> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        Arc::clone(self)
    }

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

/// Parts of the table that have locks of their own, so that queues seldom meet.
const PARTS: usize = 16;

/// Places for the folders that threads were in last.
const PLACES: usize = 16;

/// The folder that a thread was in last, and how many folders had gone by then: looking up names in it the thread meets
/// no other, neither at a lock nor at the node's counter. Each has a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Place(Mutex<Option<(u64, Arc<Node>)>>);

impl Place {
    /// This thread's among `places`; threads share one where there are more of them.
    fn of_this_thread(places: &[Self; PLACES]) -> &Self {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static NUMBER: usize = THREADS.fetch_add(1, Ordering::Relaxed));
        &places[NUMBER.with(|number| number % PLACES)]
    }

    /// Takes the folder out if it is this one and none has gone since.
    fn take(&self, id: u64, gone: u64) -> Option<Arc<Node>> {
        let is_it = |(then, node): &mut (u64, Arc<Node>)| (*then, node.id) == (gone, id);
        self.lock().take_if(is_it).map(|(_, node)| node)
    }

    /// Puts a folder in, unless one has gone since: then [`NodeTable::remove`] may have been here already.
    fn put(&self, node: Arc<Node>, then: u64, gone: &AtomicU64) {
        let mut place = self.lock();
        if gone.load(Ordering::Acquire) == then {
            *place = Some((then, node));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(u64, Arc<Node>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All nodes of one device. An inode comes and goes with the lock of its key's part held; the lock of its
/// number's part is taken within, and so are those of the places, one after the other: when a folder has gone, no place has it.
#[derive(Debug)]
pub(crate) struct NodeTable {
    by_id: [Part<u64>; PARTS],
    by_key: [Part<Key>; PARTS],
    last_id: AtomicU64,
    /// How many there are.
    count: AtomicUsize,
    limit: usize,
    places: [Place; PLACES],
    /// How many folders have gone.
    gone: AtomicU64,
}

/// Nodes whose numbers or keys have something in common. Each has a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Part<K>(RwLock<FxHashMap<K, Arc<Node>>>);

impl<K> Part<K> {
    fn read(&self) -> RwLockReadGuard<'_, FxHashMap<K, Arc<Node>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, FxHashMap<K, Arc<Node>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Default for Part<K> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl NodeTable {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            by_id: <_>::default(),
            by_key: <_>::default(),
            last_id: AtomicU64::new(wire::ROOT_ID),
            count: AtomicUsize::new(0),
            limit,
            places: <_>::default(),
            gone: AtomicU64::new(0),
        }
    }

    /// The node of that number.
    pub(crate) fn get(&self, id: u64) -> Result<Arc<Node>> {
        self.with_id(id).read().get(&id).map(Arc::clone).ok_or(Errno::ESTALE)
    }

    /// Works in the node of that number, which is a folder if it has entries.
    pub(crate) fn within<T>(&self, id: u64, work: impl FnOnce(&Node) -> Result<T>) -> Result<T> {
        let place = Place::of_this_thread(&self.places);
        let gone = self.gone.load(Ordering::Acquire);
        let node = match place.take(id, gone) {
            Some(node) => node,
            None => self.get(id)?,
        };
        let result = work(&node);
        if node.kind == wire::mode::DIRECTORY {
            place.put(node, gone, &self.gone);
        }
        result
    }

    /// The node of an inode that the guest is being told of, if it is not new; counts one lookup.
    pub(crate) fn enter_known(&self, share: &Attached, stat: &Stat) -> Option<Arc<Node>> {
        let key = Key::of(share, stat);
        let known = self.with_key(&key).read();
        known.get(&key).map(Node::meet)
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
        let mut known = self.with_key(&key).write();
        if let Some(node) = known.get(&key) {
            return Ok(node.meet());
        }
        if !share.is_live() {
            return Err(Errno::ESTALE);
        }
        let more = |count| (count < self.limit).then_some(count + 1);
        self.count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map_err(|_| Errno::ENFILE)?;
        let node = Arc::new(Node {
            id: self.unused_id(),
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
        self.with_id(node.id).write().insert(node.id, Arc::clone(&node));
        known.insert(key, Arc::clone(&node));
        Ok(node)
    }

    /// The nodes of some directories, by directory and hash of the name that the guest was last told
    /// them by. It takes a look at every node, for what happens seldom.
    pub(crate) fn seen_in(&self, directories: &FxHashSet<u64>) -> Seen {
        let mut seen = Seen::default();
        for part in &self.by_id {
            for node in part.read().values() {
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
        }
        seen
    }

    /// A number that nobody else gets.
    pub(crate) fn unused_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The guest forgets `count` lookups; more than it has are as good as all.
    pub(crate) fn forget(&self, id: u64, count: u64) {
        let Ok(node) = self.get(id) else { return };
        let less = |lookups: u64| Some(lookups.saturating_sub(count));
        let before = node.lookups.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        if before.is_ok_and(|before| before > count) {
            return;
        }
        let mut known = self.with_key(&node.key).write();
        // It may have been looked up again in between; or be forgotten already, with a later node at its key.
        if node.lookups.load(Ordering::Acquire) == 0 && self.remove(&node) {
            known.remove(&node.key);
        }
    }

    /// Forgets all of a share that was detached.
    pub(crate) fn remove_share(&self, share: &Attached) {
        self.retain(|node| node.share.id != share.id);
    }

    /// Forgets everything. The numbers go on.
    pub(crate) fn clear(&self) {
        self.retain(|_| false);
        for part in &self.by_key {
            part.write().shrink_to_fit();
        }
        for part in &self.by_id {
            part.write().shrink_to_fit();
        }
    }

    /// Is it time for the guest to forget more than it learns? At three quarters of the limit.
    pub(crate) fn is_crowded(&self) -> bool {
        self.len() >= self.limit - self.limit / 4
    }

    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn retain(&self, stays: impl Fn(&Node) -> bool) {
        for part in &self.by_key {
            part.write().retain(|_, node| {
                let stays = stays(node);
                if !stays {
                    self.remove(node);
                }
                stays
            });
        }
    }

    /// Takes a node's number away; true if it had it. The descriptor is closed with the last operation that uses
    /// the node.
    fn remove(&self, node: &Node) -> bool {
        let was_there = self.with_id(node.id).write().remove(&node.id).is_some();
        if was_there {
            self.count.fetch_sub(1, Ordering::Relaxed);
            if node.kind == wire::mode::DIRECTORY {
                // In this order: who puts it back later sees that.
                self.gone.fetch_add(1, Ordering::AcqRel);
                self.places.iter().for_each(|place| drop(place.lock().take()));
            }
        }
        was_there
    }

    fn with_id(&self, id: u64) -> &Part<u64> {
        &self.by_id[id as usize % PARTS]
    }

    fn with_key(&self, key: &Key) -> &Part<Key> {
        &self.by_key[key.ino as usize % PARTS]
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
    fn a_folder_that_is_forgotten_is_nowhere_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (nodes, share) = (NodeTable::new(10), share(dir.path()));
        let folder = |ino| {
            let stat = Stat { ino, mode: wire::mode::DIRECTORY, ..Stat::default() };
            nodes.enter(&share, share.root.try_clone().unwrap(), &stat).unwrap()
        };
        let node = folder(5);
        let (id, kept) = (node.id, Arc::downgrade(&node));
        drop(node);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| assert_eq!(nodes.within(id, |node| Ok(node.id)), Ok(id)));
            }
        });
        assert_eq!(nodes.within(id, |node| Ok(node.id)), Ok(id));
        assert_eq!(kept.strong_count(), 2 + 4, "two maps and four threads");
        // Forgotten while a thread is in it.
        let forget = |node: &Node| {
            nodes.forget(id, 1);
            Ok(node.id)
        };
        assert_eq!(nodes.within(id, forget), Ok(id));
        assert_eq!(kept.strong_count(), 0);
        assert_eq!(nodes.within(id, |_| Ok(())), Err(Errno::ESTALE));
        // A share that is detached, and a guest that begins anew.
        let detached: fn(&NodeTable, &Attached) = NodeTable::remove_share;
        for end in [detached, |nodes, _| nodes.clear()] {
            let node = folder(7);
            let (id, kept) = (node.id, Arc::downgrade(&node));
            drop(node);
            nodes.within(id, |_| Ok(())).unwrap();
            end(&nodes, &share);
            assert_eq!(kept.strong_count(), 0);
            assert_eq!(nodes.within(id, |_| Ok(())), Err(Errno::ESTALE));
        }
    }

    #[test]
    fn devices_share_no_inode_numbers() {
        let numbers = InodeNumbers::default();
        assert_eq!(numbers.number(8, 77), 77);
        assert_ne!(numbers.number(9, 77), 77);
        assert_eq!(numbers.number(8, 77), 77);
    }
}

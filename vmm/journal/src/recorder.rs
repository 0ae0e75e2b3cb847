//! The journal of a share while a guest has it: every change is written down, and what it would
//! destroy is kept, before it is made.
//!
//! **Order.** First what would be lost is kept, then the record is written, then the change is made.
//! Names change one after another. So of a process that was killed at most one record is in doubt,
//! the last; the folder itself says whether it happened.
//!
//! **Durability.** What is in the host's hands survives the end of this process. For a failure of the
//! whole host: a copy of what was there before the guest is on the disk, with its record, before the
//! original is overwritten; names reach the disk within a second, in the host's order, and what was
//! kept by name is then there even if its record is not.
//!
//! **Room.** What was there before the guest is never given up. What the guest itself made and
//! destroyed again goes first, oldest first, when room is short; if that is not enough, the change is
//! refused with ENOSPC.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cabana_os::tree::{self, Attributes, Entry, Handle, InodeKind, InodeStat};

use crate::home::Home;
use crate::kept::{As, Kept};
use crate::record::{Content, Event, Ident, Place};
use crate::state::{Held, Names, State};
use crate::{JournalError, Limits, accept};

/// How soon names and records are on the disk.
const SYNC_AFTER: Duration = Duration::from_secs(1);

/// Who does it: the machine as a whole.
pub(crate) const SESSION: u32 = 0;

/// A change of names or attributes that the guest asks for.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// A new name, for a new inode.
    Make(Entry<'a>),
    /// A new name, for an inode that the guest knows; it may have no other.
    Link(Entry<'a>, &'a Handle),
    /// The name of a file, link, fifo or socket goes.
    Unlink(Entry<'a>),
    /// An empty folder goes.
    Rmdir(Entry<'a>),
    /// A name moves.
    Rename {
        /// The name.
        from: Entry<'a>,
        /// The new one.
        to: Entry<'a>,
        /// What has that name is replaced.
        replace: bool,
    },
    /// Two names change places.
    Exchange(Entry<'a>, Entry<'a>),
    /// Permissions, times, extended attributes of an inode.
    Attributes(&'a Handle),
}

/// What the journal knows of one opening of a file.
#[derive(Debug)]
pub struct Mark {
    /// From here on nothing is left to be kept.
    floor: AtomicU64,
    /// The journal's generation then.
    generation: AtomicU64,
    /// The record of the first change; zero for none.
    opening: AtomicU64,
}

impl Default for Mark {
    fn default() -> Self {
        let [generation, opening] = [(); 2].map(|()| AtomicU64::new(0));
        Self { floor: AtomicU64::new(u64::MAX), generation, opening }
    }
}

/// The journal of one share, open for writing.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    syncer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    root: Handle,
    kept: Kept,
    /// Ascends whenever an inode is kept by a name: files that are open are looked at again.
    generation: AtomicU64,
    state: Mutex<State>,
    /// How many names in the journal an inode has.
    names: Arc<Names>,
    wake: Condvar,
    /// Held while the journal is open.
    _lock: File,
}

/// The result of a change: the caller's own error type.
type Made<T, E> = Result<T, E>;

impl Recorder {
    /// Opens a folder's journal. Fails if another process has it.
    pub fn open(home: &Home, limits: Limits) -> Result<Self, JournalError> {
        let lock = home.lock()?;
        if home.plan().exists() {
            return Err(JournalError::Unfinished(home.share.clone()));
        }
        accept::older_than(home, limits.age)?;
        let root =
            Handle::of_directory(&home.share).map_err(JournalError::host("open", &home.share))?;
        let kept = Kept::open(&home.kept).map_err(JournalError::host("open", &home.kept))?;
        let names = Arc::new(Names::default());
        let mut state = State::open(home, &root, &kept, limits, Arc::clone(&names))?;
        let opened = state.log.append(SESSION, Event::Opened);
        opened.map_err(JournalError::host("write", state.log.path()))?;
        let shared = Arc::new(Shared {
            root,
            kept,
            generation: AtomicU64::new(1),
            state: Mutex::new(state),
            names,
            wake: Condvar::new(),
            _lock: lock,
        });
        let syncing = Arc::clone(&shared);
        let syncer = thread::Builder::new().name("journal".to_owned()).stack_size(128 << 10);
        let syncer = syncer.spawn(move || syncing.keep_synced());
        let syncer = Some(syncer.map_err(JournalError::host("start a thread for", &home.folder))?);
        Ok(Self { shared, syncer })
    }

    /// Makes a change by `make`, once it is written down and what it destroys is kept. A change
    /// that cannot be undone is refused.
    pub fn change<T, E: From<io::Error>>(
        &self,
        change: &Change,
        make: impl FnOnce() -> Made<T, E>,
    ) -> Made<T, E> {
        let shared = &*self.shared;
        let mut state = shared.lock();
        match *change {
            Change::Make(at) => shared.make(&mut state, &at, None, make),
            Change::Link(at, of) => shared.make(&mut state, &at, Some(of), make),
            Change::Unlink(at) => shared.remove(&mut state, &at, false, make),
            Change::Rmdir(at) => shared.remove(&mut state, &at, true, make),
            Change::Rename { from, to, replace } => {
                shared.rename(&mut state, &from, &to, replace, make)
            }
            Change::Exchange(one, other) => shared.exchange(&mut state, &one, &other, make),
            Change::Attributes(inode) => shared.attributes(&mut state, inode, make),
        }
    }

    /// To be called before the content of the file `inode` changes from offset `from` on, by the
    /// opening that `mark` belongs to.
    pub fn before_content(&self, inode: &Handle, from: u64, mark: &Mark) -> io::Result<()> {
        let generation = self.shared.generation.load(Ordering::Acquire);
        let is_known = mark.generation.load(Ordering::Acquire) == generation;
        if is_known && from >= mark.floor.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut state = self.shared.lock();
        self.shared.content(&mut state, inode, from, mark)
    }

    /// To be called when the opening that `mark` belongs to ends.
    pub fn closed(&self, inode: &Handle, mark: &Mark) {
        let opening = mark.opening.swap(0, Ordering::AcqRel);
        if opening == 0 {
            return;
        }
        mark.floor.store(u64::MAX, Ordering::Release);
        mark.generation.store(0, Ordering::Release);
        let mut state = self.shared.lock();
        if let Ok(stat) = InodeStat::of(inode) {
            let at = self.shared.place_of(inode, &stat);
            let settled = Event::Settled { of: opening, at, after: Ident::of(&stat) };
            state.log.append_later(SESSION, settled);
            self.shared.touched(&mut state);
        }
    }

    /// How many of an inode's names are the journal's, which no guest should see.
    /// `born` is when it was made, in nanoseconds since 1970, zero where the host does not say.
    pub fn hidden_links(&self, device: u64, ino: u64, born: i128) -> u32 {
        self.shared.names.count((device, ino, born))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
        if let Some(syncer) = self.syncer.take() {
            let _ = syncer.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings records to the disk soon after they were made, until the journal is closed.
    fn keep_synced(&self) {
        let mut state = self.lock();
        loop {
            let idle = |state: &mut State| !state.dirty && !state.closed;
            state = self.wake.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
            let open = |state: &mut State| !state.closed;
            let waited = self.wake.wait_timeout_while(state, SYNC_AFTER, open);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            // What cannot be written now is tried again with the next record.
            let _ = state.log.flush();
            state.dirty = false;
            let (file, closed) = (state.log.handle(), state.closed);
            drop(state);
            if let Ok(file) = file {
                let _ = file.sync_data();
            }
            if closed {
                return;
            }
            state = self.lock();
        }
    }

    fn touched(&self, state: &mut State) {
        if !state.dirty {
            state.dirty = true;
            self.wake.notify_all();
        }
    }

    /// Writes a record, makes the change that it announces, and notes what came of it.
    fn announce<T, E: From<io::Error>>(
        &self,
        state: &mut State,
        event: Event,
        make: impl FnOnce() -> Made<T, E>,
        after: impl FnOnce() -> Option<Ident>,
    ) -> Made<T, E> {
        let of = state.log.append(SESSION, event)?;
        self.touched(state);
        let made = make();
        let event = match &made {
            Ok(_) => Event::Done { of, after: after() },
            Err(_) => Event::Void { of },
        };
        state.log.append_later(SESSION, event);
        made
    }

    fn make<T, E: From<io::Error>>(
        &self,
        state: &mut State,
        at: &Entry,
        of: Option<&Handle>,
        make: impl FnOnce() -> Made<T, E>,
    ) -> Made<T, E> {
        // The host refuses a name that is taken; a record would say that what is there was made.
        if at.stat()?.is_some() {
            return make();
        }
        state.check_room_for_records()?;
        let linked = of.map(|of| InodeStat::of(of).map(|stat| (of, stat))).transpose()?;
        if linked.as_ref().is_some_and(|(_, stat)| self.is_nameless(stat)) {
            // Nothing was written down of it: who has it open and goes on writing has to ask again.
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        let of = linked.map(|(of, stat)| self.place_of(of, &stat));
        let event = Event::Make { at: self.place(at)?, of };
        let mut found = None;
        let made = self.announce(state, event, make, || {
            found = at.stat().ok().flatten();
            found.as_ref().map(Ident::of)
        });
        // One more name for an inode that was there makes no new inode.
        if made.is_ok()
            && let Some(stat) = found
        {
            let inode = Ident::of(&stat).inode();
            if stat.kind == InodeKind::Directory || stat.links == 1 {
                state.made.insert(inode);
            }
        }
        made
    }

    fn remove<T, E: From<io::Error>>(
        &self,
        state: &mut State,
        at: &Entry,
        folder: bool,
        make: impl FnOnce() -> Made<T, E>,
    ) -> Made<T, E> {
        // What is not there, or not of the kind, the host refuses by itself.
        let Ok(handle) = at.handle() else { return make() };
        let stat = InodeStat::of(&handle)?;
        if (stat.kind == InodeKind::Directory) != folder {
            return make();
        }
        let from = self.place(at)?;
        let number = self.keep(state, &handle, &stat)?;
        let event =
            Event::Move { from, to: Place::Kept(number), inode: Ident::of(&stat), over: false };
        let made = self.announce(state, event, make, || None);
        self.after_keeping(state, number, made.is_ok());
        made
    }

    fn rename<T, E: From<io::Error>>(
        &self,
        state: &mut State,
        from: &Entry,
        to: &Entry,
        replace: bool,
        make: impl FnOnce() -> Made<T, E>,
    ) -> Made<T, E> {
        let Some(moved) = from.stat()? else { return make() };
        let over = to.handle().ok();
        let over =
            over.map(|handle| InodeStat::of(&handle).map(|stat| (handle, stat))).transpose()?;
        let same = |stat: &InodeStat| Ident::of(stat).inode() == Ident::of(&moved).inode();
        if over.as_ref().is_some_and(|(_, stat)| !replace || same(stat)) {
            // Refused, or nothing to do: two names of one inode stay as they are.
            return make();
        }
        let (from, target) = (self.place(from)?, self.place(to)?);
        let kept = match &over {
            Some((handle, stat)) => Some(self.keep(state, handle, stat)?),
            None => state.check_room_for_records().map(|()| None)?,
        };
        let inode = Ident::of(&moved);
        let event = Event::Move { from, to: target, inode, over: over.is_some() };
        let made = self.announce(state, event, make, || to.stat().ok()?.as_ref().map(Ident::of));
        if let Some(number) = kept {
            self.after_keeping(state, number, made.is_ok());
        }
        made
    }

    fn exchange<T, E: From<io::Error>>(
        &self,
        state: &mut State,
        one: &Entry,
        other: &Entry,
        make: impl FnOnce() -> Made<T, E>,
    ) -> Made<T, E> {
        state.check_room_for_records()?;
        let (Some(stat), Some(second)) = (one.stat()?, other.stat()?) else { return make() };
        let inode = Ident::of(&stat);
        if inode.inode() == Ident::of(&second).inode() {
            return make();
        }
        let event = Event::Swap { one: self.place(one)?, other: self.place(other)?, inode };
        self.announce(state, event, make, || None)
    }

    fn attributes<T, E: From<io::Error>>(
        &self,
        state: &mut State,
        handle: &Handle,
        make: impl FnOnce() -> Made<T, E>,
    ) -> Made<T, E> {
        state.check_room_for_records()?;
        let stat = InodeStat::of(handle)?;
        if self.is_nameless(&stat) {
            self.detach(state, handle, &stat)?;
            return make();
        }
        let opening = state.log.next();
        let event = Event::Change {
            at: self.place_of(handle, &stat),
            inode: Ident::of(&stat),
            before: Attributes::of(handle)?.into(),
            content: Content::Same,
            opening,
        };
        self.announce(state, event, make, || InodeStat::of(handle).ok().as_ref().map(Ident::of))
    }

    fn content(
        &self,
        state: &mut State,
        handle: &Handle,
        from: u64,
        mark: &Mark,
    ) -> io::Result<()> {
        let generation = self.generation.load(Ordering::Acquire);
        let stat = InodeStat::of(handle)?;
        if self.is_nameless(&stat) {
            self.detach(state, handle, &stat)?;
            mark.floor.store(0, Ordering::Release);
            mark.generation.store(generation, Ordering::Release);
            return Ok(());
        }
        let first = mark.opening.load(Ordering::Acquire) == 0;
        let floor = mark.floor.load(Ordering::Acquire);
        if first || from < floor {
            let grows = first && from >= stat.size;
            let number = if grows {
                state.check_room_for_records()?;
                state.log.next()
            } else {
                self.image(state, handle, &stat, floor.min(stat.size))?
            };
            let original = state.is_original(&stat);
            let opening = if first { number } else { mark.opening.load(Ordering::Acquire) };
            let event = Event::Change {
                at: self.place_of(handle, &stat),
                inode: Ident::of(&stat),
                before: Attributes::of(handle)?.into(),
                content: if grows { Content::Prefix(stat.size) } else { Content::Kept },
                opening,
            };
            state.log.append(SESSION, event)?;
            self.touched(state);
            mark.opening.store(opening, Ordering::Release);
            mark.floor.store(if grows { stat.size } else { 0 }, Ordering::Release);
            if !grows {
                if original {
                    state.log.sync()?;
                    state.imaged.insert(Ident::of(&stat).inode());
                }
                state.drop_if_over(&self.kept, number);
            }
        }
        mark.generation.store(generation, Ordering::Release);
        Ok(())
    }

    /// Keeps the first `len` bytes of a file as the next record's; returns its number.
    fn image(
        &self,
        state: &mut State,
        handle: &Handle,
        stat: &InodeStat,
        len: u64,
    ) -> io::Result<u64> {
        let original = state.is_original(stat);
        state.make_room(&self.kept, stat.allocated, original)?;
        let number = state.log.next();
        let bytes = self.kept.image(number, handle, len, original)?;
        let inode = self.kept.inode(number)?;
        state.hold(number, Held { inode, bytes, original, named: false });
        Ok(number)
    }

    /// Keeps an inode as the next record's; returns its number.
    fn keep(&self, state: &mut State, handle: &Handle, stat: &InodeStat) -> io::Result<u64> {
        let original = !state.made.contains(&Ident::of(stat).inode());
        state.make_room(&self.kept, stat.allocated, original)?;
        let number = state.log.next();
        let kept_as = self.kept.keep(number, handle, original)?;
        let named = kept_as == As::Itself;
        let inode = if named { Ident::of(stat).inode() } else { self.kept.inode(number)? };
        state.hold(number, Held { inode, bytes: stat.allocated, original, named });
        if named {
            // Whoever has the file open and writes to it now has to ask again.
            self.generation.fetch_add(1, Ordering::AcqRel);
        } else if original && let Err(error) = state.log.sync() {
            state.let_go(&self.kept, number)?;
            return Err(error);
        }
        Ok(number)
    }

    /// After a change that kept something: if it was not made there is nothing to keep.
    fn after_keeping(&self, state: &mut State, number: u64, made: bool) {
        if made {
            state.drop_if_over(&self.kept, number);
        } else {
            // What stays there in vain is found when the journal is opened next.
            let _ = state.let_go(&self.kept, number);
        }
    }

    /// Has an inode no name left but the journal's?
    fn is_nameless(&self, stat: &InodeStat) -> bool {
        stat.kind != InodeKind::Directory && stat.links <= self.names.count(Ident::of(stat).inode())
    }

    /// The guest goes on with an inode that it has removed: the journal keeps it as it was then.
    fn detach(&self, state: &mut State, handle: &Handle, stat: &InodeStat) -> io::Result<()> {
        let mut copied = None;
        for number in self.names.of(Ident::of(stat).inode()) {
            let original = state.held.get(&number).is_some_and(|held| held.original);
            if copied.is_none() && !state.make_room(&self.kept, stat.allocated, original)? {
                state.give_up(&self.kept, number)?;
                continue;
            }
            match copied {
                None => self.kept.copy(number, handle, original)?,
                // Names of one inode stay names of one inode.
                Some(first) => self.kept.link(number, first)?,
            }
            copied = Some(number);
            state.let_go_of_name(number, self.kept.inode(number)?);
        }
        Ok(())
    }

    /// The place of an entry. ESTALE if its folder is no longer in the share.
    fn place(&self, entry: &Entry) -> io::Result<Place> {
        let folder = entry.directory.path_from(&self.root)?;
        let name = tree::path_from_bytes(entry.name.to_bytes());
        Ok(Place::share(&folder.join(name)))
    }

    /// A name of an inode: the one by which it was opened, if it still has that.
    fn place_of(&self, handle: &Handle, stat: &InodeStat) -> Place {
        let inode = Ident::of(stat).inode();
        let found = handle.path_from(&self.root).ok().filter(|path| {
            let folder = path.parent().and_then(|folder| self.root.beneath(folder).ok());
            let name = tree::c_name(path).ok();
            match (folder, name) {
                (Some(folder), Some(name)) => {
                    let entry = Entry { directory: &folder, name: &name };
                    let found = entry.stat().ok().flatten();
                    found.is_some_and(|found| Ident::of(&found).inode() == inode)
                }
                // The share itself.
                _ => path.as_os_str().is_empty(),
            }
        });
        let kept =
            || self.names.of(inode).last().map_or(Place::Lost, |number| Place::Kept(*number));
        found.map_or_else(kept, |path| Place::share(&path))
    }
}

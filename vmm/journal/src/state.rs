//! What a journal's writer keeps in mind, rebuilt from the records when it is opened: what the guest
//! made, what is kept, and how much room that takes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use cabana_os::tree::{Handle, InodeKind, InodeStat};

use crate::home::Home;
use crate::kept::Kept;
use crate::log::Log;
use crate::past::Tree;
use crate::record::{Content, Event, Ident, Inode, Place, Record};
use crate::recorder::SESSION;
use crate::{JournalError, Limits};

/// What is kept under one number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) inode: Inode,
    /// What it takes on the disk.
    pub(crate) bytes: u64,
    /// It was there before the guest: it is never given up.
    pub(crate) original: bool,
    /// It is the inode itself, not a copy.
    pub(crate) named: bool,
}

/// Inodes that are kept by names, with the numbers of those.
#[derive(Debug, Default)]
pub(crate) struct Names(RwLock<HashMap<Inode, Vec<u64>>>);

impl Names {
    pub(crate) fn count(&self, inode: Inode) -> u32 {
        let names = self.0.read().unwrap_or_else(PoisonError::into_inner);
        names.get(&inode).map_or(0, |numbers| numbers.len() as u32)
    }

    pub(crate) fn of(&self, inode: Inode) -> Vec<u64> {
        let names = self.0.read().unwrap_or_else(PoisonError::into_inner);
        names.get(&inode).cloned().unwrap_or_default()
    }

    fn add(&self, inode: Inode, number: u64) {
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        names.entry(inode).or_default().push(number);
    }

    fn remove(&self, inode: Inode, number: u64) {
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(numbers) = names.get_mut(&inode) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                names.remove(&inode);
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) log: Log,
    /// What the guest made.
    pub(crate) made: HashSet<Inode>,
    /// What was there before the guest, with its content kept already.
    pub(crate) imaged: HashSet<Inode>,
    pub(crate) held: BTreeMap<u64, Held>,
    /// Records have been written that are not on the disk yet.
    pub(crate) dirty: bool,
    pub(crate) closed: bool,
    names: Arc<Names>,
    limits: Limits,
    /// The first record.
    first: u64,
    /// Bytes of all that is held.
    used: u64,
    /// Numbers of what may be given up.
    spare: BTreeSet<u64>,
}

impl State {
    /// Reads the journal and brings it in order after a process that was killed.
    pub(crate) fn open(
        home: &Home,
        root: &Handle,
        kept: &Kept,
        limits: Limits,
        names: Arc<Names>,
    ) -> Result<Self, JournalError> {
        let (log, mut records) = Log::open(&home.log())?;
        let mut state = Self {
            first: records.first().map_or(log.next(), |record| record.seq),
            log,
            made: HashSet::new(),
            imaged: HashSet::new(),
            held: BTreeMap::new(),
            dirty: false,
            closed: false,
            names,
            limits,
            used: 0,
            spare: BTreeSet::new(),
        };
        let refused = || JournalError::host("bring in order", &home.folder);
        if let Some(event) = resolve_last(&records, root) {
            let time = records.last().map_or(0, |record| record.time);
            let seq = state.log.append(SESSION, event.clone()).map_err(refused())?;
            records.push(Record { seq, time, session: SESSION, event });
        }
        let numbers = kept.numbers().map_err(refused())?;
        state.log.skip_to(numbers.last().map_or(0, |last| last + 1));
        state.rebuild(&records, kept, &numbers).map_err(refused())?;
        Ok(state)
    }

    /// Goes through the records and through what is kept.
    fn rebuild(&mut self, records: &[Record], kept: &Kept, numbers: &[u64]) -> io::Result<()> {
        let voided = voided(records);
        let mut originals = HashSet::new();
        let mut expected = HashSet::new();
        let mut makes = HashSet::new();
        for record in records.iter().filter(|record| !voided.contains(&record.seq)) {
            match &record.event {
                Event::Make { .. } => {
                    makes.insert(record.seq);
                }
                Event::Done { of, after: Some(after) } if makes.contains(of) => {
                    self.made.insert(after.inode());
                }
                Event::Move { to: Place::Kept(number), inode, .. } => {
                    expected.insert(*number);
                    if !self.made.contains(&inode.inode()) {
                        originals.insert(*number);
                    }
                }
                Event::Move { over: true, .. } => {
                    // What was overwritten is not named by the record: it is looked at below.
                    expected.insert(record.seq);
                    originals.insert(record.seq);
                }
                Event::Change { inode, content: Content::Kept, .. } => {
                    expected.insert(record.seq);
                    if !self.made.contains(&inode.inode()) && self.imaged.insert(inode.inode()) {
                        originals.insert(record.seq);
                    }
                }
                _ => {}
            }
        }
        for number in numbers {
            let stat = InodeStat::of(&kept.handle(*number)?)?;
            let inode = Ident::of(&stat).inode();
            let is_recorded = expected.contains(number);
            if !is_recorded && stat.links > 1 && stat.kind != InodeKind::Directory {
                // The change for which it was kept was never made: it still has its name.
                kept.remove(*number)?;
                continue;
            }
            let original =
                !is_recorded || originals.contains(number) && !self.made.contains(&inode);
            let named = stat.kind != InodeKind::Directory;
            self.hold(*number, Held { inode, bytes: stat.allocated, original, named });
        }
        Ok(())
    }

    /// Was it there before the guest, and is what it was not kept yet?
    pub(crate) fn is_original(&self, stat: &InodeStat) -> bool {
        let inode = Ident::of(stat).inode();
        !self.made.contains(&inode) && !self.imaged.contains(&inode)
    }

    /// Fails if the journal has as many records as it may have.
    pub(crate) fn check_room_for_records(&self) -> io::Result<()> {
        let records = self.log.next() - self.first;
        if records < self.limits.records && self.used_by_all() <= self.limits.bytes {
            return Ok(());
        }
        Err(io::ErrorKind::StorageFull.into())
    }

    /// Makes room for `bytes`, which are an original or may be given up. False if there is none for
    /// what may be given up.
    pub(crate) fn make_room(
        &mut self,
        kept: &Kept,
        bytes: u64,
        original: bool,
    ) -> io::Result<bool> {
        let fits = |state: &Self| state.used_by_all().saturating_add(bytes) <= state.limits.bytes;
        while !fits(self) {
            let Some(oldest) = self.spare.first().copied() else { break };
            self.give_up(kept, oldest)?;
        }
        if self.log.next() - self.first >= self.limits.records {
            return Err(io::ErrorKind::StorageFull.into());
        }
        match fits(self) {
            false if original => Err(io::ErrorKind::StorageFull.into()),
            fits => Ok(fits),
        }
    }

    fn used_by_all(&self) -> u64 {
        self.used.saturating_add(self.log.len())
    }

    pub(crate) fn hold(&mut self, number: u64, held: Held) {
        if held.named {
            self.names.add(held.inode, number);
        }
        if !held.original {
            self.spare.insert(number);
        }
        self.used += held.bytes;
        self.held.insert(number, held);
    }

    /// Forgets what is kept under a number, for which there was no need.
    pub(crate) fn let_go(&mut self, kept: &Kept, number: u64) -> io::Result<()> {
        if let Some(held) = self.held.remove(&number) {
            self.used -= held.bytes;
            self.spare.remove(&number);
            if held.named {
                self.names.remove(held.inode, number);
            }
        }
        kept.remove(number)
    }

    /// Gives up what is kept under a number, and says so.
    pub(crate) fn give_up(&mut self, kept: &Kept, number: u64) -> io::Result<()> {
        self.log.append_later(SESSION, Event::Dropped { kept: number });
        let inode = self.held.get(&number).map(|held| held.inode);
        self.let_go(kept, number)?;
        // Its number may soon be another inode's.
        if let Some(inode) = inode {
            self.made.remove(&inode);
        }
        Ok(())
    }

    /// Gives up what was kept just now if there is no room for it and it is no original.
    pub(crate) fn drop_if_over(&mut self, kept: &Kept, number: u64) {
        if self.used_by_all() > self.limits.bytes && self.spare.contains(&number) {
            let _ = self.give_up(kept, number);
        }
    }

    /// What is kept under a number is a copy from now on.
    pub(crate) fn let_go_of_name(&mut self, number: u64, copy: Inode) {
        if let Some(held) = self.held.get_mut(&number) {
            if held.named {
                self.names.remove(held.inode, number);
            }
            held.named = false;
            held.inode = copy;
        }
    }
}

/// The numbers of records whose changes were not made.
pub(crate) fn voided(records: &[Record]) -> HashSet<u64> {
    let void = |record: &Record| match record.event {
        Event::Void { of } => Some(of),
        _ => None,
    };
    records.iter().filter_map(void).collect()
}

/// What came of the last change of names, if no record says it: the folder does.
pub(crate) fn resolve_last(records: &[Record], root: &Handle) -> Option<Event> {
    let announces = |event: &Event| {
        matches!(event, Event::Make { .. } | Event::Move { .. } | Event::Swap { .. })
    };
    let last = records.iter().rposition(|record| announces(&record.event))?;
    let of = records[last].seq;
    let told = records[last..].iter().any(|record| match record.event {
        Event::Done { of: done, .. } | Event::Void { of: done } => done == of,
        _ => false,
    });
    if told {
        return None;
    }
    let at = |place: &Place| Tree::look(root, place).ok().flatten();
    let is = |place: &Place, inode: &Ident| {
        at(place).is_some_and(|stat| Ident::of(&stat).inode() == inode.inode())
    };
    let happened = match &records[last].event {
        Event::Make { at: place, .. } => at(place).is_some(),
        Event::Move { to: to @ Place::Share(_), inode, .. } => is(to, inode),
        Event::Move { from, inode, .. } => !is(from, inode),
        Event::Swap { other, inode, .. } => is(other, inode),
        _ => return None,
    };
    let after = match &records[last].event {
        Event::Make { at: place, .. } | Event::Move { to: place, .. } => at(place),
        _ => None,
    };
    let after = after.as_ref().map(Ident::of);
    Some(if happened { Event::Done { of, after } } else { Event::Void { of } })
}

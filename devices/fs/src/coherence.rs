//! Close-to-open coherence: a file that the guest opens is the file that has the name on the host
//! at that moment, with the content and the length that it has there. In the other direction all
//! that the guest writes has reached the host when `write(2)` returns, or, for shared mappings,
//! when the file is closed or synced.
//!
//! The guest's kernel caches names and attributes for [`VALID`], and pages while a file's times
//! and length do not change; nothing can call these back, for Linux's virtio-fs driver has no
//! notifications. So the server looks at a file again when it is opened:
//!
//! - Its [`Stamp`] (time of change and length) must be what it was when the guest last resolved a
//!   name to it. Else the answer is ESTALE, once: Linux then resolves the whole path anew, without
//!   its cache, and opens what it finds. Removing, replacing and renaming a file change the time
//!   of change too. This costs round trips only after a change. Of a file with two names that proves
//!   nothing while the guest may use one that was resolved before the change: until then every open resolves anew.
//! - Pages that the guest has cached stay ([`wire::open::KEEP_CACHE`]) only if the stamp is the
//!   same as when the file was opened last.
//! - The host's clock for such times is coarse, and a time of change is taken when a `write(2)` begins,
//!   while its data come when the writer has the processor. A young stamp proves nothing ([`Young`]):
//!   such a file is neither cached by name nor keeps its pages. A writer that is held up in the middle
//!   for longer than that is heard of where the host is watched.
//!
//! Attributes of files that are not opened anew, and directories on the way that the host itself
//! renames, may lag by [`VALID`].
//!
//! [`wire::open::KEEP_CACHE`]: crate::wire::open::KEEP_CACHE

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::host::{Stat, Time};

/// How long the guest may use attributes, and the names of files and directories.
pub(crate) const VALID: Duration = Duration::from_secs(1);

/// How long a stamp is young: no proof that nothing has changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Young {
    /// Two changes within this time may bear the same time of change: a tick at 100 Hz, twice. Later ones
    /// are heard of.
    Watched,
    /// Nobody would tell of what a writer brings later that has lost its processor in the middle.
    Unwatched,
}

impl Young {
    fn time(self) -> Duration {
        Duration::from_millis(match self {
            Self::Watched => 20,
            Self::Unwatched => 250,
        })
    }
}

/// What changes whenever a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    changed: Time,
    size: u64,
}

impl Stamp {
    fn of(stat: &Stat) -> Self {
        Self { changed: stat.changed, size: stat.size }
    }

    /// Is it old enough at `now` that a later change will bear another one?
    fn is_settled(self, now: Duration, young: Young) -> bool {
        let since = u64::try_from(self.changed.sec).unwrap_or(0);
        Duration::new(since, self.changed.nsec).saturating_add(young.time()) < now
    }
}

/// A name of a file: its directory, and a hash. What has no name is the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NameKey {
    pub(crate) directory: u64,
    pub(crate) hash: u64,
}

/// What the guest may have cached of one file.
#[derive(Debug, Default)]
pub(crate) struct Cached {
    /// When a name was last resolved to it.
    named: Option<Stamp>,
    /// That name, and until when the guest may use it.
    name: NameKey,
    usable: Duration,
    /// Until when the guest may use others.
    others: Duration,
    /// Until when it may use others that were resolved before the file's last change: what the host did to their
    /// names [`Cached::named`] does not tell.
    doubtful: Duration,
    /// When it was last opened.
    opened: Option<Stamp>,
}

/// The guest's threads that were told to resolve a path anew, and what each has found since. Linux tries
/// again once: then the file that it finds is opened, whatever the host has done in between, and be it
/// another file. It may find nothing first and something a moment later, all for one open; but a
/// file that such a thread opens without having just found it is judged like any other.
#[derive(Debug, Default)]
pub(crate) struct SentBack {
    /// The node that each thread found last; zero for none.
    found: Mutex<HashMap<u32, u64>>,
    /// How many there are, so that those who look up names mostly need no lock.
    count: AtomicUsize,
}

impl SentBack {
    /// More threads than wait for an answer at once. A guest that invents more gets ESTALE.
    const MAX: usize = 1024;

    /// The thread is sent back from this node. Where no name leads to it (`/proc/self/fd`), that is what
    /// it comes back to.
    pub(crate) fn note(&self, thread: u32, node: u64) {
        let mut found = self.lock();
        if found.len() >= Self::MAX {
            found.clear();
        }
        found.insert(thread, node);
        self.count.store(found.len(), Ordering::Relaxed);
    }

    /// The thread has looked up a name and found this node, or nothing (zero).
    pub(crate) fn found(&self, thread: u32, node: u64) {
        if self.count.load(Ordering::Relaxed) > 0
            && let Some(found) = self.lock().get_mut(&thread)
        {
            *found = node;
        }
    }

    /// Was the thread sent back, and has it found this node? Only once.
    pub(crate) fn take(&self, thread: u32, node: u64) -> bool {
        if self.count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut found = self.lock();
        let is_it = found.remove(&thread) == Some(node);
        self.count.store(found.len(), Ordering::Relaxed);
        is_it
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, u64>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How an open goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// Resolve the path anew.
    Stale,
    /// Open, and drop the cached pages.
    Fresh,
    /// Open, and keep the cached pages.
    Unchanged,
}

impl Cached {
    /// A name is resolved to the file. Returns how long the guest may use the name.
    pub(crate) fn resolved(
        &mut self,
        name: NameKey,
        stat: &Stat,
        now: Duration,
        young: Young,
    ) -> Duration {
        let stamp = Stamp::of(stat);
        let valid = if stamp.is_settled(now, young) { VALID } else { Duration::ZERO };
        if self.name != name {
            self.others = self.others.max(self.usable);
        }
        if self.named.is_some_and(|named| named != stamp) {
            self.doubtful = self.doubtful.max(self.others);
        }
        (self.named, self.name, self.usable) = (Some(stamp), name, now.saturating_add(valid));
        valid
    }

    /// The guest opens the file; `anew` if it has just been sent back.
    pub(crate) fn open(&mut self, stat: &Stat, now: Duration, young: Young, anew: bool) -> Opening {
        let stamp = Stamp::of(stat);
        let is_stale = self.named.is_some_and(|named| named != stamp) || now < self.doubtful;
        if is_stale && !anew {
            return Opening::Stale;
        }
        let settled = stamp.is_settled(now, young).then_some(stamp);
        let before = std::mem::replace(&mut self.opened, settled);
        if before == Some(stamp) { Opening::Unchanged } else { Opening::Fresh }
    }
}

#[cfg(test)]
mod tests {
    use super::Young::{Unwatched, Watched};
    use super::*;

    const NAME: NameKey = NameKey { directory: 1, hash: 1 };
    const OTHER: NameKey = NameKey { directory: 1, hash: 2 };

    fn file(changed: i64, size: u64) -> Stat {
        Stat { changed: Time { sec: changed, nsec: 0 }, size, ..Stat::default() }
    }

    fn at(sec: u64) -> Duration {
        Duration::from_secs(sec)
    }

    #[test]
    fn a_changed_file_is_resolved_anew_once() {
        let mut cached = Cached::default();
        assert_eq!(cached.resolved(NAME, &file(10, 1), at(20), Watched), VALID);
        assert_eq!(cached.open(&file(10, 1), at(20), Watched, false), Opening::Fresh);
        assert_eq!(cached.open(&file(10, 1), at(20), Watched, false), Opening::Unchanged);
        assert_eq!(cached.open(&file(21, 1), at(22), Watched, false), Opening::Stale);
        assert_eq!(cached.resolved(NAME, &file(21, 1), at(22), Watched), VALID);
        assert_eq!(cached.open(&file(21, 1), at(22), Watched, false), Opening::Fresh);
        assert_eq!(cached.open(&file(21, 1), at(22), Watched, false), Opening::Unchanged);
    }

    #[test]
    fn a_file_that_never_rests_opens_all_the_same() {
        let mut cached = Cached::default();
        cached.resolved(NAME, &file(10, 1), at(20), Watched);
        assert_eq!(cached.open(&file(20, 2), at(20), Watched, false), Opening::Stale);
        assert_eq!(cached.open(&file(20, 3), at(20), Watched, true), Opening::Fresh);
    }

    #[test]
    fn a_thread_is_sent_back_once() {
        let sent_back = SentBack::default();
        assert!(!sent_back.take(7, 1));
        sent_back.note(7, 1);
        assert!(!sent_back.take(8, 1));
        assert!(sent_back.take(7, 1));
        assert!(!sent_back.take(7, 1));
        // It finds nothing, then something: one open. But it opens what it has not just found.
        sent_back.note(7, 1);
        sent_back.found(7, 0);
        sent_back.found(7, 2);
        assert!(sent_back.take(7, 2));
        sent_back.note(7, 1);
        sent_back.found(7, 0);
        assert!(!sent_back.take(7, 2));
        for thread in 0..10_000 {
            sent_back.note(thread, 1);
        }
        assert!(sent_back.lock().len() <= SentBack::MAX);
    }

    #[test]
    fn a_young_stamp_proves_nothing() {
        let mut cached = Cached::default();
        let (young, now) = (file(10, 1), at(10) + Duration::from_millis(15));
        assert_eq!(cached.resolved(NAME, &young, now, Watched), Duration::ZERO);
        assert_eq!(cached.open(&young, now, Watched, false), Opening::Fresh);
        assert_eq!(cached.open(&young, now, Watched, false), Opening::Fresh);
        assert_eq!(
            cached.resolved(NAME, &file(11, 1), at(10), Watched),
            Duration::ZERO,
            "from the future"
        );
        // Where nobody tells of later changes it is young for longer.
        let later = at(10) + Duration::from_millis(200);
        assert_eq!(cached.resolved(NAME, &young, later, Watched), VALID);
        assert_eq!(cached.resolved(NAME, &young, later, Unwatched), Duration::ZERO);
        assert_eq!(cached.open(&young, later, Unwatched, false), Opening::Fresh);
        assert_eq!(cached.open(&young, later, Unwatched, false), Opening::Fresh);
    }

    #[test]
    fn one_of_two_names_proves_nothing_for_the_other_after_a_change() {
        let mut cached = Cached::default();
        cached.resolved(NAME, &file(10, 1), at(20), Watched);
        cached.resolved(OTHER, &file(10, 1), at(20), Watched);
        assert_eq!(cached.open(&file(10, 1), at(20), Watched, false), Opening::Fresh);
        // The host takes one of them away, and the guest has looked at the other since.
        cached.resolved(OTHER, &file(20, 1), at(20), Watched);
        assert_eq!(cached.open(&file(20, 1), at(20), Watched, false), Opening::Stale);
        assert_eq!(cached.open(&file(20, 1), at(20), Watched, true), Opening::Fresh);
        assert_eq!(cached.open(&file(20, 1), at(20), Watched, false), Opening::Stale);
        // By then the guest has asked for both anew.
        assert_eq!(cached.open(&file(20, 1), at(21), Watched, false), Opening::Fresh);
    }

    #[test]
    fn a_name_that_the_guest_could_not_cache_leaves_no_doubt() {
        let mut cached = Cached::default();
        // A file is made, renamed by the guest and found by its new name.
        assert_eq!(cached.resolved(NAME, &file(20, 0), at(20), Watched), Duration::ZERO);
        cached.resolved(OTHER, &file(21, 1), at(22), Watched);
        assert_eq!(cached.open(&file(21, 1), at(22), Watched, false), Opening::Fresh);
    }
}

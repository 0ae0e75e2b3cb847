//! Users of sessions: numbers from a pool, and what tools read of them.
//!
//! The machine's `/etc/passwd` is never written. A session sees a copy of its own in its place, with one
//! line more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The user of every session's first process: no session's, and no image's.
pub(super) const KEEPER: u32 = 9_999;

/// The first and the last user of a session.
const FIRST: u32 = 10_000;
const LAST: u32 = 59_999;

/// Which users are taken.
#[derive(Debug, Default)]
pub(super) struct Users {
    pool: Mutex<Pool>,
}

#[derive(Debug)]
struct Pool {
    /// Below this every user is taken or free; from here on nobody has been taken.
    next: u32,
    free: BTreeSet<u32>,
    /// Users of sessions that an earlier machine left on the disk.
    kept: BTreeMap<String, u32>,
}

impl Default for Pool {
    fn default() -> Self {
        Self { next: FIRST, free: BTreeSet::new(), kept: BTreeMap::new() }
    }
}

impl Users {
    /// Takes the user that this name has kept, or else the lowest free one; says which it was.
    pub(super) fn take(&self, name: &str) -> Option<(u32, bool)> {
        let mut pool = self.lock();
        if let Some(uid) = pool.kept.remove(name) {
            return Some((uid, true));
        }
        if let Some(uid) = pool.free.pop_first() {
            return Some((uid, false));
        }
        let uid = pool.next;
        pool.next = (uid <= LAST).then_some(uid + 1)?;
        Some((uid, false))
    }

    /// Keeps a user for this name.
    pub(super) fn keep(&self, name: &str, uid: u32) {
        let mut pool = self.lock();
        if !(FIRST..=LAST).contains(&uid) || pool.kept.values().any(|other| *other == uid) {
            return;
        }
        let unused = pool.next..=uid;
        pool.next = pool.next.max(uid + 1);
        pool.free.extend(unused);
        pool.free.remove(&uid);
        pool.kept.insert(name.to_owned(), uid);
    }

    /// Gives a user back.
    pub(super) fn release(&self, uid: u32) {
        let mut pool = self.lock();
        if (FIRST..pool.next).contains(&uid) {
            pool.free.insert(uid);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `/etc/passwd` and `/etc/group` as this session sees them, for an image that has them.
pub(super) fn tables(name: &str, uid: u32) -> [(&'static str, Option<String>); 2] {
    let shell = if fs::exists("/bin/bash").unwrap_or(false) { "/bin/bash" } else { "/bin/sh" };
    // The first line of a number or a name is the one that is found.
    let user = format!("{name}:x:{uid}:{uid}::/sessions/{name}:{shell}\n");
    let group = format!("{name}:x:{uid}:\n");
    [("passwd", user), ("group", group)].map(|(file, line)| {
        let table = fs::read_to_string(format!("/etc/{file}")).ok();
        (file, table.map(|table| line + &table))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_user_is_taken_again_and_again() {
        let users = Users::default();
        assert_eq!(
            [users.take("a"), users.take("b")],
            [Some((FIRST, false)), Some((FIRST + 1, false))]
        );
        users.release(FIRST);
        for name in 0..1000 {
            assert_eq!(users.take(&name.to_string()), Some((FIRST, false)));
            users.release(FIRST);
        }
    }

    #[test]
    fn a_kept_user_is_its_names_alone() {
        let users = Users::default();
        users.keep("old", FIRST);
        users.keep("thief", FIRST);
        users.keep("root", 0);
        assert_eq!(users.take("thief"), Some((FIRST + 1, false)));
        assert_eq!(users.take("root"), Some((FIRST + 2, false)));
        assert_eq!(users.take("old"), Some((FIRST, true)));
    }

    #[test]
    fn the_pool_has_an_end() {
        let users = Users::default();
        for _ in FIRST..=LAST {
            assert!(users.take("x").is_some());
        }
        assert_eq!(users.take("x"), None);
    }
}

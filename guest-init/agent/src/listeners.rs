//! Tells of programs that listen for TCP, in the machine and in each session, and of their end.
//!
//! Nothing in the kernel of a guest says when a socket begins to listen, so the kernel's tables
//! ([`sockets`]) are looked at: soon after a command has started, then more and more
//! seldom, and not at all where no command runs and nobody is known to listen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use cabana_protocol::Event;

use crate::events::Events;
use crate::session::Session;
use crate::sockets::{self, MACHINE};

/// How long after the start of a command the tables are looked at, and again as soon as something has changed.
const SOON: Duration = Duration::from_millis(100);
/// How seldom they are looked at when nothing changes.
const SELDOM: Duration = Duration::from_secs(2);
/// How long the last command of a place is looked after: it may have left a server behind that is on its way.
const AFTER: Duration = Duration::from_secs(10);
/// The most listeners of a place that are told of.
const MOST: usize = 256;

/// Who listens, and where somebody may begin to.
#[derive(Debug)]
pub(crate) struct Listeners {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    watched: Mutex<Watched>,
    /// There is a reason to look sooner.
    changed: Condvar,
    events: Arc<Events>,
}

#[derive(Debug)]
struct Watched {
    /// By the session's name, without one the machine itself.
    places: BTreeMap<Option<String>, Place>,
    /// The time until the next look.
    pace: Duration,
    /// There is a thread that looks.
    thread: bool,
}

#[derive(Debug)]
struct Place {
    /// None for the machine.
    session: Option<Weak<Session>>,
    /// Commands that run.
    commands: u32,
    /// When the last one ended.
    ended: Instant,
    known: BTreeSet<SocketAddr>,
}

/// A command that runs, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Running {
    shared: Arc<Shared>,
    place: Option<String>,
}

impl Listeners {
    pub(crate) fn new(events: Arc<Events>) -> Self {
        let watched = Watched { places: BTreeMap::new(), pace: SOON, thread: false };
        let shared = Shared { watched: Mutex::new(watched), changed: Condvar::new(), events };
        Self { shared: Arc::new(shared) }
    }

    /// A command has started.
    pub(crate) fn running(&self, session: Option<&Arc<Session>>) -> Running {
        let shared = Arc::clone(&self.shared);
        let name = session.map(|session| session.name.clone());
        let mut watched = shared.lock();
        let place = watched.places.entry(name.clone()).or_insert_with(Place::new);
        place.session = session.map(Arc::downgrade);
        place.commands += 1;
        // Many commands one after the other make it look no more often than one does.
        if watched.pace > SOON {
            watched.pace = SOON;
            shared.changed.notify_one();
        }
        if !watched.thread {
            let looking = Arc::clone(&shared);
            let thread = thread::Builder::new().name("listeners".into()).stack_size(64 << 10);
            watched.thread = thread.spawn(move || looking.look_for_ever()).is_ok();
        }
        drop(watched);
        Running { shared, place: name }
    }

    /// The host is another one, which knows of nobody.
    pub(crate) fn tell_again(&self) {
        let mut watched = self.shared.lock();
        watched.places.values_mut().for_each(|place| place.known.clear());
        watched.pace = SOON;
        self.shared.changed.notify_one();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(place) = self.shared.lock().places.get_mut(&self.place) {
            place.commands = place.commands.saturating_sub(1);
            place.ended = Instant::now();
        }
    }
}

impl Place {
    fn new() -> Self {
        Self { session: None, commands: 0, ended: Instant::now(), known: BTreeSet::new() }
    }

    fn is_quiet(&self) -> bool {
        self.commands == 0 && self.known.is_empty() && self.ended.elapsed() > AFTER
    }

    /// Who listens now: nobody, if the session is gone.
    fn look(&self) -> BTreeMap<SocketAddr, u64> {
        let Some(session) = &self.session else { return sockets::listening(MACHINE) };
        let Some(session) = session.upgrade() else { return BTreeMap::new() };
        let found = sockets::listening(&session.network_tables());
        // The number of a process that is gone may be another's.
        if session.has_ended() { BTreeMap::new() } else { found }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_for_ever(&self) {
        let mut watched = self.lock();
        loop {
            let pace = watched.pace;
            let waited = if watched.places.is_empty() {
                // The first command wakes it, and is looked at soon, not now.
                watched.pace = SELDOM;
                watched = self.changed.wait(watched).unwrap_or_else(PoisonError::into_inner);
                continue;
            } else {
                self.changed.wait_timeout(watched, pace)
            };
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            watched = woken;
            if !timeout.timed_out() {
                continue;
            }
            let mut changed = false;
            for (name, place) in &mut watched.places {
                changed |= self.compare(name.as_ref(), place);
            }
            watched.places.retain(|_, place| !place.is_quiet());
            watched.pace = if changed { SOON } else { (pace * 2).min(SELDOM) };
        }
    }

    /// Looks at a place and tells what has changed there.
    fn compare(&self, session: Option<&String>, place: &mut Place) -> bool {
        let found = place.look();
        let gone: Vec<_> =
            place.known.iter().filter(|known| !found.contains_key(known)).copied().collect();
        for address in &gone {
            place.known.remove(address);
            let session = session.cloned();
            self.events.tell(Event::ListeningEnded { session, address: *address });
        }
        let mut new: Vec<_> =
            found.into_iter().filter(|(address, _)| !place.known.contains(address)).collect();
        if !new.is_empty() {
            let own = sockets::of_process("self");
            new.retain(|(_, socket)| !own.contains(socket));
        }
        new.truncate(MOST.saturating_sub(place.known.len()));
        for (address, _) in &new {
            place.known.insert(*address);
            let session = session.cloned();
            self.events.tell(Event::Listening { session, address: *address });
        }
        !gone.is_empty() || !new.is_empty()
    }
}

//! Tells of programs that listen for TCP, in the machine and in each session, and of their end.
//!
//! Nothing in the kernel of a guest says when a socket begins to listen, so the kernel's tables
//! (`Documentation/networking/proc_net_tcp.rst`) are looked at: soon after a command has started, then more and more
//! seldom, and not at all where no command runs and nobody is known to listen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use std::{fs, thread};

use cabana_protocol::Event;

use crate::events::Events;
use crate::session::Session;

/// How long after the start of a command the tables are looked at, and again as soon as something has changed.
const SOON: Duration = Duration::from_millis(100);
/// How seldom they are looked at when nothing changes.
const SELDOM: Duration = Duration::from_secs(2);
/// How long the last command of a place is looked after: it may have left a server behind that is on its way.
const AFTER: Duration = Duration::from_secs(10);
/// The most listeners of a place that are told of.
const MOST: usize = 256;
/// `TCP_LISTEN` in the tables.
const LISTEN: &str = "0A";

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
        let Some(session) = &self.session else { return listening("/proc/self/net") };
        let Some(session) = session.upgrade() else { return BTreeMap::new() };
        let found = listening(&session.network_tables());
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
            let own = own_sockets();
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

/// What listens by the tables in this folder, with the numbers of the sockets.
fn listening(folder: &str) -> BTreeMap<SocketAddr, u64> {
    let read = |name| fs::read_to_string(format!("{folder}/{name}")).unwrap_or_default();
    let tables = [read("tcp"), read("tcp6")];
    tables.iter().flat_map(|table| table.lines().filter_map(parse)).collect()
}

/// A line of a table: `sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode …`.
fn parse(line: &str) -> Option<(SocketAddr, u64)> {
    let mut words = line.split_whitespace();
    let (address, port) = words.nth(1)?.split_once(':')?;
    if words.nth(1)? != LISTEN {
        return None;
    }
    let socket = words.nth(5)?.parse().ok()?;
    Some((SocketAddr::new(self::address(address)?, u16::from_str_radix(port, 16).ok()?), socket))
}

/// An address: words of 32 bits as the processor would print them, which hold bytes in the network's order.
fn address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?).into())
        }
        _ => None,
    }
}

/// The sockets of the agent itself, which listens for the host where it was asked to.
fn own_sockets() -> BTreeSet<u64> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let number = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    entries.filter_map(number).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn lines_of_the_tables_are_read() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0";
        assert_eq!(parse(line), Some(("127.0.0.1:8080".parse().unwrap(), 4711)));
        let line = "   1: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0 100 0 0 10 0";
        assert_eq!(parse(line), Some(("[::1]:22".parse().unwrap(), 12)));
        let established = line.replace(" 0A ", " 01 ");
        for bad in ["", "  sl  local_address rem_address   st", "0: x:y 0:0 0A", &established] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn who_listens_is_found_and_the_agent_itself_is_known() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let address = listener.local_addr().unwrap();
            let socket = listening("/proc/self/net")[&address];
            assert!(own_sockets().contains(&socket));
            drop(listener);
            assert!(!listening("/proc/self/net").contains_key(&address));
        }
    }
}

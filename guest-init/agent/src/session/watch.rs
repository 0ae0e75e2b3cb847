//! Hears of what the kernel does to sessions: processes killed for want of memory, forks refused, keepers
//! killed.
//!
//! The kernel counts out-of-memory kills in a cgroup's `memory.events` and says who was killed in its log
//! alone, in one line (`mm/oom_kill.c`): "… Killed process 4711 (python3) total-vm:…kB, anon-rss:…kB,
//! file-rss:…kB, shmem-rss:…kB, UID:10000 …". The user is the session. Forks that a limit refuses notify
//! `pids.events`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use cabana_protocol::Event;
use rustix::event::epoll;
use rustix::fs::{Mode, OFlags, SeekFrom, inotify};
use rustix::io::Errno;

use super::Session;
use crate::events::Events;

/// What woke the watch, below the users of sessions, which stand for themselves.
const LOG: u64 = 0;
const FORKS: u64 = 1;

/// A record of the kernel's log is at most this long (`CONSOLE_EXT_LOG_MAX`).
const RECORD: usize = 8192;

/// A session's fork bomb is told once in this time.
const REST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Watch {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    log: OwnedFd,
    forks: OwnedFd,
    watched: Mutex<Watched>,
    events: Arc<Events>,
}

#[derive(Debug, Default)]
struct Watched {
    /// Sessions by user.
    sessions: BTreeMap<u32, Weak<Session>>,
    /// Users by inotify's descriptors, and when a refusal was told last.
    forks: BTreeMap<i32, (u32, Option<Instant>)>,
}

impl Watch {
    /// Begins to watch, on a thread of its own.
    pub(super) fn start(events: Arc<Events>) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let log = rustix::fs::open("/dev/kmsg", flags, Mode::empty())?;
        rustix::fs::seek(&log, SeekFrom::End(0))?;
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let forks = inotify::init(flags)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (fd, data) in [(&log, LOG), (&forks, FORKS)] {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(data), epoll::EventFlags::IN)?;
        }
        let shared = Arc::new(Shared { epoll, log, forks, watched: Mutex::default(), events });
        let watching = Arc::clone(&shared);
        thread::Builder::new().name("watch".into()).stack_size(64 << 10).spawn(move || {
            loop {
                if let Err(errno) = watching.wait() {
                    return eprintln!(
                        "cabana-agent: watching sessions: {}",
                        io::Error::from(errno)
                    );
                }
            }
        })?;
        Ok(Self { shared })
    }

    /// Watches this session until it is dropped. What cannot be watched is not told of.
    pub(super) fn add(&self, session: &Arc<Session>) {
        let mut watched = self.shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.sessions.retain(|_, session| session.strong_count() > 0);
        watched.sessions.insert(session.uid, Arc::downgrade(session));
        let path = session.cgroup.path().join("pids.events");
        let forks = inotify::add_watch(&self.shared.forks, path, inotify::WatchFlags::MODIFY);
        if let Ok(descriptor) = forks {
            watched.forks.insert(descriptor, (session.uid, None));
        }
        let user = epoll::EventData::new_u64(session.uid.into());
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        let _ = epoll::add(&self.shared.epoll, session.ended(), user, flags);
    }
}

impl Shared {
    fn wait(&self) -> Result<(), Errno> {
        let mut woken = Vec::with_capacity(16);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut woken), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        for event in woken {
            match event.data.u64() {
                LOG => self.read_log(),
                FORKS => self.read_forks(),
                user => self.keeper_ended(user as u32),
            }
        }
        Ok(())
    }

    fn session(&self, uid: u32) -> Option<Arc<Session>> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.sessions.get(&uid)?.upgrade()
    }

    /// Reads the log to its end.
    fn read_log(&self) {
        let mut record = vec![0; RECORD];
        loop {
            match rustix::io::read(&self.log, &mut record[..]) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    if let Some(kill) = parse(&text) {
                        let Kill { pid, command, memory, uid } = kill;
                        let session = self.session(uid).map(|session| session.name.clone());
                        self.events.tell(Event::OutOfMemory { session, pid, command, memory });
                    }
                }
                // What was overwritten before it was read.
                Err(Errno::PIPE | Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn read_forks(&self) {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
        let mut reader = inotify::Reader::new(&self.forks, &mut buffer);
        while let Ok(event) = reader.next() {
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            let descriptor = event.wd();
            if event.events().contains(inotify::ReadFlags::IGNORED) {
                watched.forks.remove(&descriptor);
                continue;
            }
            let Some((uid, told)) = watched.forks.get_mut(&descriptor) else { continue };
            if told.is_some_and(|told| told.elapsed() < REST) {
                continue;
            }
            *told = Some(Instant::now());
            let uid = *uid;
            drop(watched);
            if let Some(session) = self.session(uid) {
                self.events.tell(Event::ProcessLimit { session: session.name.clone() });
            }
        }
    }

    /// A keeper has ended: by the session's removal, or else by somebody's hand.
    fn keeper_ended(&self, uid: u32) {
        if let Some(session) = self.session(uid)
            && !session.is_ending()
        {
            self.events.tell(Event::SessionDied { session: session.name.clone() });
        }
    }
}

/// Who was killed.
#[derive(Debug, PartialEq, Eq)]
struct Kill {
    pid: u32,
    command: String,
    memory: u64,
    uid: u32,
}

/// What a record says of a kill, if it is about one. A process chooses its name, so that everything else
/// is read around it.
fn parse(record: &str) -> Option<Kill> {
    // "6,1234,5678901,-;Memory cgroup out of memory: Killed process …"; what follows a newline are
    // properties.
    let (_, text) = record.lines().next()?.split_once(';')?;
    let (head, rest) = text.split_once("Killed process ")?;
    if !head.to_ascii_lowercase().contains("out of memory") {
        return None;
    }
    let (pid, rest) = rest.split_once(" (")?;
    let (command, rest) = rest.rsplit_once(") total-vm:")?;
    let number = |word: &str, end: &str| -> Option<u64> {
        rest.split_once(word)?.1.split_once(end)?.0.parse().ok()
    };
    let resident = ["anon-rss:", "file-rss:", "shmem-rss:"].map(|word| number(word, "kB"));
    let memory = resident.into_iter().flatten().sum::<u64>().saturating_mul(1024);
    let uid = number("UID:", " ")? as u32;
    Some(Kill { pid: pid.parse().ok()?, command: command.to_owned(), memory, uid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_read_from_the_log_whatever_the_process_calls_itself() {
        let record = |command: &str| {
            format!(
                "3,800,12345,-;Memory cgroup out of memory: Killed process 4711 ({command}) \
                 total-vm:200000kB, anon-rss:100kB, file-rss:20kB, shmem-rss:3kB, UID:10003 \
                 pgtables:100kB oom_score_adj:0\n SUBSYSTEM=x\n"
            )
        };
        for command in ["python3", "a b", ") total-vm:1", "UID:0 ", "x (y)"] {
            let kill = parse(&record(command)).unwrap();
            let expected =
                Kill { pid: 4711, command: command.into(), memory: 123 << 10, uid: 10_003 };
            assert_eq!(kill, expected);
        }
        assert_eq!(parse("6,1,2,-;virtio_blk virtio5: [vda] 33554432"), None);
        assert_eq!(parse("6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,uid=0"), None);
        assert_eq!(parse(""), None);
    }
}

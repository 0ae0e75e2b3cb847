//! Commands that outlive their connections, and how a later connection finds them.
//!
//! Each has a thread ([`exec`](crate::exec)) that keeps its output, within bounds, while nobody is
//! attached. A connection that wants it is handed to that thread.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cabana_protocol::{ExitStatus, ProcessInfo};
use rustix::event::{EventfdFlags, eventfd};

use crate::exec::Link;

/// The most background commands at a time, ended ones that nobody has fetched among them.
const MOST: usize = 256;

/// All background commands.
#[derive(Debug, Default)]
pub(crate) struct Background {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    commands: BTreeMap<u64, Arc<Entry>>,
}

/// One background command, as others see it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) number: u64,
    state: Mutex<State>,
    wake: OwnedFd,
}

#[derive(Debug)]
struct State {
    info: ProcessInfo,
    mail: Option<Mail>,
    /// Nobody reads mail any more.
    closed: bool,
}

/// What a command's thread is told.
#[derive(Debug)]
pub(crate) enum Mail {
    /// Somebody attaches.
    Attach(Box<Link>),
    /// What is kept is of no use any more.
    Forget,
}

impl Background {
    /// A command has started. When there are too many, the oldest that has ended and that nobody is
    /// attached to is forgotten; `None` when all of them run.
    pub(crate) fn add(&self, info: ProcessInfo) -> io::Result<Option<Arc<Entry>>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut table = lock(&self.table);
        if table.commands.len() >= MOST {
            let unwanted = table.commands.values().find(|entry| {
                let info = &lock(&entry.state).info;
                info.status.is_some() && !info.attached
            });
            let Some(unwanted) = unwanted.map(Arc::clone) else { return Ok(None) };
            table.commands.remove(&unwanted.number);
            unwanted.post(Mail::Forget);
        }
        table.last += 1;
        let number = table.last;
        let info = ProcessInfo { process: number, ..info };
        let state = Mutex::new(State { info, mail: None, closed: false });
        let entry = Arc::new(Entry { number, state, wake });
        table.commands.insert(number, Arc::clone(&entry));
        Ok(Some(entry))
    }

    /// Hands a connection to a command's thread; gives it back if there is no such command.
    pub(crate) fn attach(&self, number: u64, link: Box<Link>) -> Result<(), Box<Link>> {
        let Some(entry) = lock(&self.table).commands.get(&number).map(Arc::clone) else {
            return Err(link);
        };
        match entry.post(Mail::Attach(link)) {
            None | Some(Mail::Forget) => Ok(()),
            Some(Mail::Attach(link)) => Err(link),
        }
    }

    /// Takes a command off the list, whose thread ends; returns what has just been posted.
    pub(crate) fn remove(&self, entry: &Entry) -> Option<Mail> {
        lock(&self.table).commands.remove(&entry.number);
        let mut state = lock(&entry.state);
        state.closed = true;
        state.mail.take()
    }

    /// Forgets what was kept of the commands of a session that has ended. A host that is attached still
    /// hears of the end.
    pub(crate) fn forget_session(&self, session: &str) {
        let table = lock(&self.table);
        for entry in table.commands.values() {
            let state = lock(&entry.state);
            let forget = state.info.session.as_deref() == Some(session) && !state.info.attached;
            drop(state);
            if forget {
                entry.post(Mail::Forget);
            }
        }
    }

    /// All commands, in the order of their start.
    pub(crate) fn list(&self) -> Vec<ProcessInfo> {
        lock(&self.table).commands.values().map(|entry| lock(&entry.state).info.clone()).collect()
    }
}

impl Entry {
    /// Readable when there is mail.
    pub(crate) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Takes the mail.
    pub(crate) fn mail(&self) -> Option<Mail> {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        lock(&self.state).mail.take()
    }

    pub(crate) fn set_attached(&self, attached: bool) {
        lock(&self.state).info.attached = attached;
    }

    pub(crate) fn set_ended(&self, status: ExitStatus) {
        lock(&self.state).info.status = Some(status);
    }

    /// Leaves mail. The latest connection counts, and nothing after the command is forgotten; what is not
    /// taken comes back.
    fn post(&self, mail: Mail) -> Option<Mail> {
        let mut state = lock(&self.state);
        if state.closed || matches!(state.mail, Some(Mail::Forget)) {
            return Some(mail);
        }
        state.mail = Some(mail);
        // It can only be full of wake-ups.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        None
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! One connection between the device and the threads that use it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::VsockError;
use crate::connection::{Connection, End, Prospect};
use crate::inbox::{Block, Inbox, lock};

/// Called when a stream has become ready.
pub(crate) type Waker = Arc<dyn Fn() + Send + Sync>;

/// The ports that name a connection; the two context ids are always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) host_port: u32,
    pub(crate) guest_port: u32,
}

/// A connection, shared by the device, the table and its streams.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) key: Key,
    state: Mutex<LinkState>,
    /// Signalled with `LinkState::reader_waits` or `connector_waits` taken back.
    readable: Condvar,
    /// Signalled with `LinkState::writer_waits` taken back.
    writable: Condvar,
    /// What a reader has begun. Locked before `state`.
    pub(crate) current: Mutex<Option<Block>>,
}

pub(crate) struct LinkState {
    pub(crate) connection: Connection,
    pub(crate) inbox: Inbox,
    /// It stands in the rx queue's list of connections that owe something.
    pub(crate) queued: bool,
    /// A writer found no buffer in the rx queue; the next refill clears it.
    pub(crate) starved: bool,
    reader_waits: bool,
    writer_waits: bool,
    connector_waits: bool,
    waker: Option<Waker>,
}

impl LinkState {
    /// A reader would not wait.
    fn is_readable(&self) -> bool {
        !self.inbox.is_empty() || self.connection.prospect() != Prospect::More
    }

    /// A writer would not wait.
    fn is_writable(&self) -> bool {
        match self.connection.room() {
            Ok(room) => room > 0 && !self.starved,
            Err(_) => true,
        }
    }

    /// Asks to be woken when a write is worth another try.
    pub(crate) fn await_writable(&mut self) {
        self.writer_waits = true;
    }
}

impl Link {
    pub(crate) fn new(key: Key, connection: Connection) -> Arc<Self> {
        Arc::new(Self {
            key,
            state: Mutex::new(LinkState {
                connection,
                inbox: Inbox::default(),
                queued: false,
                starved: false,
                reader_waits: false,
                writer_waits: false,
                connector_waits: false,
                waker: None,
            }),
            readable: Condvar::new(),
            writable: Condvar::new(),
            current: Mutex::new(None),
        })
    }

    /// The state, for changes that nobody waits for.
    pub(crate) fn lock(&self) -> MutexGuard<'_, LinkState> {
        lock(&self.state)
    }

    /// Changes the state and wakes those whose wait is over. The caller holds no lock that a waker
    /// could want.
    pub(crate) fn update<R>(&self, change: impl FnOnce(&mut LinkState) -> R) -> R {
        let mut state = self.lock();
        let result = change(&mut state);
        let readable = state.reader_waits && state.is_readable();
        let writable = state.writer_waits && state.is_writable();
        let connected = state.connector_waits && !state.connection.is_connecting();
        if !readable && !writable && !connected {
            return result;
        }
        state.reader_waits &= !readable;
        state.writer_waits &= !writable;
        state.connector_waits &= !connected;
        let waker = state.waker.clone();
        drop(state);
        if readable || connected {
            self.readable.notify_all();
        }
        if writable {
            self.writable.notify_all();
        }
        if let Some(waker) = waker {
            waker();
        }
        result
    }

    /// Sets whom to call when a read or write that would have blocked is worth another try. Both
    /// count as tried.
    pub(crate) fn set_waker(&self, waker: Option<Waker>) {
        let before = self.update(|state| {
            state.reader_waits = true;
            state.writer_waits = true;
            std::mem::replace(&mut state.waker, waker)
        });
        drop(before);
    }

    /// The next block of data; `None` at the end of the stream, an error if it is cut off. Without
    /// `wait` there may be nothing yet: then the error is `None`.
    pub(crate) fn next_block(&self, wait: bool) -> Result<Option<Block>, Option<VsockError>> {
        let mut state = self.lock();
        loop {
            if let Some(block) = state.inbox.pop() {
                return Ok(Some(block));
            }
            match state.connection.prospect() {
                Prospect::End => return Ok(None),
                Prospect::Broken(error) => return Err(Some(error)),
                Prospect::More => {}
            }
            state.reader_waits = true;
            if !wait {
                return Err(None);
            }
            state = self.readable.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until [`Link::update`] has found the link writable after
    /// [`LinkState::await_writable`].
    pub(crate) fn wait_writable(&self) {
        let mut state = self.lock();
        while state.writer_waits {
            state = self.writable.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the guest's answer to the host's request.
    pub(crate) fn wait_connected(&self, deadline: Option<Instant>) -> Result<(), VsockError> {
        let mut state = self.lock();
        while state.connection.is_connecting() {
            state.connector_waits = true;
            state = match wait_until(&self.readable, state, deadline) {
                Ok(state) => state,
                Err(_) => return Err(VsockError::TimedOut),
            };
        }
        match state.connection.prospect() {
            Prospect::Broken(VsockError::Reset) => Err(VsockError::Refused(self.key.guest_port)),
            Prospect::Broken(error) => Err(error),
            Prospect::More | Prospect::End => Ok(()),
        }
    }

    /// Ends the connection from outside.
    pub(crate) fn end(&self, end: End) {
        self.update(|state| state.connection.end(end));
    }
}

/// Waits for a signal; the error is the guard, once `deadline` has passed.
pub(crate) fn wait_until<'a, T>(
    signal: &Condvar,
    guard: MutexGuard<'a, T>,
    deadline: Option<Instant>,
) -> Result<MutexGuard<'a, T>, MutexGuard<'a, T>> {
    let Some(deadline) = deadline else {
        return Ok(signal.wait(guard).unwrap_or_else(PoisonError::into_inner));
    };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(guard);
    }
    Ok(signal.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0)
}

impl std::fmt::Debug for LinkState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkState").field("connection", &self.connection).finish_non_exhaustive()
    }
}

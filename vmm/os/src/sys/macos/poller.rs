//! What an event loop waits by (`kqueue(2)`).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{EV_ADD, EV_CLEAR, EV_DELETE, EV_EOF, EVFILT_READ, EVFILT_WRITE, NOTE_LOWAT};

use super::event::Event;
use super::queue::{Kqueue, change};
use crate::sys::event_loop::{Interest, Trigger};

pub use std::os::fd::AsFd as Source;

const WAKE: u64 = 0;
const BATCH: usize = 64;
/// More than there ever is to read: only an end comes before.
const NEVER: isize = i32::MAX as isize;

/// Room for what is ready.
pub(in crate::sys) struct Batch(Vec<libc::kevent>);

impl Default for Batch {
    fn default() -> Self {
        Self(Vec::with_capacity(BATCH))
    }
}

/// A source's own descriptor in the loop.
pub(in crate::sys) struct Watched(OwnedFd);

pub(in crate::sys) struct Poller {
    queue: Kqueue,
    wake: Event,
}

impl Poller {
    pub(in crate::sys) fn new() -> io::Result<Self> {
        let poller = Self { queue: Kqueue::new()?, wake: Event::new()? };
        let wake = poller.wake.as_fd().as_raw_fd();
        poller.queue.apply(change(wake as usize, EVFILT_READ, EV_ADD, 0, 0, WAKE))?;
        Ok(poller)
    }

    pub(in crate::sys) fn add(
        &self,
        source: &impl Source,
        token: u64,
        interest: Interest,
        trigger: Trigger,
    ) -> io::Result<Watched> {
        let watched = Watched(source.as_fd().try_clone_to_owned()?);
        match trigger {
            Trigger::Level => self.watch(&watched, token, interest)?,
            Trigger::Edge => {
                let wanted = [(EVFILT_READ, interest.readable), (EVFILT_WRITE, interest.writable)];
                for (filter, _) in wanted.into_iter().filter(|(_, wanted)| *wanted) {
                    let flags = EV_ADD | EV_CLEAR;
                    self.queue.apply(change(watched.ident(), filter, flags, 0, 0, token))?;
                }
            }
        }
        Ok(watched)
    }

    /// Changes what a level-triggered source is watched for.
    pub(in crate::sys) fn modify(
        &self,
        watched: &Watched,
        token: u64,
        interest: Interest,
    ) -> io::Result<()> {
        self.remove(watched);
        self.watch(watched, token, interest)
    }

    /// Its end is told in any case.
    fn watch(&self, watched: &Watched, token: u64, interest: Interest) -> io::Result<()> {
        let (notes, least) = if interest.readable { (0, 0) } else { (NOTE_LOWAT, NEVER) };
        self.queue.apply(change(watched.ident(), EVFILT_READ, EV_ADD, notes, least, token))?;
        if interest.writable {
            self.queue.apply(change(watched.ident(), EVFILT_WRITE, EV_ADD, 0, 0, token))?;
        }
        Ok(())
    }

    pub(in crate::sys) fn remove(&self, watched: &Watched) {
        for filter in [EVFILT_READ, EVFILT_WRITE] {
            // An error says that it was not watched for this.
            let _ = self.queue.apply(change(watched.ident(), filter, EV_DELETE, 0, 0, 0));
        }
    }

    /// A source's handler has returned: the kernel looks again by itself.
    #[allow(clippy::unused_self, reason = "the same on every system")]
    pub(in crate::sys) fn handled(&self, _watched: &Watched) {}

    /// Ends the wait in progress, or else the next one.
    pub(in crate::sys) fn wake(&self) {
        self.wake.signal();
    }

    /// Waits, and says what is ready.
    pub(in crate::sys) fn wait(&self, batch: &mut Batch, mut each: impl FnMut(u64, Interest)) {
        let Batch(ready) = batch;
        self.queue.wait(ready);
        for event in ready.iter() {
            match event.udata as u64 {
                WAKE => {
                    self.wake.take();
                }
                token => each(token, interest(event)),
            }
        }
    }
}

impl Watched {
    fn ident(&self) -> usize {
        self.0.as_raw_fd() as usize
    }
}

fn interest(event: &libc::kevent) -> Interest {
    if event.flags & EV_EOF != 0 {
        return Interest::BOTH;
    }
    Interest { readable: event.filter == EVFILT_READ, writable: event.filter == EVFILT_WRITE }
}

//! A clock that wakes a loop once. macOS has no timerfd; a queue of its own that is told of one timer does the same.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use libc::{EV_ADD, EV_DELETE, EV_ONESHOT, EVFILT_TIMER, NOTE_NSECONDS};

use super::queue::{Kqueue, change};

/// A timer on a clock that only goes forward; ready to read once its time has come.
#[derive(Debug)]
pub struct Timer {
    queue: Kqueue,
}

impl Timer {
    /// A timer that is not set.
    pub fn new() -> io::Result<Self> {
        Ok(Self { queue: Kqueue::new()? })
    }

    /// Another handle to the same timer.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { queue: self.queue.try_clone()? })
    }

    /// Sets it to wake once, `after` from now, or not at all.
    pub fn set(&self, after: Option<Duration>) {
        // An error says that it was not set.
        let _ = self.queue.apply(change(0, EVFILT_TIMER, EV_DELETE, 0, 0, 0));
        if let Some(after) = after {
            let nanoseconds = isize::try_from(after.as_nanos()).unwrap_or(isize::MAX);
            let flags = EV_ADD | EV_ONESHOT;
            let _ = self.queue.apply(change(0, EVFILT_TIMER, flags, NOTE_NSECONDS, nanoseconds, 0));
        }
    }

    /// Takes the signal: true if its time has come since the last call.
    pub fn take(&self) -> bool {
        self.queue.take()
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

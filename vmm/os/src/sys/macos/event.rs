//! An event: signalled by any thread, waited for by one loop. macOS has no eventfd; a pipe that never
//! blocks does the same.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags, fcntl_setfd};

/// A pipe that wakes whoever waits for its reading end. Signals that come before anyone looks are merged.
#[derive(Debug)]
pub struct Event {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Event {
    /// A new event, not signalled.
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = rustix::pipe::pipe()?;
        for end in [&reader, &writer] {
            fcntl_setfd(end, FdFlags::CLOEXEC)?;
            rustix::fs::fcntl_setfl(end, OFlags::NONBLOCK)?;
        }
        Ok(Self { reader, writer })
    }

    /// Another handle to the same event.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { reader: self.reader.try_clone()?, writer: self.writer.try_clone()? })
    }

    /// Wakes the waiter. Never blocks: a full pipe, of which nobody takes signals, is emptied, so that this one wakes, too.
    pub fn signal(&self) {
        while let Err(Errno::AGAIN) = rustix::io::write(&self.writer, &[1]) {
            self.take();
        }
    }

    /// Takes the signal: true if there was one since the last call.
    pub fn take(&self) -> bool {
        let mut bytes = [0u8; 64];
        let mut taken = false;
        while let Ok(1..) = rustix::io::read(&self.reader, &mut bytes) {
            taken = true;
        }
        taken
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

//! An event: signalled by any thread or by the hypervisor, waited for by one loop (`eventfd(2)`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// A counter that wakes whoever waits for it. Signals that come before anyone looks are merged.
#[derive(Debug)]
pub struct Event {
    fd: OwnedFd,
}

impl Event {
    /// A new event, not signalled.
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    /// Another handle to the same event.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()? })
    }

    /// Wakes the waiter. Never blocks: a counter at its limit is signalled already.
    pub fn signal(&self) {
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Takes the signal: true if there was one since the last call.
    pub fn take(&self) -> bool {
        let mut counter = [0u8; 8];
        matches!(rustix::io::read(&self.fd, &mut counter), Ok(8))
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

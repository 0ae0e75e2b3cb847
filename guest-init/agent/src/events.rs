//! What happens in the machine, on its way to the host.
//!
//! Any thread may tell; the thread of the control connection sends. The queue is bounded, so that what
//! happens in sessions cannot use up the agent's memory while the host does not listen.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use cabana_protocol::Event;
use rustix::event::{EventfdFlags, eventfd};

/// The most events that wait to be sent.
const MOST: usize = 1024;

/// Events that wait.
#[derive(Debug)]
pub(crate) struct Events {
    queue: Mutex<Queue>,
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Event>,
    lost: u32,
}

impl Events {
    pub(crate) fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { queue: Mutex::default(), wake })
    }

    /// Tells the host.
    pub(crate) fn tell(&self, event: Event) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.waiting.len() == MOST {
            queue.waiting.pop_front();
            queue.lost = queue.lost.saturating_add(1);
        }
        queue.waiting.push_back(event);
        // It can only be full of wake-ups.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Readable when something waits.
    pub(crate) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Takes everything that waits.
    pub(crate) fn take(&self) -> Vec<Event> {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = std::mem::take(&mut queue.lost);
        let mut events: Vec<Event> = queue.waiting.drain(..).collect();
        if lost > 0 {
            events.insert(0, Event::Lost(lost));
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_takes_is_counted() {
        let events = Events::new().unwrap();
        for process in 0..MOST as u64 + 5 {
            let status = cabana_protocol::ExitStatus::Code(0);
            events.tell(Event::ProcessEnded { process, status });
        }
        let taken = events.take();
        assert_eq!((taken.len(), &taken[0]), (MOST + 1, &Event::Lost(5)));
        assert!(matches!(taken[1], Event::ProcessEnded { process: 5, .. }));
        assert!(events.take().is_empty());
    }
}

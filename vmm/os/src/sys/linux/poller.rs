//! What an event loop waits by (`epoll(7)`).

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::epoll;

use super::event::Event;
use crate::sys::event_loop::{Interest, Trigger};

pub use std::os::fd::AsFd as Source;

const WAKE: u64 = 0;
const BATCH: usize = 64;

/// Room for what is ready.
pub(in crate::sys) struct Batch(Vec<epoll::Event>);

impl Default for Batch {
    fn default() -> Self {
        Self(Vec::with_capacity(BATCH))
    }
}

/// A source's own descriptor in the loop.
pub(in crate::sys) struct Watched(OwnedFd);

pub(in crate::sys) struct Poller {
    epoll: OwnedFd,
    wake: Event,
}

impl Poller {
    pub(in crate::sys) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = Event::new()?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        Ok(Self { epoll, wake })
    }

    pub(in crate::sys) fn add(
        &self,
        source: &impl Source,
        token: u64,
        interest: Interest,
        trigger: Trigger,
    ) -> io::Result<Watched> {
        let fd = source.as_fd().try_clone_to_owned()?;
        let mut flags = flags(interest);
        flags.set(epoll::EventFlags::ET, trigger == Trigger::Edge);
        epoll::add(&self.epoll, &fd, epoll::EventData::new_u64(token), flags)?;
        Ok(Watched(fd))
    }

    /// Changes what a level-triggered source is watched for.
    pub(in crate::sys) fn modify(
        &self,
        watched: &Watched,
        token: u64,
        interest: Interest,
    ) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::modify(&self.epoll, &watched.0, data, flags(interest))?)
    }

    pub(in crate::sys) fn remove(&self, watched: &Watched) {
        let _ = epoll::delete(&self.epoll, &watched.0);
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
        ready.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(ready), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => unreachable!("epoll_wait on a valid descriptor: {error}"),
        }
        for event in ready.iter() {
            match event.data.u64() {
                WAKE => {
                    self.wake.take();
                }
                token => each(token, interest(event.flags)),
            }
        }
    }
}

fn flags(interest: Interest) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::empty();
    flags.set(epoll::EventFlags::IN, interest.readable);
    flags.set(epoll::EventFlags::OUT, interest.writable);
    flags
}

fn interest(flags: epoll::EventFlags) -> Interest {
    let broken = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
    Interest {
        readable: broken || flags.contains(epoll::EventFlags::IN),
        writable: broken || flags.contains(epoll::EventFlags::OUT),
    }
}

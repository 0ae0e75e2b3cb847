//! One thread that waits for many descriptors and calls their owners (`epoll(7)`).
//!
//! Devices register their queues' doorbells and their host-side descriptors here. A handler runs on
//! the loop's thread alone, one at a time, and must not block.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};

use rustix::event::epoll;

use super::event::Event;

/// Names a registration until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(u64);

/// What a registration waits for. Hang-up and errors always wake it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Wakes when there is something to read.
    pub readable: bool,
    /// Wakes when there is room to write.
    pub writable: bool,
}

impl Interest {
    /// Only hang-up and errors.
    pub const NONE: Self = Self { readable: false, writable: false };
    /// Something to read.
    pub const READ: Self = Self { readable: true, writable: false };
    /// Room to write.
    pub const WRITE: Self = Self { readable: false, writable: true };
    /// Either.
    pub const BOTH: Self = Self { readable: true, writable: true };
}

/// Called on the loop's thread with what is ready.
type Handler = Box<dyn FnMut(Interest) + Send>;

const WAKE: u64 = 0;
const BATCH: usize = 64;

struct Registration {
    fd: OwnedFd,
    /// Taken out while it runs, so that it may call the loop itself.
    handler: Option<Handler>,
}

#[derive(Default)]
struct Registrations {
    by_token: HashMap<u64, Registration>,
    /// The token whose handler runs right now.
    running: Option<u64>,
    /// How many threads wait for it to return.
    waiting: usize,
}

struct Shared {
    epoll: OwnedFd,
    registrations: Mutex<Registrations>,
    /// A handler has returned.
    returned: Condvar,
    next_token: AtomicU64,
    stop: AtomicBool,
    wake: Event,
    thread: Mutex<Option<ThreadId>>,
}

/// The loop and its thread; dropping it stops the thread after the handler that runs.
pub struct EventLoop {
    handle: LoopHandle,
    thread: Option<JoinHandle<()>>,
}

/// A way to register with a loop, cheap to clone.
#[derive(Clone)]
pub struct LoopHandle {
    shared: Arc<Shared>,
}

impl EventLoop {
    /// Starts the thread, named `name` for those who look at it from outside.
    pub fn spawn(name: &str) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = Event::new()?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        let shared = Arc::new(Shared {
            epoll,
            registrations: Mutex::default(),
            returned: Condvar::new(),
            next_token: AtomicU64::new(WAKE + 1),
            stop: AtomicBool::new(false),
            wake,
            thread: Mutex::new(None),
        });
        let on_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name(name.to_owned()).stack_size(256 << 10).spawn(
            move || {
                *on_thread.thread.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(thread::current().id());
                on_thread.run();
            },
        )?;
        Ok(Self { handle: LoopHandle { shared }, thread: Some(thread) })
    }

    /// A handle for registrations.
    pub fn handle(&self) -> LoopHandle {
        self.handle.clone()
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.handle.shared.stop.store(true, Ordering::Release);
        self.handle.shared.wake.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl LoopHandle {
    /// Calls `handler` on the loop's thread whenever `source` is ready, level-triggered. The
    /// descriptor is duplicated: closing the caller's does not disturb the loop.
    pub fn add(
        &self,
        source: impl AsFd,
        interest: Interest,
        handler: impl FnMut(Interest) + Send + 'static,
    ) -> io::Result<Token> {
        self.register(source, flags(interest), Box::new(handler))
    }

    /// Like [`LoopHandle::add`] for both directions, edge-triggered: the handler is called when more has
    /// become possible, and not again before that. Who stops early goes on by itself.
    pub fn add_edge(
        &self,
        source: impl AsFd,
        handler: impl FnMut(Interest) + Send + 'static,
    ) -> io::Result<Token> {
        self.register(source, flags(Interest::BOTH) | epoll::EventFlags::ET, Box::new(handler))
    }

    fn register(
        &self,
        source: impl AsFd,
        flags: epoll::EventFlags,
        handler: Handler,
    ) -> io::Result<Token> {
        let token = self.shared.next_token.fetch_add(1, Ordering::Relaxed);
        let fd = source.as_fd().try_clone_to_owned()?;
        let mut registrations = self.shared.lock();
        epoll::add(&self.shared.epoll, &fd, epoll::EventData::new_u64(token), flags)?;
        registrations.by_token.insert(token, Registration { fd, handler: Some(handler) });
        Ok(Token(token))
    }

    /// Calls `handler` for the signals of an [`Event`] that this loop alone waits for, and once at first
    /// if it was signalled before. Signals are edges: nothing has to be taken.
    pub fn add_event(
        &self,
        event: &Event,
        mut handler: impl FnMut() + Send + 'static,
    ) -> io::Result<Token> {
        let edges = flags(Interest::READ) | epoll::EventFlags::ET;
        self.register(event, edges, Box::new(move |_| handler()))
    }

    /// Changes what a registration waits for.
    pub fn modify(&self, token: Token, interest: Interest) -> io::Result<()> {
        let registrations = self.shared.lock();
        let Some(registration) = registrations.by_token.get(&token.0) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let data = epoll::EventData::new_u64(token.0);
        Ok(epoll::modify(&self.shared.epoll, &registration.fd, data, flags(interest))?)
    }

    /// Ends a registration. When this returns its handler is not running and never will again,
    /// unless the caller is that handler itself.
    pub fn remove(&self, token: Token) {
        // What the handler owns may end registrations of its own: it goes when the lock is free.
        let removed;
        let mut registrations = self.shared.lock();
        removed = registrations.by_token.remove(&token.0);
        if let Some(registration) = &removed {
            let _ = epoll::delete(&self.shared.epoll, &registration.fd);
        }
        let loop_thread = *self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if loop_thread == Some(thread::current().id()) {
            return;
        }
        registrations.waiting += 1;
        while registrations.running == Some(token.0) {
            registrations =
                self.shared.returned.wait(registrations).unwrap_or_else(PoisonError::into_inner);
        }
        registrations.waiting -= 1;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Registrations> {
        self.registrations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut ready = Vec::with_capacity(BATCH);
        while !self.stop.load(Ordering::Acquire) {
            ready.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => unreachable!("epoll_wait on a valid descriptor: {error}"),
            }
            for event in &ready {
                let token = event.data.u64();
                if token == WAKE {
                    self.wake.take();
                } else {
                    self.call(token, interest(event.flags));
                }
            }
        }
    }

    fn call(&self, token: u64, ready: Interest) {
        let mut registrations = self.lock();
        let Some(mut handler) =
            registrations.by_token.get_mut(&token).and_then(|found| found.handler.take())
        else {
            return;
        };
        registrations.running = Some(token);
        drop(registrations);
        handler(ready);
        let mut registrations = self.lock();
        registrations.running = None;
        // A handler that removed itself is dropped once the lock is released.
        let removed = match registrations.by_token.get_mut(&token) {
            Some(registration) => {
                registration.handler = Some(handler);
                None
            }
            None => Some(handler),
        };
        // Each time would be a system call more.
        if registrations.waiting > 0 {
            self.returned.notify_all();
        }
        drop(registrations);
        drop(removed);
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

impl std::fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLoop").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for LoopHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoopHandle").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn an_event_calls_its_handler_until_it_is_removed() {
        let events = EventLoop::spawn("test").unwrap();
        let event = Event::new().unwrap();
        let (sender, receiver) = mpsc::channel();
        let token = events.handle().add_event(&event, move || sender.send(()).unwrap()).unwrap();
        event.signal();
        receiver.recv_timeout(SOON).unwrap();
        events.handle().remove(token);
        event.signal();
        assert!(receiver.recv().is_err(), "the handler was dropped with its registration");
    }

    #[test]
    fn a_handler_may_own_what_ends_another_registration() {
        struct Owner(LoopHandle, Token);
        impl Drop for Owner {
            fn drop(&mut self) {
                self.0.remove(self.1);
            }
        }
        let events = EventLoop::spawn("test").unwrap();
        let (event, other) = (Event::new().unwrap(), Event::new().unwrap());
        let owned = events.handle().add_event(&other, || {}).unwrap();
        let owner = Owner(events.handle(), owned);
        let token = events.handle().add_event(&event, move || assert!(owner.1 != Token(0)));
        let token = token.unwrap();
        events.handle().remove(token);
    }

    #[test]
    fn remove_waits_for_the_handler_that_runs() {
        let events = EventLoop::spawn("test").unwrap();
        let event = Event::new().unwrap();
        let (entered, has_entered) = mpsc::channel();
        let done = Arc::new(AtomicBool::new(false));
        let set_done = Arc::clone(&done);
        let token = events
            .handle()
            .add_event(&event, move || {
                entered.send(()).unwrap();
                thread::sleep(Duration::from_millis(50));
                set_done.store(true, Ordering::SeqCst);
            })
            .unwrap();
        event.signal();
        has_entered.recv_timeout(SOON).unwrap();
        events.handle().remove(token);
        assert!(done.load(Ordering::SeqCst));
    }

    #[test]
    fn a_handler_may_remove_itself() {
        let events = EventLoop::spawn("test").unwrap();
        let handle = events.handle();
        let event = Event::new().unwrap();
        let token = Arc::new(Mutex::new(None));
        let own = Arc::clone(&token);
        let (sender, receiver) = mpsc::channel();
        *token.lock().unwrap() = Some(
            events
                .handle()
                .add_event(&event, move || {
                    handle.remove(own.lock().unwrap().unwrap());
                    sender.send(()).unwrap();
                })
                .unwrap(),
        );
        event.signal();
        receiver.recv_timeout(SOON).unwrap();
        assert!(receiver.recv().is_err());
    }

    #[test]
    fn an_edge_calls_once_for_what_stays_ready() {
        let events = EventLoop::spawn("test").unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        let (sender, receiver) = mpsc::channel();
        let _token =
            events.handle().add_edge(&reader, move |ready| sender.send(ready).unwrap()).unwrap();
        for _ in 0..2 {
            io::Write::write_all(&mut writer, b"x").unwrap();
            assert!(receiver.recv_timeout(SOON).unwrap().readable);
            assert!(receiver.recv_timeout(Duration::from_millis(20)).is_err());
        }
    }

    #[test]
    fn every_signal_is_followed_by_a_call() {
        let events = EventLoop::spawn("test").unwrap();
        let event = Event::new().unwrap();
        event.signal();
        let (sender, receiver) = mpsc::channel();
        let _token = events.handle().add_event(&event, move || sender.send(()).unwrap()).unwrap();
        for _ in 0..1000 {
            receiver.recv_timeout(SOON).unwrap();
            event.signal();
        }
        receiver.recv_timeout(SOON).unwrap();
        assert!(receiver.recv_timeout(Duration::from_millis(20)).is_err(), "none without a signal");
    }

    #[test]
    fn a_hung_up_pipe_wakes_its_reader() {
        let events = EventLoop::spawn("test").unwrap();
        let (reader, writer) = io::pipe().unwrap();
        let (sender, receiver) = mpsc::channel();
        let once = Mutex::new(Some(sender));
        events
            .handle()
            .add(&reader, Interest::NONE, move |ready| {
                if let Some(sender) = once.lock().unwrap().take() {
                    sender.send(ready).unwrap();
                }
            })
            .unwrap();
        drop(writer);
        assert_eq!(receiver.recv_timeout(SOON).unwrap(), Interest::BOTH);
    }
}

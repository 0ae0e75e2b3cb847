//! One thread that waits for many sources (events, timers, sockets) and calls their owners. How it waits is each
//! system's own (`poller`).
//!
//! Devices register their queues' doorbells and their host-side sources here. A handler runs on
//! the loop's thread alone, one at a time, and must not block.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};

use super::poller::{Batch, Poller, Source, Watched};
use super::{Event, Timer};

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

/// When a handler is called for what stays ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trigger {
    /// Again and again.
    Level,
    /// Once, until more has become possible.
    Edge,
}

struct Registration {
    watched: Watched,
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
    poller: Poller,
    registrations: Mutex<Registrations>,
    /// A handler has returned.
    returned: Condvar,
    next_token: AtomicU64,
    stop: AtomicBool,
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
        let shared = Arc::new(Shared {
            poller: Poller::new()?,
            registrations: Mutex::default(),
            returned: Condvar::new(),
            // Zero is the poller's own.
            next_token: AtomicU64::new(1),
            stop: AtomicBool::new(false),
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
        self.handle.shared.poller.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl LoopHandle {
    /// Calls `handler` on the loop's thread whenever `source` is ready, level-triggered. The
    /// source is duplicated: closing the caller's does not disturb the loop.
    pub fn add(
        &self,
        source: &impl Source,
        interest: Interest,
        handler: impl FnMut(Interest) + Send + 'static,
    ) -> io::Result<Token> {
        self.register(source, interest, Trigger::Level, Box::new(handler))
    }

    /// Like [`LoopHandle::add`] for both directions, edge-triggered: the handler is called when more has
    /// become possible, and not again before that. Who stops early goes on by itself.
    pub fn add_edge(
        &self,
        source: &impl Source,
        handler: impl FnMut(Interest) + Send + 'static,
    ) -> io::Result<Token> {
        self.register(source, Interest::BOTH, Trigger::Edge, Box::new(handler))
    }

    /// Calls `handler` for the signals of an [`Event`] that this loop alone waits for, and once at first
    /// if it was signalled before. Signals are edges: nothing has to be taken.
    pub fn add_event(
        &self,
        event: &Event,
        mut handler: impl FnMut() + Send + 'static,
    ) -> io::Result<Token> {
        self.register(event, Interest::READ, Trigger::Edge, Box::new(move |_| handler()))
    }

    /// Calls `handler` whenever the time of a [`Timer`] has come that this loop alone waits for. Who sets it anew at
    /// that moment may be called for the old time, too.
    pub fn add_timer(
        &self,
        timer: &Timer,
        mut handler: impl FnMut() + Send + 'static,
    ) -> io::Result<Token> {
        let own = timer.try_clone()?;
        let handler = move |_| {
            own.take();
            handler();
        };
        self.register(timer, Interest::READ, Trigger::Edge, Box::new(handler))
    }

    fn register(
        &self,
        source: &impl Source,
        interest: Interest,
        trigger: Trigger,
        handler: Handler,
    ) -> io::Result<Token> {
        let token = self.shared.next_token.fetch_add(1, Ordering::Relaxed);
        let mut registrations = self.shared.lock();
        let watched = self.shared.poller.add(source, token, interest, trigger)?;
        registrations.by_token.insert(token, Registration { watched, handler: Some(handler) });
        Ok(Token(token))
    }

    /// Changes what a registration waits for.
    pub fn modify(&self, token: Token, interest: Interest) -> io::Result<()> {
        let registrations = self.shared.lock();
        let Some(registration) = registrations.by_token.get(&token.0) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        self.shared.poller.modify(&registration.watched, token.0, interest)
    }

    /// Ends a registration. When this returns its handler is not running and never will again,
    /// unless the caller is that handler itself.
    pub fn remove(&self, token: Token) {
        // What the handler owns may end registrations of its own: it goes when the lock is free.
        let removed;
        let mut registrations = self.shared.lock();
        removed = registrations.by_token.remove(&token.0);
        if let Some(registration) = &removed {
            self.shared.poller.remove(&registration.watched);
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
        let mut batch = Batch::default();
        while !self.stop.load(Ordering::Acquire) {
            self.poller.wait(&mut batch, |token, ready| self.call(token, ready));
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
                self.poller.handled(&registration.watched);
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
    use crate::Packets;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
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
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (reader, _) = listener.accept().unwrap();
        let (sender, receiver) = mpsc::channel();
        let _token =
            events.handle().add_edge(&reader, move |ready| sender.send(ready).unwrap()).unwrap();
        assert_eq!(receiver.recv_timeout(SOON).unwrap(), Interest::WRITE);
        for _ in 0..2 {
            io::Write::write_all(&mut writer, b"x").unwrap();
            // Windows may say twice that it can be written to from the first on.
            while !receiver.recv_timeout(SOON).unwrap().readable {}
            let again = receiver.recv_timeout(Duration::from_millis(20));
            assert!(!again.is_ok_and(|ready| ready.readable), "once");
            // And it tells of more only to who has looked.
            io::Read::read_exact(&mut &reader, &mut [0]).unwrap();
        }
    }

    #[test]
    fn what_stays_ready_calls_until_it_is_no_longer_waited_for() {
        let events = EventLoop::spawn("test").unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (sender, receiver) = mpsc::channel();
        let handler = move |ready| sender.send(ready).unwrap();
        let token = events.handle().add(&listener, Interest::READ, handler).unwrap();
        assert!(receiver.recv_timeout(Duration::from_millis(20)).is_err());
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        for _ in 0..3 {
            assert_eq!(receiver.recv_timeout(SOON).unwrap(), Interest::READ);
        }
        events.handle().modify(token, Interest::NONE).unwrap();
        while receiver.recv_timeout(Duration::from_millis(20)).is_ok() {}
        events.handle().modify(token, Interest::READ).unwrap();
        receiver.recv_timeout(SOON).unwrap();
        let _connection = listener.accept().unwrap();
        events.handle().remove(token);
        while receiver.recv().is_ok() {}
    }

    #[test]
    fn a_handler_that_waits_no_longer_is_not_called_for_what_came_meanwhile() {
        let events = EventLoop::spawn("test").unwrap();
        let (here, there) = Packets::pair().unwrap();
        let (sender, receiver) = mpsc::channel();
        let (goes_on, meanwhile) = mpsc::channel();
        let (handle, token) = (events.handle(), Arc::new(Mutex::new(None)));
        let own = Arc::clone(&token);
        let handler = move |_| {
            sender.send(()).unwrap();
            meanwhile.recv_timeout(SOON).unwrap();
            handle.modify(own.lock().unwrap().unwrap(), Interest::NONE).unwrap();
        };
        *token.lock().unwrap() = Some(events.handle().add(&here, Interest::READ, handler).unwrap());
        for _ in 0..10 {
            there.send(b"x", b"").unwrap();
            receiver.recv_timeout(SOON).unwrap();
            assert_eq!(here.try_receive(&mut [0; 9]).unwrap(), Some(1));
            assert_eq!(here.try_receive(&mut [0; 9]).unwrap(), None);
            there.send(b"y", b"").unwrap();
            thread::sleep(Duration::from_millis(5));
            goes_on.send(()).unwrap();
            assert!(
                receiver.recv_timeout(Duration::from_millis(20)).is_err(),
                "it waits for nothing"
            );
            assert_eq!(here.try_receive(&mut [0; 9]).unwrap(), Some(1));
            events.handle().modify(token.lock().unwrap().unwrap(), Interest::READ).unwrap();
        }
    }

    #[test]
    fn a_timer_calls_when_its_time_has_come() {
        let events = EventLoop::spawn("test").unwrap();
        let timer = Timer::new().unwrap();
        let (sender, receiver) = mpsc::channel();
        let _token = events.handle().add_timer(&timer, move || sender.send(()).unwrap()).unwrap();
        for _ in 0..3 {
            timer.set(Some(Duration::from_millis(1)));
            receiver.recv_timeout(SOON).unwrap();
            assert!(receiver.recv_timeout(Duration::from_millis(20)).is_err(), "once");
        }
    }

    #[test]
    fn packets_call_for_what_is_there_and_for_room() {
        let events = EventLoop::spawn("test").unwrap();
        let (here, there) = Packets::pair().unwrap();
        let (sender, receiver) = mpsc::channel();
        let handler = move |ready| sender.send(ready).unwrap();
        let token = events.handle().add(&here, Interest::READ, handler).unwrap();
        assert!(receiver.recv_timeout(Duration::from_millis(20)).is_err());
        there.send(b"x", b"y").unwrap();
        assert_eq!(receiver.recv_timeout(SOON).unwrap(), Interest::READ);
        events.handle().modify(token, Interest::NONE).unwrap();
        assert_eq!(here.try_receive(&mut [0; 9]).unwrap(), Some(2));
        let mut room = vec![0; 60_000];
        while here.try_send(&room, &[]).unwrap() {}
        while receiver.recv_timeout(Duration::from_millis(20)).is_ok() {}
        events.handle().modify(token, Interest::WRITE).unwrap();
        assert!(receiver.recv_timeout(Duration::from_millis(20)).is_err(), "the way is full");
        while there.try_receive(&mut room).unwrap().is_some() {}
        assert_eq!(receiver.recv_timeout(SOON).unwrap(), Interest::WRITE);
    }

    #[test]
    fn more_sources_than_a_system_waits_for_at_once_are_all_heard() {
        let events = EventLoop::spawn("test").unwrap();
        let (sender, receiver) = mpsc::channel();
        let all: Vec<_> = (0..200).map(|_| Event::new().unwrap()).collect();
        for (index, event) in all.iter().enumerate() {
            let sender = sender.clone();
            events.handle().add_event(event, move || sender.send(index).unwrap()).unwrap();
        }
        for (index, event) in all.iter().enumerate().rev() {
            event.signal();
            assert_eq!(receiver.recv_timeout(SOON).unwrap(), index);
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
    fn a_signal_is_heard_while_others_come_and_go() {
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let events = EventLoop::spawn("test").unwrap();
                    for _ in 0..1000 {
                        let event = Event::new().unwrap();
                        let (sender, receiver) = mpsc::channel();
                        let handler = move || sender.send(()).unwrap();
                        let token = events.handle().add_event(&event, handler).unwrap();
                        event.signal();
                        receiver.recv_timeout(SOON).unwrap();
                        events.handle().remove(token);
                    }
                });
            }
        });
    }

    #[test]
    fn an_end_wakes_who_waits_for_nothing_else() {
        let events = EventLoop::spawn("test").unwrap();
        let (reader, writer) = Packets::pair().unwrap();
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

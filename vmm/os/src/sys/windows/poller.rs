//! What an event loop waits by: waits of the system's thread pool (`RegisterWaitForSingleObject`), which take any
//! number of objects, fill a queue that the loop empties. A socket signals an object of its own (`WSAEventSelect`).

use std::collections::VecDeque;
use std::ffi::c_void;
use std::io;
use std::os::windows::io::{AsRawHandle, AsRawSocket, AsSocket, OwnedHandle, OwnedSocket};
use std::ptr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use windows_sys::Win32::Foundation::{HANDLE, INVALID_HANDLE_VALUE};
use windows_sys::Win32::Networking::WinSock::{
    FD_ACCEPT, FD_CLOSE, FD_CONNECT, FD_READ, FD_WRITE, POLLERR, POLLHUP, POLLNVAL, POLLRDNORM,
    POLLWRNORM, SOCKET, WSAEVENT, WSAEnumNetworkEvents, WSAEventSelect, WSANETWORKEVENTS,
    WSAPOLLFD, WSAPoll,
};
use windows_sys::Win32::System::Threading::{
    INFINITE, RegisterWaitForSingleObject, ResetEvent, UnregisterWaitEx, WT_EXECUTEINWAITTHREAD,
};

use super::event::Event;
use super::packets::Pipe;
use crate::sys::event_loop::{Interest, Trigger};

/// What a loop can wait for.
pub trait Source {
    /// What has to be watched for it.
    fn watch(&self) -> io::Result<Watch>;
}

/// Objects that are signalled when something may have changed, and what to ask then.
pub struct Watch {
    objects: Vec<OwnedHandle>,
    state: State,
}

enum State {
    /// Nothing: the signal is all there is.
    Event,
    /// The same, of an object that resets itself.
    Timer,
    Socket(Selected),
    Pipe(Arc<Pipe>),
}

impl Watch {
    pub(super) fn event(object: OwnedHandle) -> Self {
        Self { objects: vec![object], state: State::Event }
    }

    pub(super) fn timer(object: OwnedHandle) -> Self {
        Self { objects: vec![object], state: State::Timer }
    }

    /// A pipe with the objects of its reads and writes.
    pub(super) fn pipe(pipe: Arc<Pipe>, objects: Vec<OwnedHandle>) -> Self {
        Self { objects, state: State::Pipe(pipe) }
    }
}

impl<T: AsSocket> Source for T {
    fn watch(&self) -> io::Result<Watch> {
        let event = Event::new()?;
        let objects = vec![event.object()?];
        let socket = self.as_socket().try_clone_to_owned()?;
        Ok(Watch { objects, state: State::Socket(Selected::new(socket, event)?) })
    }
}

/// What is possible with a source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Possible {
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// It has ended or failed, which is told to whoever waits for nothing else.
    pub(super) ended: bool,
}

impl Possible {
    const NOTHING: Self = Self { readable: false, writable: false, ended: false };

    /// As much of it as is waited for.
    fn of(self, wanted: Interest) -> Interest {
        Interest {
            readable: self.ended || self.readable && wanted.readable,
            writable: self.ended || self.writable && wanted.writable,
        }
    }
}

/// A socket and the object that it signals.
struct Selected {
    socket: OwnedSocket,
    event: Event,
}

impl Selected {
    fn new(socket: OwnedSocket, event: Event) -> io::Result<Self> {
        const ALL: u32 = FD_READ | FD_WRITE | FD_ACCEPT | FD_CONNECT | FD_CLOSE;
        let selected = Self { socket, event };
        // SAFETY: socket and object are open, and stay so together.
        match unsafe { WSAEventSelect(selected.raw(), selected.object(), ALL as i32) } {
            0 => Ok(selected),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn raw(&self) -> SOCKET {
        self.socket.as_raw_socket() as SOCKET
    }

    fn object(&self) -> WSAEVENT {
        self.event.raw() as WSAEVENT
    }

    /// What has become possible since the last call. The socket signals nothing new before it.
    fn news(&self) -> Interest {
        let mut events = WSANETWORKEVENTS::default();
        // SAFETY: the call fills the structure; socket and object are open.
        if unsafe { WSAEnumNetworkEvents(self.raw(), self.object(), &raw mut events) } != 0 {
            return Interest::BOTH;
        }
        let any = |bits: u32| events.lNetworkEvents as u32 & bits != 0;
        Interest {
            readable: any(FD_READ | FD_ACCEPT | FD_CLOSE),
            writable: any(FD_WRITE | FD_CONNECT | FD_CLOSE),
        }
    }

    fn possible(&self) -> Possible {
        let events = POLLRDNORM | POLLWRNORM;
        let mut poll = WSAPOLLFD { fd: self.raw(), events, revents: 0 };
        // SAFETY: one structure, which the call reads and fills; it does not wait.
        if unsafe { WSAPoll(&raw mut poll, 1, 0) } <= 0 {
            return Possible::NOTHING;
        }
        Possible {
            readable: poll.revents & POLLRDNORM != 0,
            writable: poll.revents & POLLWRNORM != 0,
            ended: poll.revents & (POLLERR | POLLHUP | POLLNVAL) != 0,
        }
    }
}

impl Drop for Selected {
    fn drop(&mut self) {
        // SAFETY: the socket is open; it signals nothing from here on.
        unsafe { WSAEventSelect(self.raw(), 0, 0) };
    }
}

/// What is ready, in the order in which it came; each token at most once.
pub(in crate::sys) type Batch = VecDeque<(u64, Interest)>;

#[derive(Default)]
struct Queue {
    ready: Mutex<Ready>,
    some: Condvar,
}

#[derive(Default)]
struct Ready {
    tokens: Batch,
    woken: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, token: u64, news: Interest) {
        if news == Interest::NONE {
            return;
        }
        let mut ready = self.lock();
        match ready.tokens.iter_mut().find(|(waiting, _)| *waiting == token) {
            Some((_, before)) => {
                before.readable |= news.readable;
                before.writable |= news.writable;
            }
            None => ready.tokens.push_back((token, news)),
        }
        self.some.notify_one();
    }
}

/// A source in the loop.
pub(in crate::sys) struct Watched {
    /// They end before what they look at.
    _waits: Vec<Wait>,
    watching: Arc<Watching>,
}

/// What the waits look at.
struct Watching {
    queue: Arc<Queue>,
    token: u64,
    trigger: Trigger,
    wanted: Mutex<Interest>,
    state: State,
}

impl Watching {
    /// One of the objects was signalled.
    fn signalled(&self) {
        let news = match &self.state {
            State::Event | State::Timer => Interest::READ,
            State::Socket(socket) => socket.news(),
            State::Pipe(_) => Interest::NONE,
        };
        match self.trigger {
            Trigger::Edge => self.queue.push(self.token, news),
            Trigger::Level => self.look(),
        }
    }

    /// Queues what is possible now.
    fn look(&self) {
        let possible = match &self.state {
            State::Event | State::Timer => Possible::NOTHING,
            State::Socket(socket) => socket.possible(),
            State::Pipe(pipe) => pipe.possible(),
        };
        let wanted = self.wanted();
        self.queue.push(self.token, possible.of(*wanted));
    }

    /// Held while what is wanted is queued, so that nothing is queued any more once it is not wanted.
    fn wanted(&self) -> MutexGuard<'_, Interest> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wait of the thread pool, ended on drop.
struct Wait {
    handle: HANDLE,
    /// What its calls look at.
    _awaited: Arc<Awaited>,
}

/// An object, and what to do when it is signalled.
struct Awaited {
    object: OwnedHandle,
    watching: Arc<Watching>,
}

// SAFETY: a wait is named by a number that any thread may use.
unsafe impl Send for Wait {}

impl Wait {
    fn new(object: OwnedHandle, watching: Arc<Watching>) -> io::Result<Self> {
        let awaited = Arc::new(Awaited { object, watching });
        let mut wait = ptr::null_mut();
        // SAFETY: the object is open and the context is there for as long as the wait is: both go with this value,
        // whose drop waits for the last call.
        let registered = unsafe {
            RegisterWaitForSingleObject(
                &raw mut wait,
                awaited.object.as_raw_handle(),
                Some(signalled),
                Arc::as_ptr(&awaited).cast(),
                INFINITE,
                WT_EXECUTEINWAITTHREAD,
            )
        };
        match registered {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(Self { handle: wait, _awaited: awaited }),
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        // SAFETY: the wait was registered and is ended once; with this argument the call returns after the last
        // callback.
        unsafe { UnregisterWaitEx(self.handle, INVALID_HANDLE_VALUE) };
    }
}

unsafe extern "system" fn signalled(context: *mut c_void, _timed_out: bool) {
    // SAFETY: it is the `Awaited` that the wait was made with, which outlives it.
    let Awaited { object, watching } = unsafe { &*context.cast::<Awaited>() };
    // Only here, and not by the wait itself: under Wine the thread that waits may come late to a wait that has ended, find
    // another event under the number of its handle and take its signal away. Before the look, so that what comes after it
    // is heard.
    if !matches!(watching.state, State::Timer) {
        // SAFETY: the handle is an event's and open.
        unsafe { ResetEvent(object.as_raw_handle()) };
    }
    watching.signalled();
}

pub(in crate::sys) struct Poller {
    queue: Arc<Queue>,
}

impl Poller {
    #[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
    pub(in crate::sys) fn new() -> io::Result<Self> {
        Ok(Self { queue: Arc::default() })
    }

    pub(in crate::sys) fn add(
        &self,
        source: &impl Source,
        token: u64,
        interest: Interest,
        trigger: Trigger,
    ) -> io::Result<Watched> {
        let Watch { objects, state } = source.watch()?;
        // Nobody can ask whether a signal is still there, or what is new with a pipe.
        let other = match state {
            State::Event | State::Timer => trigger == Trigger::Level,
            State::Pipe(_) => trigger == Trigger::Edge,
            State::Socket(_) => false,
        };
        if other {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let watching = Arc::new(Watching {
            queue: Arc::clone(&self.queue),
            token,
            trigger,
            wanted: Mutex::new(interest),
            state,
        });
        let wait = |object| Wait::new(object, Arc::clone(&watching));
        let waits = objects.into_iter().map(wait).collect::<io::Result<_>>()?;
        watching.look();
        Ok(Watched { _waits: waits, watching })
    }

    /// Changes what a level-triggered source is watched for.
    #[allow(clippy::unnecessary_wraps, clippy::unused_self, reason = "the same on every system")]
    pub(in crate::sys) fn modify(
        &self,
        watched: &Watched,
        _token: u64,
        interest: Interest,
    ) -> io::Result<()> {
        let Watching { queue, token, .. } = &*watched.watching;
        let mut wanted = watched.watching.wanted();
        *wanted = interest;
        queue.lock().tokens.retain(|(waiting, _)| waiting != token);
        drop(wanted);
        watched.watching.look();
        Ok(())
    }

    /// The waits end when the value goes.
    #[allow(clippy::unused_self, reason = "the same on every system")]
    pub(in crate::sys) fn remove(&self, _watched: &Watched) {}

    /// A source's handler has returned: what it left is still ready.
    #[allow(clippy::unused_self, reason = "the same on every system")]
    pub(in crate::sys) fn handled(&self, watched: &Watched) {
        if watched.watching.trigger == Trigger::Level {
            watched.watching.look();
        }
    }

    /// Ends the wait in progress, or else the next one.
    pub(in crate::sys) fn wake(&self) {
        self.queue.lock().woken = true;
        self.queue.some.notify_one();
    }

    /// Waits, and says what is ready.
    pub(in crate::sys) fn wait(&self, batch: &mut Batch, mut each: impl FnMut(u64, Interest)) {
        let mut ready = self.queue.lock();
        while ready.tokens.is_empty() && !ready.woken {
            ready = self.queue.some.wait(ready).unwrap_or_else(PoisonError::into_inner);
        }
        ready.woken = false;
        std::mem::swap(batch, &mut ready.tokens);
        drop(ready);
        for (token, ready) in batch.drain(..) {
            each(token, ready);
        }
    }
}

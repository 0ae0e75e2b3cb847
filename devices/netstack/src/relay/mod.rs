//! The other half: the host's sockets. One [`Relay`] serves a machine on the thread of one event loop; it
//! moves bytes between the [`Stack`] and sockets and does what the [`Gate`] says.
//!
//! Back-pressure goes from end to end: the guest's bytes are read only as the host's socket takes them, which
//! closes the window that the guest sees; the host's are read only as there is room in the window that the
//! guest offers. Nothing else is buffered.

mod flows;
mod inward;
mod names;
mod socket;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use cabana_os::{Event as Wake, Interest, LoopHandle, Timer, Token};

use self::names::Names;
use self::socket::{Echo, Stream};
use crate::capture::Capture;
use crate::config::Limits;
use crate::gate::{Flow, FlowId, Gate, Order, Waker};
use crate::stack::{Event, Outgoing, Stack, StackCounters};

/// Datagrams or connections taken from one socket before the others have their turn.
const ROUND: usize = 64;
/// The first port that connections into the guest come from.
const FIRST_EPHEMERAL: u16 = 49_152;
/// The largest datagram that a socket gives.
const MAX_DATAGRAM: usize = 65_535;

/// A port of the host's that leads to one of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Where the host listens.
    pub host: SocketAddr,
    /// Where it leads.
    pub guest: SocketAddr,
}

/// What a machine's network is to be.
pub struct NetworkConfig {
    /// The largest IP packet between guest and stack.
    pub mtu: u16,
    /// What the guest can make the host hold.
    pub limits: Limits,
    /// Who decides what leaves.
    pub gate: Box<dyn Gate>,
    /// Ports of the host's that lead into the guest.
    pub publish: Vec<Publish>,
    /// Where frames are noted.
    pub capture: Option<Capture>,
}

/// Why a network cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A port that is taken, or an address that the host has not.
    #[error("cannot listen on {address}: {source}")]
    Publish {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The host refused a timer or an event.
    #[error("cannot prepare the network: {0}")]
    Host(#[from] io::Error),
}

/// Figures of a machine's network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkCounters {
    /// What the stack has seen and holds.
    pub stack: StackCounters,
    /// Flows that the gate refused.
    pub denied: u64,
    /// Bytes of connections and datagrams that left the guest.
    pub bytes_sent: u64,
    /// Bytes that came to the guest.
    pub bytes_received: u64,
}

/// A machine's network, cheap to clone; it ends with the last clone and the device.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

struct Shared {
    relay: Mutex<Relay>,
    /// The relay has something to do that no socket tells it.
    wake: Wake,
    timer: Timer,
}

/// The state behind a [`Network`].
struct Relay {
    stack: Stack,
    gate: Box<dyn Gate>,
    records: HashMap<FlowId, Record>,
    listeners: Vec<Listener>,
    events: LoopHandle,
    tokens: Vec<Token>,
    this: Weak<Shared>,
    began: Instant,
    /// When the timer wakes.
    alarm: Option<Duration>,
    /// Flows that stopped in the middle so that others have their turn.
    again: Vec<FlowId>,
    /// Tells the device that there are frames.
    notify: Option<Waker>,
    /// The driver begins anew.
    restart: Option<bool>,
    capture: Option<Capture>,
    counters: NetworkCounters,
    next_port: u16,
    /// Room for the largest datagram.
    room: Box<[u8]>,
}

struct Listener {
    socket: TcpListener,
    guest: SocketAddr,
    token: Option<Token>,
    /// It rests until then.
    resting: Option<Duration>,
}

/// A flow and its other side.
struct Record {
    flow: Flow,
    outside: Outside,
    /// The gate knows of it.
    gated: bool,
    sent: u64,
    received: u64,
}

enum Outside {
    /// The gate has not said yet.
    Held {
        datagrams: Vec<Vec<u8>>,
    },
    /// The gate said no: datagrams are answered so, until the flow is forgotten.
    Refused,
    Stream(Box<Stream>),
    Datagrams {
        socket: socket2::Socket,
        token: Token,
        echo: Option<Echo>,
    },
    Names(Names),
}

impl Network {
    /// A network whose sockets are served on `events`, as is the device that uses it.
    pub fn start(config: NetworkConfig, events: LoopHandle) -> Result<Self, NetworkError> {
        let mut listeners = Vec::new();
        for Publish { host, guest } in config.publish {
            let listen = || {
                let socket = TcpListener::bind(host)?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            };
            let socket =
                listen().map_err(|source| NetworkError::Publish { address: host, source })?;
            listeners.push(Listener { socket, guest, token: None, resting: None });
        }
        let seed = u64::from_le_bytes(cabana_os::process::random_bytes()?);
        let (wake, timer) = (Wake::new()?, Timer::new()?);
        let shared = Arc::new_cyclic(|this| Shared {
            relay: Mutex::new(Relay {
                stack: Stack::new(config.limits, config.mtu, seed),
                gate: config.gate,
                records: HashMap::new(),
                listeners,
                events,
                tokens: Vec::new(),
                this: Weak::clone(this),
                began: Instant::now(),
                alarm: None,
                again: Vec::new(),
                notify: None,
                restart: None,
                capture: config.capture,
                counters: NetworkCounters::default(),
                next_port: FIRST_EPHEMERAL,
                room: vec![0; MAX_DATAGRAM].into_boxed_slice(),
            }),
            wake,
            timer,
        });
        shared.lock().begin(&shared)?;
        Ok(Self { shared })
    }

    /// Figures of it.
    pub fn counters(&self) -> NetworkCounters {
        let relay = self.shared.lock();
        NetworkCounters { stack: relay.stack.counters(), ..relay.counters }
    }

    /// The addresses that [`Publish`]ed ports listen on: what port 0 became.
    pub fn published(&self) -> Vec<SocketAddr> {
        let relay = self.shared.lock();
        relay.listeners.iter().filter_map(|listener| listener.socket.local_addr().ok()).collect()
    }
}

/// What a network card needs of a network. All calls but the first come from the loop's thread.
pub trait FrameLink: Send {
    /// A driver begins: what there was with one before is over. It takes TCP packets with a checksum left
    /// out if `trusting`. `notify` is called when there may be frames to receive, from any thread.
    fn start(&self, trusting: bool, notify: Waker);

    /// Takes a frame that the guest sent.
    fn transmit(&self, frame: &[u8]);

    /// All frames that there were have been taken: act on them.
    fn flush(&self);

    /// Shows the next frame for the guest to `take`; false if there is none.
    fn receive(&self, take: &mut dyn FnMut(Outgoing<'_>)) -> bool;
}

impl FrameLink for Network {
    fn start(&self, trusting: bool, notify: Waker) {
        let mut relay = self.shared.lock();
        relay.notify = Some(notify);
        relay.restart = Some(trusting);
        self.shared.wake.signal();
    }

    fn transmit(&self, frame: &[u8]) {
        let mut relay = self.shared.lock();
        relay.apply_restart();
        if let Some(capture) = &mut relay.capture {
            capture.frame(frame);
        }
        let now = relay.now();
        relay.stack.input(now, frame);
        // Opens and datagrams are rare, and hold memory: they are dealt with at once.
        relay.take_events();
    }

    fn flush(&self) {
        self.shared.lock().settle();
    }

    fn receive(&self, take: &mut dyn FnMut(Outgoing<'_>)) -> bool {
        let mut relay = self.shared.lock();
        relay.apply_restart();
        let now = relay.now();
        let Relay { stack, capture, .. } = &mut *relay;
        let Some(outgoing) = stack.output(now) else {
            // What ended with its last frame.
            relay.settle();
            return false;
        };
        if let Some(capture) = capture {
            capture.frame(outgoing.frame);
        }
        take(outgoing);
        true
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Relay> {
        self.relay.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Relay {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Registers what wakes the relay.
    fn begin(&mut self, shared: &Arc<Shared>) -> Result<(), NetworkError> {
        let this = Weak::clone(&self.this);
        self.tokens.push(self.events.add_event(&shared.wake, move || {
            if let Some(shared) = this.upgrade() {
                let mut relay = shared.lock();
                relay.apply_restart();
                for id in std::mem::take(&mut relay.again) {
                    relay.pump(id);
                }
                relay.settle();
            }
        })?);
        let this = Weak::clone(&self.this);
        self.tokens.push(self.events.add_timer(&shared.timer, move || {
            if let Some(shared) = this.upgrade() {
                let mut relay = shared.lock();
                relay.alarm = None;
                relay.expire();
                relay.settle();
            }
        })?);
        for index in 0..self.listeners.len() {
            let this = Weak::clone(&self.this);
            let Some(listener) = self.listeners.get_mut(index) else { continue };
            let token = self.events.add(&listener.socket, Interest::READ, move |_| {
                if let Some(shared) = this.upgrade() {
                    let mut relay = shared.lock();
                    relay.take_connections(index);
                    relay.settle();
                }
            })?;
            listener.token = Some(token);
            self.tokens.push(token);
        }
        let this = Weak::clone(&self.this);
        self.gate.start(Arc::new(move || {
            if let Some(shared) = this.upgrade() {
                shared.wake.signal();
            }
        }));
        Ok(())
    }

    fn apply_restart(&mut self) {
        if let Some(trusting) = self.restart.take() {
            self.stack.restart(trusting);
            self.take_events();
        }
    }

    /// Everything that follows from what has just happened.
    fn settle(&mut self) {
        let now = self.now();
        self.take_events();
        while let Some(order) = self.gate.poll(now) {
            match order {
                Order::Open(id, opening) => self.open(id, opening),
                Order::Answer(id, message) => self.answer(id, &message),
                Order::Close(id) => self.stack.abort(now, id),
            }
            self.take_events();
        }
        if let Some(capture) = &mut self.capture {
            capture.flush();
        }
        self.set_alarm(now);
        if self.stack.has_output()
            && let Some(notify) = &self.notify
        {
            notify();
        }
    }

    fn set_alarm(&mut self, now: Duration) {
        let resting = self.listeners.iter().filter_map(|listener| listener.resting).min();
        let next =
            [self.stack.deadline(), self.gate.deadline(), resting].into_iter().flatten().min();
        // A timer that wakes too early sets itself anew; that is cheaper than to set it at every packet.
        if let Some(next) = next
            && self.alarm.is_none_or(|alarm| next < alarm)
            && let Some(shared) = self.this.upgrade()
        {
            self.alarm = Some(next);
            shared.timer.set(Some(next.saturating_sub(now)));
        }
    }

    fn expire(&mut self) {
        let now = self.now();
        self.stack.expire(now);
        for listener in &mut self.listeners {
            if listener.resting.is_some_and(|until| until <= now) {
                listener.resting = None;
                if let Some(token) = listener.token {
                    let _ = self.events.modify(token, Interest::READ);
                }
            }
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.stack.event() {
            match event {
                Event::Open(id, flow) => self.ask(id, flow),
                Event::Ready(id) => self.pump(id),
                Event::Datagram(id, payload) => self.send_datagram(id, payload),
                Event::Closed { id, broken } => self.close(id, broken),
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        for token in self.tokens.drain(..) {
            self.events.remove(token);
        }
        for (_, record) in self.records.drain() {
            match record.outside {
                Outside::Stream(stream) => {
                    self.events.remove(stream.token);
                    // A machine that ends in the middle of a stream must not look like its end.
                    let broken = !stream.finished();
                    stream.close(broken);
                }
                Outside::Datagrams { token, .. } => self.events.remove(token),
                _ => {}
            }
        }
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("counters", &self.counters()).finish()
    }
}

//! The host's side: who is connected, who listens, and how a connection begins and ends.
//!
//! Locks are taken in this order: the transmit queue, the table or the receive queue (never both), a
//! listener's backlog, a reader's block, a link. Wakers are called with none of them held but, at
//! times, the transmit queue's, which only the event loop and the transport want.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use crate::connection::{Connection, End};
use crate::inbox::{Pool, lock};
use crate::link::{Key, Link, wait_until};
use crate::packet::{HOST_CID, Header, Op, SHUT_BOTH, SHUT_RECEIVE, STREAM};
use crate::rx::{Rx, Sent};
use crate::{VsockConfig, VsockError, VsockStream};

/// The first port that the host connects from; those below are for listeners.
const FIRST_EPHEMERAL: u32 = 1 << 30;

/// The device as the host's threads see it.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) config: VsockConfig,
    pub(crate) pool: Pool,
    table: Mutex<Table>,
    rx: Mutex<Rx>,
}

/// Whether there is a guest to talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Machine {
    /// There is, or there will be.
    Up,
    /// Its driver broke a queue; a reset repairs that.
    Broken,
    /// The device has been dropped.
    Gone,
}

#[derive(Debug)]
struct Table {
    machine: Machine,
    links: HashMap<Key, Arc<Link>>,
    listeners: HashMap<u32, Arc<Backlog>>,
    next_port: u32,
}

/// Connections that wait to be accepted.
#[derive(Debug, Default)]
struct Backlog {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    links: VecDeque<Arc<Link>>,
    closed: bool,
}

impl Hub {
    pub(crate) fn new(config: VsockConfig) -> Arc<Self> {
        Arc::new(Self {
            rx: Mutex::new(Rx::new(config.guest_cid)),
            config,
            pool: Pool::default(),
            table: Mutex::new(Table {
                machine: Machine::Up,
                links: HashMap::new(),
                listeners: HashMap::new(),
                next_port: FIRST_EPHEMERAL,
            }),
        })
    }

    /// Uses the receive queue. The caller holds neither the table nor a link.
    pub(crate) fn with_rx<R>(&self, work: impl FnOnce(&mut Rx) -> R) -> R {
        let mut rx = lock(&self.rx);
        let result = work(&mut rx);
        let failed = rx.finish();
        drop(rx);
        if failed {
            self.broken();
        }
        result
    }

    /// Sends what `link` owes.
    pub(crate) fn send_owed(&self, link: &Arc<Link>) {
        self.with_rx(|rx| {
            rx.owe(link);
            rx.flush();
        });
    }

    /// Sends data.
    pub(crate) fn send(&self, link: &Arc<Link>, bytes: &[u8]) -> Result<Sent, VsockError> {
        self.with_rx(|rx| rx.send(link, bytes))
    }

    /// The connection that a packet of the guest's belongs to.
    pub(crate) fn find(&self, key: Key) -> Option<Arc<Link>> {
        lock(&self.table).links.get(&key).cloned()
    }

    /// Forgets a connection that has ended.
    pub(crate) fn forget(&self, link: &Arc<Link>) {
        let mut table = lock(&self.table);
        if table.links.get(&link.key).is_some_and(|known| Arc::ptr_eq(known, link)) {
            table.links.remove(&link.key);
        }
    }

    /// The guest asks for a new connection; `None` refuses it.
    pub(crate) fn open(&self, key: Key, request: &Header) -> Option<Arc<Link>> {
        let mut table = lock(&self.table);
        if table.machine != Machine::Up {
            return None;
        }
        let backlog = Arc::clone(table.listeners.get(&key.host_port)?);
        self.make_room(&mut table).ok()?;
        let mut waiting = lock(&backlog.waiting);
        if waiting.links.len() >= self.config.backlog {
            return None;
        }
        let link = Link::new(key, Connection::accept(request, self.config.buffer));
        table.links.insert(key, Arc::clone(&link));
        waiting.links.push_back(Arc::clone(&link));
        backlog.arrived.notify_one();
        Some(link)
    }

    /// Makes sure that the table takes one more connection. When it is full, one goes that the host
    /// has closed and whose end the guest has not confirmed.
    fn make_room(&self, table: &mut Table) -> Result<(), VsockError> {
        if table.links.len() < self.config.max_connections {
            return Ok(());
        }
        let closing = table.links.values().find(|link| link.lock().connection.is_closing());
        let key = closing.ok_or(VsockError::TooMany(self.config.max_connections))?.key;
        table.links.remove(&key);
        Ok(())
    }

    fn connect(&self, port: u32, deadline: Option<Instant>) -> Result<Arc<Link>, VsockError> {
        let link = {
            let mut table = lock(&self.table);
            if table.machine != Machine::Up {
                return Err(VsockError::Closed);
            }
            self.make_room(&mut table)?;
            let key = table.free_key(port);
            let link = Link::new(key, Connection::connect(self.config.buffer));
            table.links.insert(key, Arc::clone(&link));
            link
        };
        self.send_owed(&link);
        link.wait_connected(deadline).inspect_err(|_| self.abandon(&link))?;
        Ok(link)
    }

    /// The port that the host connects from next.
    pub(crate) fn next_port(&self) -> u32 {
        lock(&self.table).next_port
    }

    /// Connects from `port` on.
    pub(crate) fn connect_from(&self, port: u32) {
        lock(&self.table).next_port = port.max(FIRST_EPHEMERAL);
    }

    /// Gives up a connection that the guest may know of.
    fn abandon(&self, link: &Arc<Link>) {
        let known = link.update(|state| {
            let known = !state.connection.is_over() && !state.connection.is_unknown_to_guest();
            state.connection.end(End::Reset);
            known
        });
        self.forget(link);
        if known {
            self.with_rx(|rx| {
                rx.owe_reset(self.reset_packet(link.key));
                rx.flush();
            });
        }
    }

    /// The host shuts directions down (`SHUT_*`). If it is receiving, nobody reads what came.
    pub(crate) fn shut(&self, link: &Arc<Link>, flags: u32) {
        let owes = link.update(|state| {
            state.connection.shut(flags);
            state.connection.owes()
        });
        if flags & SHUT_RECEIVE != 0 {
            // A reader that waits has been woken by the above and lets go of its block.
            *lock(&link.current) = None;
            link.lock().inbox.clear();
        }
        if owes {
            self.send_owed(link);
        }
    }

    /// A reset of the host's own accord.
    fn reset_packet(&self, key: Key) -> Header {
        Header {
            src_cid: HOST_CID.into(),
            dst_cid: self.config.guest_cid.into(),
            src_port: key.host_port.into(),
            dst_port: key.guest_port.into(),
            len: 0.into(),
            kind: STREAM.into(),
            op: (Op::Reset as u16).into(),
            flags: 0.into(),
            buf_alloc: 0.into(),
            fwd_cnt: 0.into(),
        }
    }

    /// The driver has broken a queue: no connection can go on.
    pub(crate) fn broken(&self) {
        self.end_all(Machine::Broken, |_| false);
    }

    /// The guest starts anew. Listeners stay, and requests that it has not seen yet.
    pub(crate) fn reset(&self) {
        self.end_all(Machine::Up, |link| link.lock().connection.is_unknown_to_guest());
        self.with_rx(Rx::reset);
    }

    /// There will be no guest any more.
    pub(crate) fn shut_down(&self) {
        self.end_all(Machine::Gone, |_| false);
        self.with_rx(Rx::reset);
        let listeners = std::mem::take(&mut lock(&self.table).listeners);
        for backlog in listeners.into_values() {
            lock(&backlog.waiting).closed = true;
            backlog.arrived.notify_all();
        }
    }

    /// Ends all connections but those that may stay.
    fn end_all(&self, machine: Machine, stays: impl Fn(&Link) -> bool) {
        let mut ended = Vec::new();
        {
            let mut table = lock(&self.table);
            table.machine = machine;
            table.links.retain(|_, link| {
                let stays = stays(link);
                if !stays {
                    ended.push(Arc::clone(link));
                }
                stays
            });
            for backlog in table.listeners.values() {
                lock(&backlog.waiting).links.clear();
            }
        }
        for link in ended {
            link.end(End::Lost);
        }
    }
}

impl Table {
    /// Ports for a connection from the host, not in use.
    fn free_key(&mut self, guest_port: u32) -> Key {
        loop {
            let key = Key { host_port: self.next_port, guest_port };
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_EPHEMERAL);
            // The guest may have connected to a listener on this port.
            if !self.links.contains_key(&key) && !self.listeners.contains_key(&key.host_port) {
                return key;
            }
        }
    }
}

/// The host's end of a machine's vsock: makes connections. Cheap to clone; it outlives the machine,
/// and then says so.
#[derive(Clone, Debug)]
pub struct VsockHost {
    hub: Arc<Hub>,
}

impl VsockHost {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }

    /// Connects to `port` of the guest. Waits until the guest has answered, which it does once its
    /// driver runs: [`VsockError::Refused`] if nobody listens there, [`VsockError::Closed`] if
    /// the machine is gone or goes.
    pub fn connect(&self, port: u32) -> Result<VsockStream, VsockError> {
        self.connect_until(port, None)
    }

    /// Like [`VsockHost::connect`], but gives up at `deadline`, if there is one, with
    /// [`VsockError::TimedOut`].
    pub fn connect_until(
        &self,
        port: u32,
        deadline: Option<Instant>,
    ) -> Result<VsockStream, VsockError> {
        let link = self.hub.connect(port, deadline)?;
        Ok(VsockStream::new(Arc::clone(&self.hub), link))
    }

    /// Accepts what the guest connects to `port` of the host, from now on: before the machine runs,
    /// and through resets of the guest. Connections beyond [`VsockConfig::backlog`] are refused.
    pub fn listen(&self, port: u32) -> Result<VsockListener, VsockError> {
        let mut table = lock(&self.hub.table);
        if table.machine == Machine::Gone {
            return Err(VsockError::Closed);
        }
        if table.listeners.contains_key(&port) {
            return Err(VsockError::PortTaken(port));
        }
        let backlog = Arc::<Backlog>::default();
        table.listeners.insert(port, Arc::clone(&backlog));
        Ok(VsockListener { hub: Arc::clone(&self.hub), port, backlog })
    }
}

/// A port of the host that the guest can connect to, until this is dropped.
#[derive(Debug)]
pub struct VsockListener {
    hub: Arc<Hub>,
    port: u32,
    backlog: Arc<Backlog>,
}

impl VsockListener {
    /// The port.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Waits for the guest to connect; [`VsockStream::guest_port`] says from where.
    /// [`VsockError::Closed`] if the machine is gone or goes.
    pub fn accept(&self) -> Result<VsockStream, VsockError> {
        self.accept_until(None)
    }

    /// Like [`VsockListener::accept`], but gives up at `deadline`, if there is one, with
    /// [`VsockError::TimedOut`].
    pub fn accept_until(&self, deadline: Option<Instant>) -> Result<VsockStream, VsockError> {
        let mut waiting = lock(&self.backlog.waiting);
        loop {
            if let Some(link) = waiting.links.pop_front() {
                return Ok(VsockStream::new(Arc::clone(&self.hub), link));
            }
            if waiting.closed {
                return Err(VsockError::Closed);
            }
            waiting = wait_until(&self.backlog.arrived, waiting, deadline)
                .map_err(|_| VsockError::TimedOut)?;
        }
    }
}

impl Drop for VsockListener {
    fn drop(&mut self) {
        {
            let mut table = lock(&self.hub.table);
            // A machine that is gone has forgotten its listeners already.
            table.listeners.remove(&self.port);
        }
        let unaccepted = std::mem::take(&mut lock(&self.backlog.waiting).links);
        for link in unaccepted {
            self.hub.shut(&link, SHUT_BOTH);
        }
    }
}

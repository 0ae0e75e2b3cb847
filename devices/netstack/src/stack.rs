//! The pure part: frames in, frames out, and what happened in between. No sockets, no clock, no threads: a
//! test or a fuzzer drives it as it likes.
//!
//! A connection that the guest opens costs little until the other side is there: the first segment is kept,
//! [`Event::Open`] says so, and only [`Stack::accept`] makes buffers and lets the guest see an answer.

mod flows;
mod input;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::wire::EthernetAddress;

use crate::config::{self, GUEST_MAC, Limits, MAX_MTU, MIN_MTU};
use crate::gate::{Flow, FlowId, Protocol};
use crate::packet::{self, Echo, Unreachable};
use crate::refused::Refused;
use crate::tcp::{Connection, Outbox, Shape};

/// Something that happened.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest wants a flow. Nothing of it moves before [`Stack::accept`] or, for datagrams, before the
    /// owner sends them on.
    Open(FlowId, Flow),
    /// A connection has bytes, room or an end that it had not before.
    Ready(FlowId),
    /// A datagram of the guest's: for ICMP, the data of an echo request behind its sequence number (2 bytes).
    Datagram(FlowId, Vec<u8>),
    /// The flow is gone, and its name with it.
    Closed {
        /// Which one.
        id: FlowId,
        /// It was broken off, by either end or by a time limit.
        broken: bool,
    },
}

/// A frame for the guest.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// The frame.
    pub frame: &'a [u8],
    /// TCP's checksum is left out: it is to be summed from here on, over what its field holds.
    pub checksum_from: Option<u16>,
}

/// What the stack has seen and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackCounters {
    /// Frames from the guest.
    pub frames_in: u64,
    /// Frames to the guest.
    pub frames_out: u64,
    /// Frames from the guest that hold nothing that is served: fragments, foreign protocols, nonsense.
    pub ignored: u64,
    /// Packets from an address that is none of the guest's.
    pub forged: u64,
    /// Packets that found a limit reached.
    pub over_limit: u64,
    /// Flows that there are.
    pub flows: u64,
    /// Flows that there have been.
    pub flows_opened: u64,
    /// Bytes of connections' buffers.
    pub memory: u64,
}

/// A flow's state.
#[derive(Debug)]
enum State {
    /// The guest's first segment, whose other side is not there yet.
    Opening(Vec<u8>),
    /// A connection.
    Live(Box<Connection>),
    /// Datagrams.
    Datagrams,
}

#[derive(Debug)]
struct Entry {
    flow: Flow,
    state: State,
    /// It stands in the queue of those that may have a packet for the guest.
    queued: bool,
    /// Its owner has been told of an [`Event::Ready`] that it has not taken yet.
    told: bool,
    /// Not established, and counted as such.
    half_open: bool,
    deadline: Option<Duration>,
    /// When a datagram last passed.
    used: Duration,
}

/// The stack.
#[derive(Debug)]
pub struct Stack {
    limits: Limits,
    shape: Shape,
    flows: HashMap<FlowId, Entry>,
    by_key: HashMap<Flow, FlowId>,
    next_id: FlowId,
    seed: u64,
    ready: VecDeque<FlowId>,
    timers: BTreeSet<(Duration, FlowId)>,
    events: VecDeque<Event>,
    replies: VecDeque<Vec<u8>>,
    refused: Refused,
    outbox: Outbox,
    last_reply: Vec<u8>,
    half_open: usize,
    datagrams: usize,
    memory: usize,
    counters: StackCounters,
}

impl Stack {
    /// A stack for a link of this MTU. `seed` makes sequence numbers that differ from run to run.
    pub fn new(limits: Limits, mtu: u16, seed: u64) -> Self {
        Self {
            limits,
            shape: Shape { mtu: mtu.clamp(MIN_MTU, MAX_MTU), trusting: false },
            flows: HashMap::new(),
            by_key: HashMap::new(),
            next_id: 1,
            seed,
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            events: VecDeque::new(),
            replies: VecDeque::new(),
            refused: Refused::default(),
            outbox: Outbox::new(),
            last_reply: Vec::new(),
            half_open: 0,
            datagrams: 0,
            memory: 0,
            counters: StackCounters::default(),
        }
    }

    /// The guest's driver has begun anew: it takes TCP packets with a checksum left out
    /// if `trusting`. What there
    /// was with the driver before is broken off.
    pub fn restart(&mut self, trusting: bool) {
        self.shape.trusting = trusting;
        self.replies.clear();
        self.refused.clear();
        let all: Vec<FlowId> = self.flows.keys().copied().collect();
        for id in all {
            self.remove(id, true);
        }
    }

    /// The largest IP packet.
    pub fn mtu(&self) -> u16 {
        self.shape.mtu
    }

    /// What the stack has seen and holds.
    pub fn counters(&self) -> StackCounters {
        StackCounters {
            flows: self.flows.len() as u64,
            memory: self.memory as u64,
            ..self.counters
        }
    }

    /// The next thing that happened.
    pub fn event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if let Event::Ready(id) = event
            && let Some(entry) = self.flows.get_mut(&id)
        {
            entry.told = false;
        }
        Some(event)
    }

    /// The other side of a connection is there: the guest gets its answer. False, with the flow gone, if
    /// there is no memory for it.
    pub fn accept(&mut self, now: Duration, id: FlowId) -> bool {
        let buffer = self.buffer();
        let seed = self.next_seed();
        let (shape, memory) = (self.shape, self.memory);
        let Some(entry) = self.flows.get_mut(&id) else { return false };
        let State::Opening(first) = &mut entry.state else { return false };
        let first = std::mem::take(first);
        let connection = (memory + 2 * buffer <= self.limits.memory)
            .then(|| Connection::listen(shape, entry.flow.destination, buffer, seed).ok())
            .flatten();
        let Some(connection) = connection else {
            self.counters.over_limit += 1;
            self.refuse(now, id, &first);
            return false;
        };
        self.memory += connection.memory;
        entry.state = State::Live(Box::new(connection));
        self.input_segment(now, id, &first);
        true
    }

    /// The other side is not there or not allowed: the guest's attempt is reset.
    pub fn reject(&mut self, now: Duration, id: FlowId) {
        let Some(entry) = self.flows.get_mut(&id) else { return };
        match &mut entry.state {
            State::Opening(first) => {
                let first = std::mem::take(first);
                self.refuse(now, id, &first);
            }
            State::Live(_) => self.abort(now, id),
            State::Datagrams => self.remove(id, true),
        }
    }

    fn refuse(&mut self, now: Duration, id: FlowId, first: &[u8]) {
        if let Some(entry) = self.flows.get(&id) {
            if let Some(sequence) = sequence(first) {
                self.refused.add(now, entry.flow, sequence);
            }
            let reset = packet::reset(first, hardware(&entry.flow));
            self.answer(reset);
        }
        self.remove(id, true);
    }

    /// Tells the guest that a datagram like this one of the flow did not arrive, and why.
    pub fn unreachable(&mut self, id: FlowId, why: Unreachable, payload: &[u8]) {
        let Some(entry) = self.flows.get(&id) else { return };
        let Flow { source, destination, protocol } = entry.flow;
        if protocol != Protocol::Udp {
            return;
        }
        // The error quotes what the guest sent.
        let guest = hardware(&entry.flow);
        let sent = packet::udp_frame(source, destination, payload, self.shape.mtu, guest);
        let error =
            sent.and_then(|frame| packet::unreachable(why, frame.get(packet::ETHERNET..)?, guest));
        self.answer(error);
    }

    /// Opens a connection to the guest; `None` if a limit is reached or the endpoints are in use.
    pub fn connect(
        &mut self,
        now: Duration,
        from: SocketAddr,
        guest: SocketAddr,
    ) -> Option<FlowId> {
        let flow = Flow { protocol: Protocol::Tcp, source: guest, destination: from };
        let buffer = self.buffer();
        if self.by_key.contains_key(&flow)
            || config::hardware_of(guest.ip()).is_none()
            || self.half_open >= self.limits.half_open
            || self.flows.len() >= self.limits.flows
            || self.memory + 2 * buffer > self.limits.memory
        {
            self.counters.over_limit += 1;
            return None;
        }
        let seed = self.next_seed();
        let connection = Connection::connect(self.shape, from, guest, buffer, seed).ok()?;
        self.memory += connection.memory;
        let id = self.insert(now, flow, State::Live(Box::new(connection)));
        self.set_deadline(id, Some(now + self.limits.handshake));
        self.touch(id);
        Some(id)
    }

    /// Sends a datagram to the guest: for ICMP, the sequence number and the data of an echo reply. False if
    /// it does not fit.
    pub fn datagram(&mut self, now: Duration, id: FlowId, payload: &[u8]) -> bool {
        let Some(entry) = self.flows.get_mut(&id) else { return false };
        entry.used = now;
        let Flow { source, destination, protocol } = entry.flow;
        let guest = hardware(&entry.flow);
        let frame = match protocol {
            Protocol::Icmp => payload.split_at_checked(2).and_then(|(sequence, data)| {
                let sequence = u16::from_be_bytes([*sequence.first()?, *sequence.get(1)?]);
                let echo = Echo { ident: source.port(), sequence, data };
                packet::echo_reply(destination.ip(), source.ip(), &echo, guest)
            }),
            _ => packet::udp_frame(destination, source, payload, self.shape.mtu, guest),
        };
        let fits = frame
            .as_ref()
            .is_some_and(|frame| frame.len() <= packet::ETHERNET + usize::from(self.shape.mtu));
        if fits {
            self.answer(frame);
        }
        fits
    }

    /// The flow that a name stands for.
    pub fn flow(&self, id: FlowId) -> Option<Flow> {
        Some(self.flows.get(&id)?.flow)
    }

    /// The guest has shaken hands.
    pub fn is_established(&self, id: FlowId) -> bool {
        self.live(id).is_some_and(Connection::is_established)
    }

    /// The guest sends no more, and everything that it sent has been read.
    pub fn guest_finished(&self, id: FlowId) -> bool {
        self.live(id).is_some_and(Connection::guest_finished)
    }

    /// Shows bytes of the guest's to `take`, which says how many of them it took; so many are returned.
    pub fn read(&mut self, id: FlowId, take: impl FnOnce(&[u8]) -> usize) -> usize {
        let Some(connection) = self.live_mut(id) else { return 0 };
        if connection.unread() == 0 {
            return 0;
        }
        let taken = connection.read(take);
        if taken > 0 {
            self.touch(id);
        }
        taken
    }

    /// Whether the guest takes more bytes now.
    pub fn has_room(&self, id: FlowId) -> bool {
        self.live(id).is_some_and(Connection::has_room)
    }

    /// Lets `fill` put bytes for the guest into a buffer; it says how many, and so many are returned.
    pub fn write(&mut self, id: FlowId, fill: impl FnOnce(&mut [u8]) -> usize) -> usize {
        let Some(connection) = self.live_mut(id) else { return 0 };
        if !connection.has_room() {
            return 0;
        }
        let filled = connection.write(fill);
        if filled > 0 {
            self.touch(id);
        }
        filled
    }

    /// The guest gets no more bytes than those written: it reads to the end of the stream.
    pub fn finish(&mut self, id: FlowId) {
        if let Some(connection) = self.live_mut(id) {
            connection.finish();
            self.touch(id);
        }
    }

    /// Breaks a connection off: the guest sees a reset.
    pub fn abort(&mut self, now: Duration, id: FlowId) {
        let Some(entry) = self.flows.get_mut(&id) else { return };
        if let State::Live(connection) = &mut entry.state {
            connection.abort();
            self.touch(id);
        } else {
            self.reject(now, id);
        }
    }

    /// Forgets a flow without a word to the guest.
    pub fn forget(&mut self, id: FlowId) {
        self.remove(id, false);
    }

    /// Whether [`Stack::output`] may have something.
    pub fn has_output(&self) -> bool {
        !self.replies.is_empty() || !self.ready.is_empty()
    }

    /// The next frame for the guest, if there is one. A guest that takes none leaves everything where it is.
    pub fn output(&mut self, now: Duration) -> Option<Outgoing<'_>> {
        if let Some(reply) = self.replies.pop_front() {
            self.counters.frames_out += 1;
            self.last_reply = reply;
            return Some(Outgoing { frame: &self.last_reply, checksum_from: None });
        }
        let mut guest = GUEST_MAC;
        while let Some(id) = self.ready.pop_front() {
            let Some(entry) = self.flows.get_mut(&id) else { continue };
            entry.queued = false;
            guest = hardware(&entry.flow);
            let State::Live(connection) = &mut entry.state else { continue };
            if connection.output(now, &mut self.outbox) {
                self.touch(id);
                break;
            }
            self.settle(now, id);
        }
        let trusting = self.shape.trusting;
        let frame = self.outbox.take()?;
        packet::put_ethernet(frame, guest);
        self.counters.frames_out += 1;
        let checksum_from = if trusting { packet::leave_checksum(frame) } else { None };
        Some(Outgoing { frame, checksum_from })
    }

    /// When [`Stack::expire`] has something to do.
    pub fn deadline(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Does what is due.
    pub fn expire(&mut self, now: Duration) {
        while let Some(&(at, id)) = self.timers.first() {
            if at > now {
                return;
            }
            self.timers.pop_first();
            let Some(entry) = self.flows.get_mut(&id) else { continue };
            entry.deadline = None;
            let (used, half_open) = (entry.used, entry.half_open);
            match &entry.state {
                State::Opening(_) => self.remove(id, true),
                State::Live(connection) if half_open && !connection.is_established() => {
                    if used + self.limits.handshake <= now {
                        self.abort(now, id);
                    }
                    self.touch(id);
                }
                State::Live(_) => self.touch(id),
                State::Datagrams if used + self.limits.idle <= now => self.remove(id, false),
                State::Datagrams => self.set_deadline(id, Some(used + self.limits.idle)),
            }
        }
    }
}

/// Where frames of a flow go.
fn hardware(flow: &Flow) -> EthernetAddress {
    // A flow begins at an address of the guest's only.
    config::hardware_of(flow.source.ip()).unwrap_or(GUEST_MAC)
}

/// Where a TCP packet stands in its stream.
fn sequence(whole: &[u8]) -> Option<u32> {
    let bytes = segment(whole)?.get(4..8)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// What an IP packet holds behind its header.
fn segment(whole: &[u8]) -> Option<&[u8]> {
    let first = whole.first()?;
    whole.get(if first >> 4 == 4 { usize::from(first & 0xf) * 4 } else { 40 }..)
}

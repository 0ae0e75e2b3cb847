//! The cheapest guest: one connection, frames that differ in their numbers only.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use cabana_netstack::{FrameLink, GATEWAY_MAC, GUEST_MAC, MACHINE_V4, MAX_MTU};

use super::Task;

/// Bytes of headers: Ethernet, IPv4, TCP.
const HEADERS: usize = 54;
/// Bytes in a full segment.
const SEGMENT: usize = MAX_MTU as usize - 40;
/// What the guest's window field stands for, as a power of two.
const SCALE: u8 = 10;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// A guest in the middle of its one conversation.
pub(super) struct Wire {
    frame: Vec<u8>,
    peer: SocketAddr,
    task: Task,
    /// Bytes, or round trips, that there are to be.
    amount: u64,
    /// The stack's window field stands for this.
    scale: u8,
    window: u64,
    sent: u32,
    acknowledged: u32,
    received: u32,
    open: bool,
    /// Bytes of the conversation that were sent and that came.
    outward: u64,
    homeward: u64,
    began: Instant,
    trips: Vec<f64>,
    over: bool,
}

impl Wire {
    pub(super) fn new(peer: SocketAddr, task: Task, amount: u64) -> Self {
        Self {
            frame: vec![7; HEADERS + SEGMENT],
            peer,
            task,
            amount,
            scale: 0,
            window: 0,
            sent: 1,
            acknowledged: 1,
            received: 0,
            open: false,
            outward: 0,
            homeward: 0,
            began: Instant::now(),
            trips: Vec::new(),
            over: false,
        }
    }

    /// Does what can be done now; the time that all took, and each round trip's in microseconds, at the end.
    pub(super) fn step(&mut self, link: &impl FrameLink) -> Option<(Duration, Vec<f64>)> {
        if self.over {
            return None;
        }
        if !self.open && self.received == 0 {
            self.put(link, 0, SYN, &[2, 4, 0xff, 0xb8, 1, 3, 3, SCALE]);
            link.flush();
        }
        loop {
            let before = self.homeward;
            let mut frames = Vec::new();
            while link.receive(&mut |outgoing| frames.push(head(outgoing.frame))) {
                for head in frames.drain(..) {
                    self.take(link, head);
                }
            }
            if let Some(result) = self.result() {
                self.over = true;
                return Some(result);
            }
            if self.homeward > before && self.task != Task::Echo {
                self.put(link, 0, ACK, &[]);
            }
            let sent = self.send(link);
            if !sent && self.homeward == before {
                return None;
            }
            link.flush();
        }
    }

    /// A segment of the stack's.
    fn take(&mut self, link: &impl FrameLink, head: Head) {
        self.window = u64::from(head.window) << if head.flags & SYN == 0 { self.scale } else { 0 };
        self.acknowledged = head.acknowledged;
        if head.flags & SYN != 0 {
            self.scale = head.scale;
            self.received = head.sequence.wrapping_add(1);
            self.sent = 2;
            self.open = true;
            self.put(link, 0, ACK, &[]);
            self.began = Instant::now();
            return;
        }
        self.received = self.received.wrapping_add(head.len as u32);
        self.homeward += head.len as u64;
        if self.task == Task::Echo && head.len > 0 {
            self.trips.push(self.began.elapsed().as_secs_f64() * 1e6);
        }
    }

    /// Sends what the window lets pass; whether it was anything.
    fn send(&mut self, link: &impl FrameLink) -> bool {
        if !self.open {
            return false;
        }
        let mut any = false;
        loop {
            let flying = u64::from(self.sent.wrapping_sub(self.acknowledged));
            let room = self.window.saturating_sub(flying);
            let len = match (self.task, self.outward) {
                // What the conversation is.
                (Task::Sink | Task::Echo, 0) => 1,
                (Task::Source, 0) => 9,
                (Task::Source, _) => 0,
                (Task::Sink, done) => (self.amount + 1 - done).min(SEGMENT as u64),
                (Task::Echo, done) => u64::from(done == 1 + self.homeward && flying == 0),
            };
            if len == 0 || len > room {
                return any;
            }
            if self.outward == 0 {
                self.frame[HEADERS] = self.task as u8;
                let amount = self.amount.to_le_bytes();
                self.frame[HEADERS + 1..HEADERS + 9].copy_from_slice(&amount);
            } else if self.task == Task::Echo {
                self.began = Instant::now();
            }
            self.outward += len;
            self.put(link, len as usize, ACK, &[]);
            any = true;
        }
    }

    fn result(&self) -> Option<(Duration, Vec<f64>)> {
        let over = match self.task {
            // What was acknowledged stands in the stack or beyond; a window full of it at most in the stack.
            Task::Sink => self.outward > self.amount && self.sent == self.acknowledged,
            Task::Source | Task::Echo => self.homeward >= self.amount,
        };
        over.then(|| (self.began.elapsed(), self.trips.clone()))
    }

    /// Puts a segment with `len` bytes of data on the wire.
    fn put(&mut self, link: &impl FrameLink, len: usize, flags: u8, options: &[u8]) {
        let IpAddr::V4(peer) = self.peer.ip() else {
            unreachable!("the peer listens on IPv4's loopback")
        };
        let total = 40 + options.len() + len;
        let sequence = if flags == SYN { 1 } else { self.sent };
        let frame = &mut self.frame;
        frame[..6].copy_from_slice(&GATEWAY_MAC.0);
        frame[6..12].copy_from_slice(&GUEST_MAC.0);
        frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6]);
        frame[16..18].copy_from_slice(&(total as u16).to_be_bytes());
        frame[26..30].copy_from_slice(&MACHINE_V4.octets());
        frame[30..34].copy_from_slice(&peer.octets());
        frame[34..36].copy_from_slice(&40_000u16.to_be_bytes());
        frame[36..38].copy_from_slice(&self.peer.port().to_be_bytes());
        frame[38..42].copy_from_slice(&sequence.to_be_bytes());
        frame[42..46].copy_from_slice(&self.received.to_be_bytes());
        frame[46] = ((20 + options.len()) as u8 / 4) << 4;
        frame[47] = flags;
        frame[48..50].copy_from_slice(&u16::MAX.to_be_bytes());
        frame[54..54 + options.len()].copy_from_slice(options);
        self.sent = self.sent.wrapping_add(if flags == SYN { 0 } else { len as u32 });
        link.transmit(&frame[..14 + total]);
    }
}

/// What matters of a segment.
#[derive(Clone, Copy)]
struct Head {
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    window: u16,
    scale: u8,
    len: usize,
}

/// Reads a frame of the stack's; others than TCP's are none.
fn head(frame: &[u8]) -> Head {
    let word =
        |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    assert!(frame[23] == 6, "the stack says something else than TCP");
    let header = usize::from(frame[46] >> 4) * 4;
    let mut options = &frame[54..34 + header];
    let mut scale = 0;
    while let [kind, rest @ ..] = options {
        match (kind, rest) {
            (1, _) => options = rest,
            (3, [3, shift, rest @ ..]) => (scale, options) = (*shift, rest),
            (0, _) => break,
            (_, [len, ..]) => options = &options[usize::from(*len)..],
            _ => break,
        }
    }
    Head {
        sequence: word(38),
        acknowledged: word(42),
        flags: frame[47],
        window: u16::from_be_bytes([frame[48], frame[49]]),
        scale,
        len: usize::from(u16::from_be_bytes([frame[16], frame[17]])) - 20 - header,
    }
}

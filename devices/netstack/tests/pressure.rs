//! A guest that runs short of memory, as Linux is: it drops a segment that it had offered room for, says that there is
//! no room at all, and has nothing to read that would make it say otherwise by itself. The stack has to ask. In
//! virtual time, so that a stall of minutes costs nothing, for many seeds.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use cabana_netstack::{Event, FlowId, Limits, MAX_MTU, Stack};
use common::frames;
use smoltcp::wire::{TcpControl, TcpSeqNumber};

/// Bytes of a download.
const LEN: usize = 64 << 10;
/// How long one may take: some of a hundred retransmissions, each after twice the time of the one before.
const PATIENCE: Duration = Duration::from_secs(30);

struct Random(u64);

impl Random {
    fn chance(&mut self, out_of_100: u64) -> bool {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % 100 < out_of_100
    }
}

/// The guest's end of a connection that only reads.
#[derive(Default)]
struct Reader {
    /// Where the stream begins.
    start: Option<TcpSeqNumber>,
    bytes: Vec<u8>,
    /// What came before its turn, by its place.
    early: BTreeMap<usize, Vec<u8>>,
    /// Where the stream ends, once that is known.
    end: Option<usize>,
    /// Segments that come until there is memory again.
    short: u32,
}

impl Reader {
    /// Takes a frame; the answer.
    fn take(&mut self, random: &mut Random, frame: &[u8]) -> Option<Vec<u8>> {
        let (place, opens, ends, payload) = frames::as_stream(frame)?;
        let start = *self.start.get_or_insert(place + 1);
        let wanted = self.bytes.len();
        // A keep-alive lies one before what comes next.
        let after = place + usize::from(opens) + 1 - start;
        let (at, late) = (after.saturating_sub(1), after <= wanted && !opens);
        if !opens && !late && payload.is_empty() && !ends && at == wanted {
            return None;
        }
        if self.short > 0 {
            self.short -= 1;
        } else if !opens && !late {
            if random.chance(5) {
                self.short = 1 + u32::from(random.chance(50));
            } else {
                self.end = self.end.or(ends.then_some(at + payload.len()));
                self.early.insert(at, payload);
            }
        }
        while let Some(entry) = self.early.first_entry() {
            if *entry.key() > self.bytes.len() {
                break;
            }
            let (at, payload) = entry.remove_entry();
            self.bytes.extend(payload.get(self.bytes.len() - at..).unwrap_or_default());
        }
        let window = if self.short > 0 { 0 } else { 512 };
        let next = start + self.bytes.len() + usize::from(self.ended());
        Some(frames::segment(guest(), server(), TcpControl::None, TcpSeqNumber(1001), next, window))
    }

    fn ended(&self) -> bool {
        self.end == Some(self.bytes.len())
    }
}

fn guest() -> std::net::SocketAddr {
    "10.107.0.2:1000".parse().unwrap()
}

fn server() -> std::net::SocketAddr {
    "198.51.100.1:80".parse().unwrap()
}

/// One download.
fn download(seed: u64) {
    let mut random = Random(seed);
    let mut stack = Stack::new(Limits::default(), MAX_MTU, seed);
    let mut now = Duration::ZERO;
    let data: Vec<u8> = (0..LEN).map(|at| (at * 31 + at / 251) as u8).collect();
    let (mut open, mut written): (Option<FlowId>, usize) = (None, 0);
    let mut reader = Reader::default();
    stack.input(now, &frames::syn(guest(), server()));
    while !reader.ended() {
        assert!(now < PATIENCE, "seed {seed}: {} of {LEN} bytes", reader.bytes.len());
        while let Some(event) = stack.event() {
            if let Event::Open(id, _) = event {
                assert!(stack.accept(now, id));
                open = Some(id);
            }
        }
        if let Some(id) = open
            && stack.is_established(id)
            && written < LEN
        {
            written += stack.write(id, |room| {
                let len = room.len().min(LEN - written).min(9000);
                room[..len].copy_from_slice(&data[written..written + len]);
                len
            });
            if written == LEN {
                stack.finish(id);
            }
        }
        let mut sent = Vec::new();
        while let Some(outgoing) = stack.output(now) {
            sent.push(outgoing.frame.to_vec());
        }
        let quiet = sent.is_empty();
        for frame in sent {
            now += Duration::from_micros(100);
            if let Some(answer) = reader.take(&mut random, &frame) {
                stack.input(now, &answer);
            }
        }
        if quiet && !stack.has_output() {
            now = now.max(stack.deadline().expect("a flow has a deadline"));
        }
        stack.expire(now);
    }
    assert!(reader.bytes == data, "seed {seed}");
}

#[test]
fn a_guest_short_of_memory_gets_everything() {
    for seed in 1..=300 {
        download(seed);
    }
}

#[test]
fn a_guest_that_sends_no_more_is_heard_when_it_has_room_again() {
    let (now, own) = (Duration::from_secs(1), TcpSeqNumber(1001));
    let mut stack = Stack::new(Limits::default(), MAX_MTU, 1);
    stack.input(now, &frames::syn(guest(), server()));
    let Some(Event::Open(id, _)) = stack.event() else { panic!("a question") };
    assert!(stack.accept(now, id));
    let (start, ..) = frames::as_stream(stack.output(now).unwrap().frame).unwrap();
    stack.input(now, &frames::segment(guest(), server(), TcpControl::Fin, own, start + 1, 1));
    assert_eq!(stack.write(id, |room| room.len().min(10_000)), 10_000);
    stack.finish(id);
    let mut received = 0;
    let mut receive = |stack: &mut Stack| {
        while let Some(outgoing) = stack.output(now) {
            let (.., ends, payload) = frames::as_stream(outgoing.frame).unwrap();
            received += payload.len() + usize::from(ends);
        }
        received
    };
    // Its window is of 128 bytes. It takes them and has room for none, and later for all.
    let taken = receive(&mut stack);
    assert_eq!(taken, 128);
    for window in [0, 1000] {
        let taken = start + 1 + taken;
        stack.input(
            now,
            &frames::segment(guest(), server(), TcpControl::None, own + 1, taken, window),
        );
    }
    let taken = receive(&mut stack);
    assert_eq!(taken, 10_000, "it waits for nothing");
    stack.input(
        now,
        &frames::segment(guest(), server(), TcpControl::None, own + 1, start + 1 + taken, 1000),
    );
    assert_eq!(receive(&mut stack), 10_001, "and then comes the end");
}

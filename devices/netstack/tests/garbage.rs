//! Frames that no guest would send: nothing panics, and nothing grows beyond its limit. Bounded and repeatable;
//! `CABANA_FUZZ_SECONDS` makes it go on for that long with new seeds, from
//! `CABANA_FUZZ_SEED` on.

mod common;

use std::time::{Duration, Instant};

use cabana_netstack::{Event, FlowId, Limits, MAX_MTU, Stack, Unreachable};
use common::frames;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

const PORTS: u16 = 6;

/// A frame that is right but for what chance does to it.
fn frame(random: &mut Random, seen: &[Vec<u8>]) -> Vec<u8> {
    let guest = format!("10.107.0.2:{}", 1000 + random.below(PORTS.into())).parse().unwrap();
    let to = format!("198.51.100.1:{}", 80 + random.below(3)).parse().unwrap();
    let mut frame = match random.below(6) {
        0 => frames::udp(guest, to, &vec![1; random.below(100)]),
        1 => frames::ping(guest.ip(), to.ip(), 1, 2, &[3; 8]),
        2 => {
            let guest = format!("[fd00:107::2]:{}", 1000 + random.below(4)).parse().unwrap();
            frames::syn(guest, "[2001:db8::1]:443".parse().unwrap())
        }
        3 => frames::syn(guest, to),
        // An answer to what the stack sent: the way into every state of a connection.
        _ => seen
            .get(random.below(seen.len().max(1)))
            .and_then(|sent| answer(random, sent))
            .unwrap_or_else(|| frames::syn(guest, to)),
    };
    if random.one_in(3) {
        for _ in 0..=random.below(4) {
            // Mostly the headers, where everything is decided.
            let reach = if random.one_in(4) { frame.len() } else { frame.len().min(74) };
            let at = random.below(reach);
            frame[at] = random.next() as u8;
        }
    }
    if random.one_in(20) {
        frame.truncate(random.below(frame.len() + 1));
    }
    frame
}

/// A segment that answers one of the stack's, with flags, numbers and data by chance.
fn answer(random: &mut Random, sent: &[u8]) -> Option<Vec<u8>> {
    let v4 = sent.get(12..14)? == [8, 0];
    if !v4 || sent.get(23) != Some(&6) {
        return None;
    }
    let data = match random.below(4) {
        0 => random.below(5000),
        1 => random.below(10),
        _ => 0,
    };
    let mut frame = vec![0; 14 + 40 + data];
    let (to, from) = sent.get(..12)?.split_at(6);
    frame[..12].copy_from_slice(&[from, to].concat());
    frame[12] = 8;
    let total = (40 + data) as u16;
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[22] = 64;
    frame[23] = 6;
    frame[26..30].copy_from_slice(&sent[30..34]);
    frame[30..34].copy_from_slice(&sent[26..30]);
    let (theirs, ours) = (sent.get(34..54)?, &mut frame[34..54]);
    ours[..2].copy_from_slice(&theirs[2..4]);
    ours[2..4].copy_from_slice(&theirs[..2]);
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
    let drift = |random: &mut Random, number: u32| match random.below(6) {
        0 => number.wrapping_add(random.below(100_000) as u32),
        1 => number.wrapping_sub(random.below(100_000) as u32),
        2 => random.next() as u32,
        _ => number,
    };
    let length = sent.len() as u32 - 14 - 20 - u32::from(theirs[12] >> 4) * 4;
    let control = u32::from(theirs[13] & 3 != 0);
    let acknowledged = drift(random, number(&theirs[4..8]).wrapping_add(length + control));
    let sequence = drift(random, number(&theirs[8..12]));
    ours[4..8].copy_from_slice(&sequence.to_be_bytes());
    ours[8..12].copy_from_slice(&acknowledged.to_be_bytes());
    ours[12] = 0x50;
    ours[13] = match random.below(8) {
        0 => random.next() as u8,
        1 => 0x11,
        2 => 0x18,
        3 => 0x04,
        _ => 0x10,
    };
    let window = if random.one_in(4) { random.next() as u16 } else { 0xffff };
    ours[14..16].copy_from_slice(&window.to_be_bytes());
    Some(frame)
}

fn round(seed: u64, frames: usize) {
    let mut random = Random(seed);
    let limits = Limits {
        flows: 40,
        half_open: 8,
        datagram_flows: 8,
        buffer: 32 << 10,
        memory: 2 << 20,
        ..Limits::default()
    };
    let mut stack = Stack::new(limits, MAX_MTU, seed);
    let mut now = Duration::from_secs(1);
    let mut live: Vec<FlowId> = Vec::new();
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for _ in 0..frames {
        let frame = frame(&mut random, &seen);
        stack.input(now, &frame);
        while let Some(event) = stack.event() {
            match event {
                Event::Open(id, _) if random.one_in(8) => stack.reject(now, id),
                Event::Open(id, _) => {
                    if !random.one_in(8) {
                        stack.accept(now, id);
                    }
                    live.push(id);
                }
                Event::Datagram(id, payload) => {
                    if random.one_in(2) {
                        stack.datagram(now, id, &payload);
                    } else {
                        stack.unreachable(id, Unreachable::Prohibited, &payload);
                    }
                }
                Event::Ready(id) => {
                    while stack.read(id, <[u8]>::len) > 0 {}
                    if stack.guest_finished(id) {
                        stack.finish(id);
                    }
                }
                Event::Closed { id, .. } => live.retain(|other| *other != id),
            }
        }
        if let Some(&id) = live.get(random.below(live.len().max(1))) {
            match random.below(12) {
                0 => drop(stack.read(id, |bytes| bytes.len() / 2)),
                1..6 => drop(stack.write(id, |room| room.len().min(3000))),
                6 if random.one_in(4) => stack.finish(id),
                7 if random.one_in(8) => stack.abort(now, id),
                8 => live.extend(stack.connect(
                    now,
                    "10.107.0.1:50000".parse().unwrap(),
                    "10.107.0.2:22".parse().unwrap(),
                )),
                _ => {}
            }
        }
        for _ in 0..random.below(6) {
            let Some(outgoing) = stack.output(now) else { break };
            let frame = outgoing.frame;
            assert!(frame.len() <= 14 + usize::from(MAX_MTU));
            if seen.len() < 32 {
                seen.push(frame.to_vec());
            } else {
                seen[random.below(32)] = frame.to_vec();
            }
        }
        now += Duration::from_millis(match random.below(20) {
            0 => random.below(40_000) as u64,
            1 => 500,
            _ => 1,
        });
        stack.expire(now);
        let counters = stack.counters();
        assert!(counters.flows <= 40 && counters.memory <= limits.memory as u64, "{counters:?}");
    }
    // Everything ends when its time has come.
    for id in live {
        stack.abort(now, id);
    }
    for _ in 0..100 {
        now += Duration::from_secs(100);
        stack.expire(now);
        while stack.output(now).is_some() {}
    }
    let counters = stack.counters();
    assert_eq!((counters.flows, counters.memory), (0, 0), "seed {seed}");
}

#[test]
fn garbage_breaks_nothing() {
    let seconds: u64 =
        std::env::var("CABANA_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let until = Instant::now() + Duration::from_secs(seconds);
    let first = std::env::var("CABANA_FUZZ_SEED").ok().and_then(|text| text.parse().ok());
    let mut seed = first.unwrap_or(1);
    let last = seed + 40;
    while seed < last || Instant::now() < until {
        if let Err(panic) = std::panic::catch_unwind(|| round(seed, 3000)) {
            eprintln!("the seed was {seed}");
            std::panic::resume_unwind(panic);
        }
        seed += 1;
    }
}

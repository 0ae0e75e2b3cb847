//! A guest's frames, and what the stack's owner does meanwhile.
#![no_main]

use std::time::Duration;

use cabana_netstack::{
    Event, FlowId, GUEST_MAC, Limits, MAX_MTU, Stack, Unreachable, hardware_of, session_mac,
};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    flows: 40,
    half_open: 8,
    datagram_flows: 8,
    buffer: 32 << 10,
    memory: 2 << 20,
    idle: Duration::from_secs(60),
    handshake: Duration::from_secs(30),
};

/// The input, as it is used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn bytes(&mut self) -> Option<&[u8]> {
        let length = usize::from(self.byte()?).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(bytes)
    }
}

/// An IPv4 packet of the machine's, or of a session's that may not be the sender's.
fn packet(input: &mut Input<'_>) -> Option<Vec<u8>> {
    let [protocol, who, port] = [input.byte()?, input.byte()?, input.byte()?];
    let content = input.bytes()?;
    let mut frame = vec![2, 0xca, 0xba, 0, 0, 1];
    let mac = if who & 1 == 0 { GUEST_MAC } else { session_mac(1) };
    frame.extend(mac.0);
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(((28 + content.len()) as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, protocol, 0, 0, 10, 107]);
    frame.extend(if who & 2 == 0 { [0, 2] } else { [1, 1] });
    frame.extend([198, 51, 100, 1, 4, port, 0, 80]);
    frame.extend(((8 + content.len()) as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(content);
    Some(frame)
}

/// A segment that opens a connection.
fn opening(input: &mut Input<'_>) -> Option<Vec<u8>> {
    let port = input.byte()?;
    let mut frame = vec![2, 0xca, 0xba, 0, 0, 1];
    frame.extend(GUEST_MAC.0);
    frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 107, 0, 2, 198, 51, 100, 1]);
    frame.extend([4, port, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    Some(frame)
}

/// A segment that answers the stack's, with flags, numbers and data from the input.
fn answer(input: &mut Input<'_>, sent: &[u8]) -> Option<Vec<u8>> {
    if sent.get(12..14)? != [8, 0] || sent.get(23) != Some(&6) {
        return None;
    }
    let [flags, window, drift] = [input.byte()?, input.byte()?, input.byte()?];
    let content = input.bytes()?;
    let mut frame = [sent.get(6..12)?, sent.get(..6)?].concat();
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(((40 + content.len()) as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend(sent.get(30..34)?);
    frame.extend(sent.get(26..30)?);
    let theirs = sent.get(34..54)?;
    frame.extend(&theirs[2..4]);
    frame.extend(&theirs[..2]);
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap_or_default());
    let length = (sent.len() as u32).wrapping_sub(34 + u32::from(theirs[12] >> 4) * 4);
    let control = u32::from(theirs[13] & 3 != 0);
    let acknowledged = number(&theirs[4..8]).wrapping_add(length).wrapping_add(control);
    let sequence = number(&theirs[8..12]);
    frame.extend(sequence.wrapping_add(u32::from(drift >> 4)).to_be_bytes());
    frame.extend(acknowledged.wrapping_sub(u32::from(drift & 15)).to_be_bytes());
    frame.extend([0x50, flags, window, 0xff, 0, 0, 0, 0]);
    frame.extend(content);
    Some(frame)
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut stack = Stack::new(LIMITS, MAX_MTU, 7);
    let mut now = Duration::from_secs(1);
    let mut live: Vec<FlowId> = Vec::new();
    let mut last = Vec::new();
    while let Some(step) = input.byte() {
        let frame = match step & 7 {
            0 => input.bytes().map(<[u8]>::to_vec),
            1 => packet(&mut input),
            2 => opening(&mut input),
            3..=5 => answer(&mut input, &last),
            6 => {
                now += Duration::from_millis(1 << (step >> 4));
                stack.expire(now);
                None
            }
            _ => {
                if let Some(&id) = live.get(usize::from(step >> 5)) {
                    match step >> 3 & 3 {
                        0 => drop(stack.read(id, |bytes| bytes.len() / 2)),
                        1 => drop(stack.write(id, |room| room.len().min(3000))),
                        2 => stack.finish(id),
                        _ => stack.abort(now, id),
                    }
                }
                None
            }
        };
        if let Some(frame) = frame {
            stack.input(now, &frame);
        }
        while let Some(event) = stack.event() {
            match event {
                Event::Open(id, flow) => {
                    assert!(hardware_of(flow.source.ip()).is_some(), "{flow:?}");
                    if step & 0x80 == 0 {
                        stack.accept(now, id);
                    } else {
                        stack.reject(now, id);
                    }
                    live.push(id);
                }
                Event::Datagram(id, payload) if step & 0x80 == 0 => {
                    stack.datagram(now, id, &payload);
                }
                Event::Datagram(id, payload) => {
                    stack.unreachable(id, Unreachable::Prohibited, &payload);
                }
                Event::Ready(id) => {
                    if stack.guest_finished(id) {
                        stack.finish(id);
                    }
                }
                Event::Closed { id, .. } => live.retain(|other| *other != id),
            }
        }
        for _ in 0..4 {
            let Some(outgoing) = stack.output(now) else { break };
            assert!(outgoing.frame.len() <= 14 + usize::from(MAX_MTU));
            last = outgoing.frame.to_vec();
        }
        let counters = stack.counters();
        assert!(counters.flows <= LIMITS.flows as u64 && counters.memory <= LIMITS.memory as u64);
    }
    for id in live {
        stack.abort(now, id);
    }
    for _ in 0..100 {
        now += Duration::from_secs(100);
        stack.expire(now);
        while stack.output(now).is_some() {}
    }
    let counters = stack.counters();
    assert_eq!((counters.flows, counters.memory), (0, 0));
});

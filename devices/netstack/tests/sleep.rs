//! A host that slept: hours pass between one call and the next, where its clock counts them. Whoever waited is told at
//! once, once, and what comes afterwards works. In virtual time, for many seeds.

mod common;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use cabana_netstack::{Event, FlowId, Limits, MAX_MTU, Stack};
use common::frames;
use smoltcp::wire::{TcpControl, TcpSeqNumber};

/// Connections of each kind, and datagram flows.
const EACH: u16 = 20;
const KINDS: u16 = 6;
/// The longest that anything may need after the sleep: what smoltcp asks a silent guest, and how long.
const REST: Duration = Duration::from_secs(1500);

fn guest(port: u16) -> SocketAddr {
    SocketAddr::new([10, 107, 0, 2].into(), port)
}

fn server() -> SocketAddr {
    "198.51.100.1:443".parse().unwrap()
}

/// What the stack has for the guest, by the guest's port: a segment's place, and whether it is a reset.
fn output(stack: &mut Stack, now: Duration) -> Vec<(u16, TcpSeqNumber, bool)> {
    let mut frames = Vec::new();
    while let Some(outgoing) = stack.output(now) {
        frames.extend(frames::as_answer(outgoing.frame));
        assert!(frames.len() < 10_000, "there is no end of frames");
    }
    frames
}

/// The next question of the stack's.
fn asked(stack: &mut Stack) -> FlowId {
    let mut events = std::iter::from_fn(|| stack.event());
    let open = events.find_map(|event| match event {
        Event::Open(id, _) => Some(id),
        _ => None,
    });
    open.expect("a question")
}

/// Makes a connection; its name, and where the stack's stream begins.
fn connect(stack: &mut Stack, now: Duration, port: u16) -> (FlowId, TcpSeqNumber) {
    stack.input(now, &frames::syn(guest(port), server()));
    let id = asked(stack);
    assert!(stack.accept(now, id));
    let answers = output(stack, now);
    let answer = answers.into_iter().find(|(to, _, reset)| *to == port && !reset);
    let (_, place, _) = answer.expect("an answer");
    acknowledge(stack, now, port, place + 1);
    assert!(stack.is_established(id));
    (id, place + 1)
}

fn acknowledge(stack: &mut Stack, now: Duration, port: u16, place: TcpSeqNumber) {
    let own = TcpSeqNumber(i32::from(port) + 1);
    stack.input(now, &frames::segment(guest(port), server(), TcpControl::None, own, place, 65_535));
}

/// Flows of every kind in every state; the names of the datagram flows.
fn populate(stack: &mut Stack, now: Duration) -> Vec<FlowId> {
    let mut datagrams = Vec::new();
    for number in 0..EACH {
        let port = 1000 + number * KINDS;
        // Idle; with bytes that the guest has not acknowledged; the same, and ended; ended by the host alone.
        connect(stack, now, port);
        for (offset, bytes, ends) in [(1, 100_000, false), (2, 100_000, true), (3, 0, true)] {
            let (id, _) = connect(stack, now, port + offset);
            stack.write(id, |room| bytes.min(room.len()));
            if ends {
                stack.finish(id);
            }
        }
        // Answered, and silent since; not answered by the host yet.
        stack.input(now, &frames::syn(guest(port + 4), server()));
        let silent = asked(stack);
        assert!(stack.accept(now, silent));
        stack.input(now, &frames::syn(guest(port + 5), server()));
        asked(stack);
        stack.input(now, &frames::udp(guest(port), server(), b"hello"));
        datagrams.push(asked(stack));
    }
    output(stack, now);
    while let Some(event) = stack.event() {
        assert!(!matches!(event, Event::Closed { .. }), "closed before its time");
    }
    assert_eq!(stack.counters().flows, u64::from(EACH * (KINDS + 1)));
    datagrams
}

#[test]
fn a_host_that_slept_ends_what_is_dead_once_and_goes_on() {
    for seed in 1..=12 {
        let mut stack = Stack::new(Limits::default(), MAX_MTU, seed);
        let datagrams = populate(&mut stack, Duration::from_secs(1));
        let mut now = Duration::from_secs(1) + Duration::from_secs(7200 * seed);
        let (slept, mut sent) = (now, HashMap::<u16, Vec<bool>>::new());
        let mut closed: Vec<(FlowId, bool)> = Vec::new();
        let mut rounds = 0;
        loop {
            stack.expire(now);
            for (port, _, reset) in output(&mut stack, now) {
                sent.entry(port).or_default().push(reset);
            }
            closed.extend(std::iter::from_fn(|| stack.event()).filter_map(|event| match event {
                Event::Closed { id, broken } => Some((id, broken)),
                _ => None,
            }));
            let Some(next) = stack.deadline() else { break };
            now = now.max(next);
            rounds += 1;
            assert!(now < slept + REST && rounds < 1000, "seed {seed}: no end: {stack:?}");
        }
        // Each flow ends once: datagrams are forgotten, everything else is broken off.
        assert_eq!(closed.len(), usize::from(EACH * (KINDS + 1)), "seed {seed}");
        for (id, broken) in &closed {
            assert_eq!(*broken, !datagrams.contains(id), "seed {seed}");
        }
        // The guest hears of a connection's end by one reset, and of nothing else.
        for (port, frames) in &sent {
            assert_eq!(frames[..], [true], "seed {seed}: port {port}");
        }
        let told = (0..EACH * KINDS).filter(|port| port % KINDS < 5).count();
        assert_eq!(sent.len(), told, "seed {seed}");
        let counters = stack.counters();
        assert_eq!((counters.flows, counters.memory), (0, 0));
        // And a new connection is one.
        let (id, place) = connect(&mut stack, now, 999);
        assert_eq!(stack.write(id, |room| room.len().min(5)), 5);
        assert_eq!(output(&mut stack, now)[..], [(999, place, false)]);
    }
}

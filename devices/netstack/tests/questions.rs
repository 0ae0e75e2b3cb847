//! A guest repeats its first segment while the host is asked about it, and its repetitions cross the answer on the way.
//! One attempt is one question, whatever comes when. In virtual time, for many seeds.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use cabana_netstack::{Event, FlowId, Limits, MAX_MTU, Stack};
use common::frames;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % end
    }

    fn time(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.below(most.as_micros() as u64))
    }
}

fn server() -> SocketAddr {
    "198.51.100.1:443".parse().unwrap()
}

/// The questions that the stack has.
fn questions(stack: &mut Stack) -> Vec<FlowId> {
    let mut asked = Vec::new();
    while let Some(event) = stack.event() {
        if let Event::Open(id, _) = event {
            asked.push(id);
        }
    }
    asked
}

/// An attempt that is denied after a while; when the guest sees the reset.
fn attempt(random: &mut Random, stack: &mut Stack, begin: Duration, port: u16) -> Duration {
    let syn = frames::syn(SocketAddr::new([10, 107, 0, 2].into(), port), server());
    let denied = begin + random.time(Duration::from_secs(20));
    // Both directions keep frames for a while.
    let (there, back) = (random.time(Duration::from_secs(2)), random.time(Duration::from_secs(2)));
    let sees = denied + back;
    // Linux's: after one, three, seven, fifteen seconds.
    let sent = (0..5).map(|number| begin + Duration::from_secs((1 << number) - 1));
    let mut arrivals: Vec<_> = sent.filter(|at| *at < sees).map(|at| at + there).collect();
    let first = arrivals.remove(0);
    stack.input(first, &syn);
    let asked = questions(stack);
    assert_eq!(asked.len(), 1);
    let denied = denied.max(first);
    let mut answered = false;
    for at in arrivals {
        if at >= denied && !answered {
            stack.reject(denied, asked[0]);
            answered = true;
        }
        stack.expire(at);
        stack.input(at, &syn);
        assert_eq!(
            questions(stack),
            [],
            "a repetition at {at:?} of a segment denied at {denied:?}"
        );
    }
    if !answered {
        stack.reject(denied, asked[0]);
    }
    // Every repetition behind the answer has one of its own.
    while stack.output(sees).is_some() {}
    assert_eq!(questions(stack), []);
    assert_eq!(stack.counters().flows, 0);
    sees.max(denied)
}

#[test]
fn an_attempt_is_one_question_though_repetitions_cross_the_answer() {
    for seed in 1..=300 {
        let mut random = Random(seed);
        let mut stack = Stack::new(Limits::default(), MAX_MTU, seed);
        let mut now = Duration::from_secs(1);
        for port in 1..20 {
            // The next attempt of the same endpoints is a new one, once the old one is forgotten.
            now = attempt(&mut random, &mut stack, now, port) + Duration::from_secs(10);
            now = attempt(&mut random, &mut stack, now, port) + random.time(Duration::from_secs(1));
        }
    }
}

//! First segments that were answered with a reset a moment ago. A guest that repeats one before it has seen the reset
//! means the same attempt, about which nobody is to be asked twice. A new attempt has another sequence number.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::gate::Flow;

/// How long one is remembered: a guest repeats itself after a second, and takes frames sooner.
const HOLDS: Duration = Duration::from_secs(5);
/// The most that are remembered.
const MOST: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Refused {
    /// The sequence number, and until when.
    known: HashMap<Flow, (u32, Duration)>,
    /// The oldest first; an entry of a flow that was refused again is none any more.
    order: VecDeque<(Duration, Flow)>,
}

impl Refused {
    pub(crate) fn add(&mut self, now: Duration, flow: Flow, sequence: u32) {
        while let Some(&(until, oldest)) = self.order.front()
            && (until <= now || self.order.len() >= MOST)
        {
            self.order.pop_front();
            if self.known.get(&oldest).is_some_and(|(_, known)| *known == until) {
                self.known.remove(&oldest);
            }
        }
        let until = now + HOLDS;
        self.known.insert(flow, (sequence, until));
        self.order.push_back((until, flow));
    }

    pub(crate) fn holds(&self, now: Duration, flow: &Flow, sequence: u32) -> bool {
        self.known.get(flow).is_some_and(|(known, until)| *known == sequence && now < *until)
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::Protocol;

    fn flow(port: u16) -> Flow {
        let (source, destination) =
            (([10, 107, 0, 2], port).into(), ([198, 51, 100, 1], 443).into());
        Flow { protocol: Protocol::Tcp, source, destination }
    }

    #[test]
    fn an_attempt_is_remembered_for_a_while_and_no_other_is_taken_for_it() {
        let (mut refused, second) = (Refused::default(), Duration::from_secs(1));
        refused.add(second, flow(1), 7);
        assert!(refused.holds(second * 2, &flow(1), 7));
        assert!(!refused.holds(second * 2, &flow(1), 8) && !refused.holds(second * 2, &flow(2), 7));
        assert!(!refused.holds(second + HOLDS, &flow(1), 7));
    }

    #[test]
    fn what_is_remembered_has_a_limit() {
        let mut refused = Refused::default();
        for port in 1..=10_000 {
            refused.add(Duration::ZERO, flow(port), 1);
        }
        assert!(refused.known.len() <= MOST && refused.order.len() <= MOST);
        assert!(refused.holds(Duration::ZERO, &flow(10_000), 1));
        for _ in 0..10_000 {
            refused.add(Duration::ZERO, flow(1), 1);
        }
        assert!(refused.order.len() <= MOST && refused.holds(Duration::ZERO, &flow(1), 1));
        refused.add(HOLDS * 2, flow(2), 1);
        assert_eq!((refused.known.len(), refused.order.len()), (1, 1));
    }
}

//! The table of flows: who is there, what is due and when, and what is told of it.

use std::time::Duration;

use super::{Entry, Event, Stack, State};
use crate::gate::{Flow, FlowId};
use crate::tcp::Connection;

/// Replies that wait for the guest to take them; beyond that they are lost, as on any link.
const MAX_REPLIES: usize = 512;
/// Room for one direction of a connection, at least.
const MIN_BUFFER: usize = 4 << 10;

impl Stack {
    /// Notes where a connection stands after it had nothing to send.
    pub(super) fn settle(&mut self, now: Duration, id: FlowId) {
        let Some(entry) = self.flows.get_mut(&id) else { return };
        let State::Live(connection) = &mut entry.state else { return };
        if let Some(broken) = connection.is_over() {
            self.remove(id, broken);
            return;
        }
        let established = connection.is_established();
        let mut deadline = connection.deadline(now);
        if entry.half_open {
            if established {
                entry.half_open = false;
                self.half_open -= 1;
            } else {
                let last = entry.used + self.limits.handshake;
                deadline = Some(deadline.map_or(last, |at| at.min(last)));
            }
        }
        // What smoltcp could not do at once it does a little later, never in a tight loop.
        let soonest = now + Duration::from_millis(1);
        self.set_deadline(id, deadline.map(|at| at.max(soonest)));
    }

    pub(super) fn insert(&mut self, now: Duration, flow: Flow, state: State) -> FlowId {
        let id = self.next_id;
        self.next_id += 1;
        let half_open = !matches!(state, State::Datagrams);
        self.half_open += usize::from(half_open);
        self.datagrams += usize::from(!half_open);
        self.counters.flows_opened += 1;
        self.by_key.insert(flow, id);
        let entry =
            Entry { flow, state, queued: false, told: false, half_open, deadline: None, used: now };
        self.flows.insert(id, entry);
        id
    }

    pub(super) fn remove(&mut self, id: FlowId, broken: bool) {
        let Some(entry) = self.flows.remove(&id) else { return };
        self.by_key.remove(&entry.flow);
        if let Some(at) = entry.deadline {
            self.timers.remove(&(at, id));
        }
        self.half_open -= usize::from(entry.half_open);
        match entry.state {
            State::Live(connection) => self.memory -= connection.memory,
            State::Datagrams => self.datagrams -= 1,
            State::Opening(_) => {}
        }
        self.events.push_back(Event::Closed { id, broken });
    }

    pub(super) fn set_deadline(&mut self, id: FlowId, deadline: Option<Duration>) {
        let Some(entry) = self.flows.get_mut(&id) else { return };
        if entry.deadline == deadline {
            return;
        }
        if let Some(before) = std::mem::replace(&mut entry.deadline, deadline) {
            self.timers.remove(&(before, id));
        }
        if let Some(at) = deadline {
            self.timers.insert((at, id));
        }
    }

    /// The connection may have a packet for the guest.
    pub(super) fn touch(&mut self, id: FlowId) {
        if let Some(entry) = self.flows.get_mut(&id)
            && !std::mem::replace(&mut entry.queued, true)
        {
            self.ready.push_back(id);
        }
    }

    pub(super) fn tell(&mut self, id: FlowId) {
        if let Some(entry) = self.flows.get_mut(&id)
            && !std::mem::replace(&mut entry.told, true)
        {
            self.events.push_back(Event::Ready(id));
        }
    }

    pub(super) fn answer(&mut self, frame: Option<Vec<u8>>) {
        let Some(frame) = frame else { return };
        if self.replies.len() < MAX_REPLIES {
            self.replies.push_back(frame);
        } else {
            self.counters.over_limit += 1;
        }
    }

    /// How large a new connection's buffers are: less as memory runs out, so that many small ones fit where
    /// few large ones did not.
    pub(super) fn buffer(&self) -> usize {
        let left = self.limits.memory.saturating_sub(self.memory);
        (left / 1024).clamp(MIN_BUFFER, self.limits.buffer.max(MIN_BUFFER))
    }

    pub(super) fn next_seed(&mut self) -> u64 {
        // SplitMix64: distinct seeds from one.
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn live(&self, id: FlowId) -> Option<&Connection> {
        match &self.flows.get(&id)?.state {
            State::Live(connection) => Some(connection),
            _ => None,
        }
    }

    pub(super) fn live_mut(&mut self, id: FlowId) -> Option<&mut Connection> {
        match &mut self.flows.get_mut(&id)?.state {
            State::Live(connection) => Some(connection),
            _ => None,
        }
    }
}

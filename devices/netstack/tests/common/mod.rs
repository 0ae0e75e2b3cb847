//! A network, its loop, and gates for tests.
#[allow(dead_code, reason = "each suite uses a part")]
pub(crate) mod frames;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cabana_netstack::testing::{Guest, Weather};
use cabana_netstack::{
    Flow, FlowId, Gate, Inspection, Limits, MAX_MTU, Network, NetworkConfig, Opening, Order,
    Publish, Waker,
};
use cabana_os::EventLoop;

/// A gate that lets everything pass, or nothing, and does what a test tells it.
#[derive(Clone, Default)]
pub(crate) struct Open {
    pub(crate) state: Arc<Mutex<OpenState>>,
}

#[derive(Default)]
pub(crate) struct OpenState {
    pub(crate) open: bool,
    pub(crate) hold: bool,
    pub(crate) inspect: bool,
    pub(crate) asked: Vec<(FlowId, Flow)>,
    pub(crate) closed: HashMap<FlowId, (u64, u64)>,
    pub(crate) queries: Vec<Vec<u8>>,
    pub(crate) orders: Vec<Order>,
    pub(crate) waker: Option<Waker>,
}

#[allow(dead_code, reason = "each suite uses a part")]
impl Open {
    pub(crate) fn everything() -> Self {
        let gate = Self::default();
        gate.state.lock().unwrap().open = true;
        gate
    }

    pub(crate) fn nothing() -> Self {
        Self::default()
    }

    pub(crate) fn order(&self, order: Order) {
        let mut state = self.state.lock().unwrap();
        state.orders.push(order);
        let waker = state.waker.clone().unwrap();
        drop(state);
        waker();
    }
}

impl Gate for Open {
    fn start(&mut self, waker: Waker) {
        self.state.lock().unwrap().waker = Some(waker);
    }

    fn open(&mut self, _now: Duration, id: FlowId, flow: &Flow) -> Opening {
        let mut state = self.state.lock().unwrap();
        state.asked.push((id, *flow));
        match (state.open, state.hold) {
            (_, true) => Opening::Hold,
            (true, _) => Opening::Connect { to: flow.destination, inspect: state.inspect },
            (false, _) => Opening::Refuse,
        }
    }

    /// Answers a query by itself, backwards.
    fn query(&mut self, _now: Duration, id: FlowId, _flow: &Flow, message: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.queries.push(message.to_vec());
        let mut answer = message.to_vec();
        answer.reverse();
        state.orders.push(Order::Answer(id, answer));
    }

    /// Holds everything back up to a full stop, and refuses an exclamation mark.
    fn inspect(&mut self, _id: FlowId, bytes: &[u8], out: &mut Vec<u8>) -> Inspection {
        if bytes.contains(&b'!') {
            return Inspection::Refuse;
        }
        out.extend_from_slice(bytes);
        if bytes.contains(&b'.') { Inspection::Pass } else { Inspection::Watch }
    }

    fn closed(&mut self, _now: Duration, id: FlowId, sent: u64, received: u64) {
        self.state.lock().unwrap().closed.insert(id, (sent, received));
    }

    fn poll(&mut self, _now: Duration) -> Option<Order> {
        self.state.lock().unwrap().orders.pop()
    }
}

/// A network and its loop.
pub(crate) struct World {
    pub(crate) network: Network,
    pub(crate) events: EventLoop,
}

#[allow(dead_code, reason = "each suite uses a part")]
impl World {
    pub(crate) fn new(gate: Open) -> Self {
        Self::with(gate, Limits::default(), Vec::new())
    }

    pub(crate) fn with(gate: Open, limits: Limits, publish: Vec<Publish>) -> Self {
        let events = EventLoop::spawn("net").unwrap();
        let config =
            NetworkConfig { mtu: MAX_MTU, limits, gate: Box::new(gate), publish, capture: None };
        let network = Network::start(config, events.handle()).unwrap();
        Self { network, events }
    }

    pub(crate) fn guest(&self) -> Guest {
        Guest::new(self.network.clone(), &self.events.handle(), Weather::default())
    }
}

/// Bytes that differ everywhere.
#[allow(dead_code, reason = "each suite uses a part")]
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Waits for what another thread brings about.
#[allow(dead_code, reason = "each suite uses a part")]
pub(crate) fn wait_until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "it does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

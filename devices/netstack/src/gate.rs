//! Who decides: the seam between the stack, which knows packets and sockets, and the egress policy, which
//! knows rules and names.
//!
//! The stack asks; the gate answers at once, or holds the flow and gives an [`Order`] later. All calls come
//! from one thread, in order, and must not block: a resolver or a person that takes time answers through
//! the waker that [`Gate::start`] hands over. Times are those since the stack began.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Names a flow. The stack chooses it and uses it once.
pub type FlowId = u64;

/// Tells the stack's thread to ask [`Gate::poll`]; may be called from any thread, and once too often.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// What a flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP (RFC 9293).
    Tcp,
    /// UDP (RFC 768), one flow for each pair of endpoints.
    Udp,
    /// Echo requests and their replies (RFC 792, RFC 4443), one flow for each identifier.
    Icmp,
}

/// A conversation that the guest wants to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// What it carries.
    pub protocol: Protocol,
    /// Who in the guest: the address says which session, because the guest's kernel lets none use
    /// another's. The port is the identifier for ICMP.
    pub source: SocketAddr,
    /// Whom it wants to reach; port 0 for ICMP.
    pub destination: SocketAddr,
}

/// What becomes of a flow.
#[derive(Debug)]
pub enum Opening {
    /// The host connects to this address. With `inspect`, [`Gate::inspect`] sees every byte of the guest's
    /// before it leaves, until it says [`Inspection::Pass`].
    Connect {
        /// Where to: the flow's destination, or where the gate redirects it.
        to: SocketAddr,
        /// Whether the gate wants to see what the guest sends (TCP only).
        inspect: bool,
    },
    /// Somebody in this process serves the other end of this connected stream socket: a proxy's client, a
    /// terminator of TLS (TCP only).
    Serve(socket2::Socket),
    /// The guest is told that nobody may go there: a reset, or ICMP "administratively prohibited".
    Refuse,
    /// The flow waits until an [`Order::Open`] comes.
    Hold,
}

/// What becomes of bytes that the guest sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inspection {
    /// What stands in `out` may leave; go on showing what comes.
    Watch,
    /// What stands in `out` may leave, and everything that follows.
    Pass,
    /// Nothing of it may leave; both ends are reset.
    Refuse,
}

/// What the gate has decided in the meantime.
#[derive(Debug)]
pub enum Order {
    /// What becomes of a flow that was held.
    Open(FlowId, Opening),
    /// The answer to a query of this flow.
    Answer(FlowId, Vec<u8>),
    /// The flow may not go on: both ends are reset.
    Close(FlowId),
}

/// Decides what leaves the machine.
pub trait Gate: Send {
    /// Called once before all else. `waker` is to be called whenever [`Gate::poll`] has something.
    fn start(&mut self, _waker: Waker) {}

    /// May this flow be? Asked once for each flow, before anything of it leaves.
    fn open(&mut self, now: Duration, id: FlowId, flow: &Flow) -> Opening;

    /// A DNS message (RFC 1035 §4.1) that came to the gateway's port 53, by UDP or without its length by
    /// TCP. Nothing else answers names. A query that gets no [`Order::Answer`] is lost.
    fn query(&mut self, _now: Duration, _id: FlowId, _flow: &Flow, _message: &[u8]) {}

    /// The guest sent `bytes` on an inspected flow; the gate adds to `out` what may leave now, and keeps
    /// the rest itself.
    fn inspect(&mut self, _id: FlowId, bytes: &[u8], out: &mut Vec<u8>) -> Inspection {
        out.extend_from_slice(bytes);
        Inspection::Pass
    }

    /// A flow has ended; it had `sent` bytes from the guest and `received` bytes to it.
    fn closed(&mut self, _now: Duration, _id: FlowId, _sent: u64, _received: u64) {}

    /// The next thing that was decided in the meantime.
    fn poll(&mut self, _now: Duration) -> Option<Order> {
        None
    }

    /// When [`Gate::poll`] has something at the latest: a question whose time passes.
    fn deadline(&self) -> Option<Duration> {
        None
    }
}

/// Lets nothing pass: what a network is until somebody says otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct DenyAll;

impl Gate for DenyAll {
    fn open(&mut self, _now: Duration, _id: FlowId, _flow: &Flow) -> Opening {
        Opening::Refuse
    }
}

impl Flow {
    /// The session's address.
    pub fn source_ip(&self) -> IpAddr {
        self.source.ip()
    }
}

//! A user-mode TCP/IP stack: the guest's frames in, the host's sockets out. No privileges, adapters, routes or
//! firewall rules of the host are involved.
//!
//! - [`Stack`] is pure: frames in, frames out, events in between. It knows TCP (smoltcp's, one interface for
//!   each connection), UDP, echo requests, ARP and neighbour discovery.
//! - [`Network`] puts the host's sockets behind it, on one event loop, and is what a network card plugs into
//!   ([`FrameLink`]).
//! - [`Gate`] decides what may leave.
//!
//! # What the guest can make the host hold
//!
//! [`Limits`] bounds it. A connection that the guest opens costs its first packet and one connecting socket
//! until the other side is there; a guest that answers nothing holds buffers for [`Limits::handshake`]. Buffers
//! grow smaller as memory runs out. What is beyond a limit is dropped, as on any network, and counted.

mod cable;
mod capture;
mod config;
mod gate;
mod packet;
mod refused;
mod relay;
mod stack;
mod tcp;
#[cfg(feature = "testing")]
pub mod testing;

pub use cable::{Cable, Plug};
pub use capture::Capture;
pub use config::{
    GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, GUEST_MAC, Limits, MACHINE_V4, MACHINE_V6, MAX_MTU,
    MAX_SESSIONS, MIN_MTU, PREFIX_V4, PREFIX_V6, hardware_of, session_addresses, session_mac,
};
pub use gate::{DenyAll, Flow, FlowId, Gate, Inspection, Opening, Order, Protocol, Waker};
pub use packet::Unreachable;
pub use relay::{FrameLink, Network, NetworkConfig, NetworkCounters, NetworkError, Publish};
pub use smoltcp::wire::EthernetAddress;
pub use stack::{Event, Outgoing, Stack, StackCounters};

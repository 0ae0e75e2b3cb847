//! A user-mode TCP/IP stack: the guest's frames in, the host's sockets out.

mod gate;

pub use gate::{DenyAll, Flow, FlowId, Gate, Inspection, Opening, Order, Protocol, Waker};

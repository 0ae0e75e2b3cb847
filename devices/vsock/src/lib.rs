//! virtio-vsock (virtio 1.3 §5.10) with the host's end of every connection in this process.
//!
//! [`VsockDevice`] is what the guest sees, [`VsockHost`] what the host's threads use: they connect to
//! ports of the guest, listen for connections from it, and get a [`VsockStream`] for each.
//!
//! # The host's end is memory, not a socket
//!
//! A stream could have been one end of a socket pair, which every poll loop knows. It is a pair of
//! queues in memory with condition variables instead: that is the same on every operating system,
//! costs no descriptors, copies each byte once less and needs no thread in between. For loops that
//! wait for many things at once there are [`VsockStream::try_read`], [`VsockStream::try_write`] and
//! [`VsockStream::set_waker`]; a waker that signals a `cabana_os::Event`, wakes a task or sends on a
//! channel fits a stream into any of them.
//!
//! - **From the guest**: the event loop copies a packet out of guest memory into blocks of the
//!   connection's inbox; a reader copies them on. While nothing waits a connection holds no block.
//! - **To the guest**: the writer's own thread copies straight into the guest's receive buffers and
//!   raises the interrupt. Without credit or buffers it waits. Nothing is kept in between, so a
//!   write that has returned has reached the guest, and closing has nothing to flush.
//!
//! Nothing here waits for a timer, and the event loop is woken by the guest alone.
//!
//! # Bounds
//!
//! Each connection keeps at most [`VsockConfig::buffer`] bytes; a guest that sends beyond its credit
//! loses the connection. There are at most [`VsockConfig::max_connections`]. Packets that make no
//! sense are answered with a reset; when too many of those wait for buffers the transmit queue is
//! left alone until they are gone.

mod connection;
mod device;
mod error;
mod host;
mod inbox;
mod link;
mod packet;
mod rx;
mod state;
mod stream;
mod tx;

pub use device::{VsockConfig, VsockDevice};
pub use error::VsockError;
pub use host::{VsockHost, VsockListener};
pub use state::VsockState;
pub use stream::VsockStream;

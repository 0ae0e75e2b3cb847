//! What Cabana's host and its guest agent say to each other.
//!
//! Two kinds of connection exist, both over vsock, both carrying [`frame`]s:
//!
//! - The **control connection** is made once by the agent, to [`HOST_CID`] and [`CONTROL_PORT`]. The
//!   agent says [`GuestMessage::Hello`], the host answers [`HostMessage::Setup`], the agent applies it
//!   and says [`GuestMessage::Ready`] or [`GuestMessage::SetupFailed`]. The machine lives as long as
//!   this connection: when the host closes it, the agent shuts the machine down. In a machine that was
//!   [held](service::Request::Freeze) it makes another connection instead: it may have come out of a
//!   snapshot, and the host answers its `Hello` with [`HostMessage::Renew`].
//! - An **exec connection** is made by the host to the guest's [`EXEC_PORT`], one for each command or
//!   other request. See [`exec`] for a command's frames and their order, and [`service`] for what is no
//!   command: sessions, files, tunnels.
//! - The **watch connection** is made by the agent, to [`WATCH_PORT`], where there are shares. See
//!   [`watch`].
//!
//! Each end treats the other as hostile: lengths are bounded before anything is allocated, and every
//! malformed byte is a typed [`ProtocolError`] that ends the one connection it came over.
//!
//! The encoding of a generation never changes: `tests/goldens.rs` pins the bytes of every message.

pub mod control;
mod error;
pub mod exec;
pub mod exit_port;
pub mod frame;
pub mod service;
pub mod session;
pub mod watch;

pub use control::{
    GuestMessage, Hello, HostMessage, NetworkSetup, Ready, Renew, RootSetup, Setup, SetupFailed,
    ShareMount,
};
pub use error::ProtocolError;
pub use exec::{Exec, ExecFailed, ExecReply, ExecRequest, ExitStatus, FailureKind, TtySize};
pub use frame::{
    Decoder, Frame, Kind, MAX_PAYLOAD, Message, read_frame, read_message, write_frame,
    write_message,
};
pub use service::{Cause, Entry, Failed, OwnerInfo, ProcessInfo, Reply, Request};
pub use session::{Event, SessionCard, SessionInfo, SessionLimits, SessionSpec};

/// The generation of messages that this crate speaks; [`Hello::protocol`] carries it.
pub const PROTOCOL_VERSION: u32 = 3;

/// The host's vsock context identifier (virtio 1.3 §5.10.4).
pub const HOST_CID: u32 = 2;

/// The host's vsock port on which it awaits the agent's control connection.
pub const CONTROL_PORT: u32 = 1024;

/// The host's vsock port on which it awaits the agent's watch connection.
pub const WATCH_PORT: u32 = 1025;

/// The guest's end of the watch connection: a port that only root may have (below 1024), so that no
/// other program of the guest is taken for the agent.
pub const WATCH_SOURCE: u32 = 1023;

/// The guest's vsock port on which the agent awaits exec connections. It serves [`HOST_CID`] alone.
pub const EXEC_PORT: u32 = 1024;

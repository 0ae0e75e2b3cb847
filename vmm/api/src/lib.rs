//! Machines, sessions, commands, events and errors as plain data: the one schema of the Rust engine, the
//! C and Node.js interfaces, `cabana serve` and the command line.
//!
//! Names and meanings stay once they are published; fields may come, and readers skip what they do not
//! know. `docs/serve.schema.json` is this crate as JSON Schema, kept by a test.

mod bytes;
mod event;
mod message;
mod network;
mod session;
mod spec;

pub use bytes::Bytes;
pub use event::{BackgroundStatus, Exit, MachineEvent, MachineState, MachineStatus, ProcessEvent};
pub use message::{Call, Fault, Greeting, Named, Outcome, Reply, Request, VERSION, schema};
pub use network::{
    NetworkEvent, NetworkSpec, NetworkStatus, NetworkVerdict, NetworkWhat, PolicySpec, PublishSpec,
    Remember,
};
pub use session::{
    Copied, CopySpec, ForwardStatus, Place, SessionLimits, SessionSpec, SessionStatus,
};
pub use spec::{CommandSpec, EngineSpec, MachineSpec, ShareSpec, TtySize};

//! What an engine and its worker say to each other: one JSON message a packet, with open handles
//! beside it.
//!
//! The engine's first message is [`Request::Start`]. Everything else may come in any order. A worker
//! serves one machine and ends with it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use cabana_os::Channel;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The generation of these messages. A worker of another one refuses to start.
pub const VERSION: u32 = 1;

/// What the engine asks.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Boot a machine. Handles: those of [`Start::handles`], in its order.
    Start(Box<Start>),
    /// Connect to a vsock port of the guest and pass bytes on. Handle: a stream socket.
    Connect {
        /// Names the conversation in [`Notice::Refused`].
        conversation: u64,
        /// The guest's port.
        port: u32,
    },
    /// Show one more folder to the guest. Handle: the folder.
    Attach {
        /// Named in the answer.
        call: u64,
        /// The name in the virtio-fs device.
        name: String,
        /// The guest may only read.
        read_only: bool,
    },
    /// Show a folder no longer.
    Detach {
        /// Named in the answer.
        call: u64,
        /// The name in the virtio-fs device.
        name: String,
    },
    /// Let no vCPU run. Handle, if there is one: a file for the machine's memory, as long as that and nothing but
    /// a hole.
    Pause {
        /// Named in the answer.
        call: u64,
    },
    /// Let the vCPUs run again.
    Resume {
        /// Named in the answer.
        call: u64,
    },
    /// Say what the guest's console said last.
    Console {
        /// Named in the answer.
        call: u64,
    },
    /// End the machine as if its power had failed.
    Stop,
}

/// What a machine is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// [`VERSION`] of the engine.
    pub version: u32,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Added to the kernel's command line; the whole of it for [`Guest::Bare`].
    pub command_line: String,
    /// What runs in it.
    pub guest: Guest,
    /// What comes with this message, in order.
    pub handles: Vec<Handle>,
    /// Whether the worker confines itself.
    pub confine: bool,
}

/// What runs in a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Guest {
    /// Linux with an agent.
    Agent,
    /// Any kernel; its serial port goes to [`Role::Serial`].
    Bare,
}

/// One handle and what it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Handle {
    /// What it is for.
    pub role: Role,
    /// The engine's name of it, for errors.
    pub name: String,
}

/// What a handle is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// The kernel.
    Kernel,
    /// The agent's initramfs, or any.
    Initrd,
    /// The root image.
    Image,
    /// The writable disk.
    Disk {
        /// Nobody keeps it: it has no name, and what is flushed to it is lost all the same.
        vanishing: bool,
    },
    /// A folder that the guest sees from the start.
    Share {
        /// Where it appears.
        guest: String,
        /// The guest may only read.
        read_only: bool,
    },
    /// A folder below which shares may be attached later.
    ShareRoot,
    /// The process with which the worker ends.
    Parent,
    /// The stream socket for the control connection.
    Control,
    /// Where the serial port's output goes.
    Serial,
}

/// What the worker says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Notice {
    /// The start has come this far.
    Progress(Progress),
    /// The connection could not be made; its socket is closed.
    Refused {
        /// Which.
        conversation: u64,
        /// Why.
        fault: Fault,
    },
    /// What came of a call.
    Answer {
        /// Which.
        call: u64,
        /// Text if one was asked for.
        result: Result<String, Fault>,
    },
    /// The host could not do what the guest asked of its disk.
    DiskFailed(String),
    /// The machine has ended, and the worker ends too; nothing comes after.
    Ended(Result<(), Fault>),
}

/// How far a start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// The worker has confined itself, in these ways.
    Confined {
        /// System calls are filtered.
        system_calls: bool,
        /// Files are out of reach but for those handed over.
        files: bool,
    },
    /// The vCPUs run.
    Booting,
    /// The agent has connected.
    Connected,
}

/// An error of the machine's for the engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// [`cabana_sandbox::Error::code`].
    pub code: String,
    /// One sentence.
    pub message: String,
}

impl From<&cabana_sandbox::Error> for Fault {
    fn from(error: &cabana_sandbox::Error) -> Self {
        Self { code: error.code().to_owned(), message: error.to_string() }
    }
}

/// Sends a message.
pub fn send(
    channel: &Channel,
    message: &impl Serialize,
    handles: &[BorrowedFd<'_>],
) -> io::Result<()> {
    channel.send(&serde_json::to_vec(message)?, handles)
}

/// Waits for a message; `None` once the peer is gone.
pub fn receive<M: DeserializeOwned>(channel: &Channel) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let Some((bytes, handles)) = channel.receive()? else { return Ok(None) };
    Ok(Some((serde_json::from_slice(&bytes)?, handles)))
}

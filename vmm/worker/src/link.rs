//! What an engine and its worker say to each other: one JSON message a packet, with open handles
//! beside it.
//!
//! The engine's first message is [`Request::Start`], or [`Request::Network`] to a worker that is to serve a machine's
//! network in place of a machine. Everything else may come in any order. A worker serves one machine, or one network,
//! and ends with it.

use std::io;
use std::net::SocketAddr;

use cabana_os::{BorrowedHandle, Channel, OwnedHandle};
use cabana_sandbox::egress::{Answer, AskId, EgressPolicy, Event};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The generation of these messages. A worker of another one refuses to start.
pub const VERSION: u32 = 3;

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
    /// Show one more folder to the guest. Handles: the folder, and with a journal those of [`Role::Journal`].
    Attach {
        /// Named in the answer.
        call: u64,
        /// The name in the virtio-fs device.
        name: String,
        /// The guest may only read.
        read_only: bool,
        /// The most bytes of its journal.
        journal: Option<u64>,
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
    /// Serve a network. Handles: those of [`NetworkStart::handles`], in its order. The answer is [`NetworkBegun`], as
    /// JSON.
    Network {
        /// Named in the answer.
        call: u64,
        /// The network.
        start: Box<NetworkStart>,
    },
    /// Give the addresses of a slot to a session, or take them back, and reset what was open.
    Assign {
        /// Named in the answer.
        call: u64,
        /// The slot.
        slot: u16,
        /// Whose it is from now on.
        session: Option<String>,
    },
    /// Put another policy in the place of the one that holds. The answer is its number.
    Policy {
        /// Named in the answer.
        call: u64,
        /// The policy.
        policy: EgressPolicy,
    },
    /// Answer a question.
    Reply {
        /// Named in the answer.
        call: u64,
        /// The question.
        ask: AskId,
        /// The answer.
        answer: Answer,
    },
    /// Tell figures of the network. The answer is [`NetworkFigures`], as JSON.
    Figures {
        /// Named in the answer.
        call: u64,
    },
}

/// What a network is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkStart {
    /// [`VERSION`] of the engine.
    pub version: u32,
    /// The largest IP packet.
    pub mtu: u16,
    /// What may leave.
    pub policy: EgressPolicy,
    /// Ports of the host's, and of the guest's to which they lead.
    pub publish: Vec<(SocketAddr, u16)>,
    /// Which proxy is for what: `none`, `env` for what the worker's environment says, or a URL.
    pub proxy: String,
    /// Secrets, as words with their values, and the bytes that make their placeholders.
    pub secrets: Vec<(String, [u8; 16])>,
    /// What comes with this message, in order.
    pub handles: Vec<Handle>,
}

/// A network that has begun.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NetworkBegun {
    /// Where the host listens, in the order of [`NetworkStart::publish`].
    pub published: Vec<SocketAddr>,
    /// The authority that the guest has to trust for the sake of secrets, in PEM.
    pub authority: Option<String>,
}

/// Figures of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkFigures {
    /// Flows that there are.
    pub flows: u64,
    /// Flows that there have been.
    pub flows_opened: u64,
    /// Flows that the policy refused.
    pub denied: u64,
    /// Bytes that left the guest.
    pub bytes_sent: u64,
    /// Bytes that came to it.
    pub bytes_received: u64,
    /// Packets whose source is an address that is not the sender's.
    pub forged: u64,
    /// Frames with nothing that is served.
    pub ignored: u64,
    /// Packets that found a limit reached.
    pub over_limit: u64,
    /// Bytes of connections' buffers.
    pub memory: u64,
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
        /// The most bytes of its journal, whose two [`Role::Journal`] come next.
        journal: Option<u64>,
    },
    /// A journal's own folder, and then the one where it keeps things.
    Journal,
    /// A folder below which shares may be attached later.
    ShareRoot,
    /// The process with which the worker ends.
    Parent,
    /// The stream socket for the control connection.
    Control,
    /// Where the serial port's output goes.
    Serial,
    /// The packet socket between a card and its network; one end each.
    Cable {
        /// The largest IP packet.
        mtu: u16,
    },
    /// The file for a network's log.
    Log,
    /// The file for a network's frames.
    Capture,
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
    /// Something happened in the network.
    Network(Box<Event>),
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

impl Fault {
    pub(crate) fn new(code: &str, message: impl std::fmt::Display) -> Self {
        Self { code: code.to_owned(), message: message.to_string() }
    }
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
    handles: &[BorrowedHandle<'_>],
) -> io::Result<()> {
    channel.send(&serde_json::to_vec(message)?, handles)
}

/// Waits for a message; `None` once the peer is gone.
pub fn receive<M: DeserializeOwned>(
    channel: &Channel,
) -> io::Result<Option<(M, Vec<OwnedHandle>)>> {
    let Some((bytes, handles)) = channel.receive()? else { return Ok(None) };
    Ok(Some((serde_json::from_slice(&bytes)?, handles)))
}

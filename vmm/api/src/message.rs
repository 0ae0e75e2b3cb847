//! Requests and replies of `cabana serve`: one JSON object a line in each direction.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    BackgroundStatus, Bytes, CommandSpec, Copied, CopySpec, ForwardStatus, MachineEvent,
    MachineSpec, MachineStatus, NetworkStatus, Place, PolicySpec, ProcessEvent, Remember,
    SessionLimits, SessionSpec, SessionStatus, ShareSpec, TtySize,
};

/// The generation of this schema.
pub const VERSION: u32 = 1;

/// The server's first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Greeting {
    /// [`VERSION`] of the server.
    pub cabana: u32,
    /// The program's version, for people.
    pub version: String,
}

/// A line of the client's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Request {
    /// Chosen by the client; names the reply.
    pub id: u64,
    /// What is asked.
    #[serde(flatten)]
    pub call: Call,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "call", rename_all = "kebab-case")]
#[allow(
    clippy::large_enum_variant,
    reason = "made once a request and not kept; paths are larger on Windows"
)]
pub enum Call {
    /// Make a machine; nothing starts yet. Answer: `machine`.
    MachineCreate {
        /// The machine.
        spec: MachineSpec,
    },
    /// Start it now. Answer: `machine`, once it takes commands.
    MachineStart(Named),
    /// All machines of this server. Answer: `machines`.
    MachineList,
    /// Flush and end it. Answer: `done`.
    MachineShutdown(Named),
    /// End it as if its power had failed. Answer: `done`.
    MachineStop(Named),
    /// Let its vCPUs stand still until it is used. Answer: `done`.
    MachineSuspend(Named),
    /// End it and forget it. Answer: `done`.
    MachineRemove(Named),
    /// What its console said last. Answer: `console`.
    MachineConsole(Named),
    /// Make a session, and start its machine before if need be. Answer: `session`.
    SessionCreate {
        /// The machine.
        machine: String,
        /// The session.
        spec: SessionSpec,
    },
    /// Give a session other limits. Answer: `session`.
    SessionLimit {
        /// The machine.
        machine: String,
        /// The session.
        session: String,
        /// All of its limits from now on.
        limits: SessionLimits,
    },
    /// All sessions of a machine. Answer: `sessions`.
    SessionList(Named),
    /// End a session's processes and delete what it has. Answer: `done`.
    SessionRemove {
        /// The machine.
        machine: String,
        /// The session.
        session: String,
    },
    /// Show a folder of the host's in the guest, below a share or one of the machine's `share_roots`. Answer:
    /// `done`.
    ShareAdd {
        /// Where.
        #[serde(flatten)]
        place: Place,
        /// The folder.
        share: ShareSpec,
    },
    /// Take a folder away that was shown after the start. Answer: `done`.
    ShareRemove {
        /// Where from.
        #[serde(flatten)]
        place: Place,
        /// Its path in the guest.
        guest: String,
    },
    /// The folders that are shown, those of the start first. Answer: `shares`.
    ShareList(Place),
    /// Copy a file or a folder of the host's into the guest. Answer: `copied`.
    CopyIn {
        /// Where to.
        #[serde(flatten)]
        place: Place,
        /// What.
        copy: CopySpec,
    },
    /// Copy a file or a folder of the guest's to the host. Answer: `copied`.
    CopyOut {
        /// Where from.
        #[serde(flatten)]
        place: Place,
        /// What.
        copy: CopySpec,
    },
    /// Write a file in the guest. Answer: `done`.
    WriteFile {
        /// Where.
        #[serde(flatten)]
        place: Place,
        /// An absolute path or, in a session, one from its home.
        path: String,
        /// All of its bytes.
        data: Bytes,
        /// Its permissions; absent: 420, which is 644 in octal.
        #[serde(default)]
        mode: Option<u32>,
    },
    /// Read a file in the guest, of 8 MiB at most. Answer: `data`.
    ReadFile {
        /// Where.
        #[serde(flatten)]
        place: Place,
        /// An absolute path or, in a session, one from its home.
        path: String,
    },
    /// Lead a TCP port of the host's to one of the guest's, until `forward-end` or the connection's end.
    /// Answer: `forward`.
    Forward {
        /// Where to.
        #[serde(flatten)]
        place: Place,
        /// Where to listen on the host; port 0 is any free one.
        host: SocketAddr,
        /// Where to connect in the guest.
        guest: SocketAddr,
    },
    /// Lead a TCP port of the guest's to one that the host reaches. Answer: `forward`.
    ForwardBack {
        /// Where from.
        #[serde(flatten)]
        place: Place,
        /// Where to listen in the guest; port 0 is any free one.
        guest: SocketAddr,
        /// Where to connect from the host.
        host: SocketAddr,
    },
    /// End a port that leads elsewhere, with its connections. Answer: `done`.
    ForwardEnd {
        /// Its number.
        forward: u64,
    },
    /// How a machine's network is. Answer: `network`.
    NetworkStatus(Named),
    /// Put other rules in place of a machine's or, absent for the machine's, a session's. They hold at once, for
    /// open connections too. Answer: `policy`, their number.
    NetworkPolicy {
        /// Whose.
        #[serde(flatten)]
        place: Place,
        /// The rules.
        #[serde(default)]
        policy: Option<PolicySpec>,
    },
    /// Answer a question of a machine's network. Answer: `done`.
    NetworkAnswer {
        /// The machine.
        machine: String,
        /// The question's number.
        ask: u64,
        /// May it pass?
        allow: bool,
        /// For how long and for whom the answer holds.
        #[serde(default)]
        remember: Remember,
    },
    /// Start a command. Answer: `process`; its events follow, to the last.
    Exec {
        /// The machine.
        machine: String,
        /// The command.
        command: CommandSpec,
    },
    /// All commands in the background. Answer: `backgrounds`.
    BackgroundList(Named),
    /// Go on with a command in the background, whoever has been attached to it before. Answer: `process`; what
    /// it has written meanwhile and further events follow.
    Attach {
        /// The machine.
        machine: String,
        /// The command.
        background: u64,
    },
    /// Leave a process in the background running; its last event is `detached`. Answer: `done`.
    Detach {
        /// The process.
        process: u64,
    },
    /// Give a process input; answered once the process has room for it. Answer: `done`.
    Stdin {
        /// The process.
        process: u64,
        /// The input.
        data: Bytes,
    },
    /// End its input. Answer: `done`.
    StdinClose {
        /// The process.
        process: u64,
    },
    /// Send its process group a Linux signal. Answer: `done`.
    Signal {
        /// The process.
        process: u64,
        /// The signal's number.
        signal: i32,
    },
    /// Its terminal has a new size. Answer: `done`.
    Resize {
        /// The process.
        process: u64,
        /// The size.
        size: TtySize,
    },
}

/// A machine's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Named {
    /// The machine.
    pub machine: String,
}

/// A line of the server's after the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Reply {
    /// The answer to a request; each has one.
    Answer {
        /// The request's.
        id: u64,
        /// What came of it.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// Something happened to a process.
    Process {
        /// Which.
        process: u64,
        /// What.
        event: ProcessEvent,
    },
    /// Something happened to a machine.
    Machine {
        /// Which.
        machine: String,
        /// What.
        event: MachineEvent,
    },
    /// A line that is no request; the next one is read.
    Misread {
        /// What is wrong with it.
        misread: String,
    },
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is done.
    Done(bool),
    /// A machine.
    Machine(MachineStatus),
    /// Machines.
    Machines(Vec<MachineStatus>),
    /// The number of a process.
    Process(u64),
    /// Commands in the background.
    Backgrounds(Vec<BackgroundStatus>),
    /// A console's last words.
    Console(String),
    /// A session.
    Session(SessionStatus),
    /// Sessions.
    Sessions(Vec<SessionStatus>),
    /// Folders of the host's in the guest.
    Shares(Vec<ShareSpec>),
    /// What was copied.
    Copied(Copied),
    /// The bytes of a file.
    Data(Bytes),
    /// A port that leads elsewhere.
    Forward(ForwardStatus),
    /// A network.
    Network(NetworkStatus),
    /// The number of a policy.
    Policy(u64),
    /// It could not be done.
    Error(Fault),
}

/// An error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fault {
    /// For programs: it never changes its meaning.
    pub code: String,
    /// For people: one sentence.
    pub message: String,
}

/// The JSON Schema of all lines.
pub fn schema() -> schemars::Schema {
    /// All lines.
    #[derive(JsonSchema)]
    #[allow(dead_code, reason = "only its schema is of use")]
    struct Lines {
        /// The server's first line.
        greeting: Greeting,
        /// Every line of the client's.
        request: Request,
        /// Every other line of the server's.
        reply: Reply,
    }
    schemars::schema_for!(Lines)
}

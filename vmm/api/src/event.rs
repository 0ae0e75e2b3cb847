//! What happens.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Bytes, NetworkEvent, ShareSpec};

/// What happens to a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum MachineEvent {
    /// A start has begun; the machine's generation counts its starts.
    Starting {
        /// From 1 on.
        generation: u64,
    },
    /// The start has come this far: `confined`, `booting`, `connected`.
    Progress {
        /// How far.
        step: String,
    },
    /// Commands are taken.
    Ready {
        /// What did not work but does not stand in the way.
        warnings: Vec<String>,
    },
    /// Its vCPUs stand still until it is used again.
    Suspended,
    /// They run again.
    Resumed,
    /// The host could not do what the guest asked of its disk.
    DiskFailed {
        /// Why.
        message: String,
    },
    /// The guest's kernel killed a process because memory was used up: its session's, or the machine's.
    OutOfMemory {
        /// The session it was in; absent for a process of the machine itself.
        session: Option<String>,
        /// The process, as the machine numbers it.
        pid: u32,
        /// Its name, at most 15 characters.
        command: String,
        /// The bytes of memory that it had.
        memory: u64,
    },
    /// A session has reached its limit of processes: it can start no more.
    ProcessLimit {
        /// The session.
        session: String,
    },
    /// A session's first process died and all others with it. It takes no commands until it is removed and
    /// made again; what it has on the disk is there until then.
    SessionDied {
        /// The session.
        session: String,
    },
    /// A command in the background has ended. What it wrote last waits for somebody who attaches to it.
    BackgroundEnded {
        /// What to attach by.
        background: u64,
        /// How.
        exit: Exit,
    },
    /// Something happened in its network.
    Network {
        /// What.
        event: NetworkEvent,
    },
    /// Its network has died; a fresh start has one again.
    NetworkDied {
        /// One sentence.
        message: String,
    },
    /// The guest had more to tell than was listened to.
    Lost {
        /// So many events.
        events: u32,
    },
    /// The machine, or its worker, has died. The next command starts a fresh one with the same shares
    /// and the same persistent disk.
    Died {
        /// The error's stable code; `worker-died` if it was the worker.
        code: String,
        /// One sentence.
        message: String,
    },
    /// It has ended as it was asked to.
    Stopped,
}

/// What happens to a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ProcessEvent {
    /// It runs, under this number of the guest.
    Started {
        /// The number.
        pid: u32,
        /// What to attach by, if it runs in the background. It is used once in a machine's life.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        background: Option<u64>,
    },
    /// It wrote to standard output; with a terminal: everything it wrote.
    Stdout {
        /// What.
        data: Bytes,
    },
    /// It wrote to standard error.
    Stderr {
        /// What.
        data: Bytes,
    },
    /// It has ended; nothing comes after.
    Exited {
        /// How.
        exit: Exit,
    },
    /// It runs on in the background without this connection: it was left, or somebody else has attached to
    /// it; nothing comes after.
    Detached,
    /// It could not be started, or its machine died; nothing comes after.
    Failed {
        /// The error's stable code.
        code: String,
        /// One sentence.
        message: String,
        /// The exit status by which shells report this: 126 or 127 for a command that could not be
        /// started, else 125.
        status: u8,
    },
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// With this status.
    Code(u8),
    /// By this signal.
    Signal(u8),
    /// Its time was over.
    TimedOut,
}

impl Exit {
    /// The exit status by which shells report this end.
    pub fn status(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
            Self::TimedOut => 124,
        }
    }
}

/// A command in the background. One that has ended is listed until somebody has attached to it and heard of
/// its end, or its session is gone; a machine that starts afresh has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackgroundStatus {
    /// What to attach by.
    pub background: u64,
    /// Its number as the machine counts processes.
    pub pid: u32,
    /// The session that it runs in; absent: the machine itself.
    pub session: Option<String>,
    /// The command, its words apart by spaces, at most 256 bytes of it.
    pub command: String,
    /// Whether somebody is attached.
    pub attached: bool,
    /// How it ended, if it has.
    pub exit: Option<Exit>,
}

/// A machine's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    /// Not started yet, or ended; the next command starts it.
    Idle,
    /// On its way.
    Starting,
    /// It takes commands.
    Running,
    /// Its vCPUs stand still; the next command resumes it.
    Suspended,
}

/// A machine as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MachineStatus {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: MachineState,
    /// How often it was started.
    pub generation: u64,
    /// The root image.
    pub image: String,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// What it shares.
    pub shares: Vec<ShareSpec>,
    /// The worker's process on the host, if it has one.
    pub worker: Option<u32>,
    /// Commands that run now; of those in the background, the ones that somebody is attached to.
    pub processes: u64,
}

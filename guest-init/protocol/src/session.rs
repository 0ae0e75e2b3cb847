//! Sessions: many users of one machine, each with a Linux user, a view of the files, limits and
//! namespaces of its own.
//!
//! They are made, listed and removed by [`Request`](crate::Request)s; an [`Exec`](crate::Exec) names the
//! session that its command runs in.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{NetworkSetup, ShareMount};

/// The most bytes of a session's name.
pub const MAX_NAME: usize = 64;

/// Whether this can be the name of a session: letters, digits, `.`, `_` and `-`, a letter or digit
/// first, at most [`MAX_NAME`] bytes. It is the name of its user and of its home, `/sessions/NAME`.
pub fn is_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    first && name.len() <= MAX_NAME && name.bytes().all(inner)
}

/// A session to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSpec {
    /// See [`is_name`]. No two sessions have the same at a time.
    pub name: String,
    /// What it may use.
    pub limits: SessionLimits,
    /// The connected folders that it sees, and where; it sees no others.
    pub shares: Vec<ShareMount>,
    /// Its network card; without one it has a loopback interface of its own and nothing else.
    pub network: Option<SessionCard>,
}

/// A session's network card: a child of the machine's, with addresses that nobody else in the guest has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCard {
    /// The name of the machine's card, for example `eth0`.
    pub parent: String,
    /// Its hardware address, by which the host knows the session's frames.
    pub mac: [u8; 6],
    /// How it is to be set up.
    pub network: NetworkSetup,
}

/// What a session may use. What is absent is bounded by the machine alone: by all of its memory,
/// processes and disk but the reserve that the agent keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionLimits {
    /// Bytes of memory, files in `/dev/shm` and cached files of its disk included (cgroup v2
    /// `memory.max`).
    pub memory: Option<u64>,
    /// Processes and threads at a time (`pids.max`).
    pub pids: Option<u32>,
    /// Its part of busy processors in relation to others, 1 to 10,000; 100 if absent (`cpu.weight`).
    pub cpu_weight: Option<u16>,
    /// Thousandths of one processor, 10 at least: 1,500 is one and a half (`cpu.max`).
    pub cpu_max: Option<u32>,
    /// Bytes a second read from the writable disk (`io.max`).
    pub io_read: Option<u64>,
    /// Bytes a second written to the writable disk (`io.max`).
    pub io_write: Option<u64>,
    /// Bytes on the writable disk: home, `/tmp` and `/var/tmp` together (a project quota of ext4 or,
    /// where the writable layer is in memory, the size of a tmpfs).
    pub disk: Option<u64>,
}

/// A session as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Its name.
    pub name: String,
    /// Its user and group identifier, which no other session has at the same time.
    pub uid: u32,
    /// Its limits.
    pub limits: SessionLimits,
    /// The absolute paths at which it sees connected folders.
    pub shares: Vec<String>,
    /// Whether it has a network card.
    pub network: bool,
    /// Processes and threads that it has now.
    pub pids: u32,
    /// Bytes of memory that it uses now.
    pub memory: u64,
    /// Bytes on the writable disk that it uses now.
    pub disk: u64,
}

/// What happened, told on the control connection as it happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The kernel killed a process because memory was used up: its session's, or the machine's.
    OutOfMemory {
        /// The session it was in; absent for a process of the machine itself.
        session: Option<String>,
        /// The process that was killed, as the machine numbers it.
        pid: u32,
        /// Its name (`comm`), at most 15 characters.
        command: String,
        /// The bytes of memory that it had.
        memory: u64,
    },
    /// A session has reached its limit of processes: forks failed.
    ProcessLimit {
        /// The session.
        session: String,
    },
    /// A session's first process died and all others with it. It takes no commands any more; what it has
    /// on the disk stays until it is removed.
    SessionDied {
        /// The session.
        session: String,
    },
    /// A background process has ended. What it left stays until somebody attaches to it or its session
    /// is removed.
    ProcessEnded {
        /// The number that [`ExecReply::Started`](crate::ExecReply::Started) gave it.
        process: u64,
        /// How it ended.
        status: crate::ExitStatus,
    },
    /// The host was slow to listen: this many events were dropped.
    Lost(u32),
    /// A program listens for TCP.
    Listening {
        /// The session it is in; absent for a program of the machine itself.
        session: Option<String>,
        /// Where: an address of the session's or the machine's own network.
        address: SocketAddr,
    },
    /// Nobody listens there any more.
    ListeningEnded {
        /// The session it was in; absent for a program of the machine itself.
        session: Option<String>,
        /// Where.
        address: SocketAddr,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_single_harmless_components() {
        for good in ["a", "A1", "chat-42", "x.y_z", &"n".repeat(MAX_NAME)] {
            assert!(is_name(good), "{good}");
        }
        for bad in
            ["", ".", "..", "-x", "_x", ".x", "a/b", "a b", "a:b", "a\n", "ä", &"n".repeat(65)]
        {
            assert!(!is_name(bad), "{bad}");
        }
    }
}

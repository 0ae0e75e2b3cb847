//! Sessions: many users of one machine, and what is copied and led into them.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{PolicySpec, ShareSpec};

/// A session. Everything but the name has a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SessionSpec {
    /// Its name, which its user has too: letters, digits, `.`, `_` and `-`, at most 64.
    pub name: String,
    /// What it may use.
    pub limits: SessionLimits,
    /// Folders that it sees; it sees no others. They lie below the machine's shares or its `share_roots`.
    pub shares: Vec<ShareSpec>,
    /// It has a network card of its own, with addresses that no other session has; otherwise a loopback interface
    /// of its own and nothing else.
    pub network: bool,
    /// What may leave it, in place of the machine's rules; with `network` alone.
    pub policy: Option<PolicySpec>,
}

/// What a session may use. What is absent is bounded by the machine alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SessionLimits {
    /// Bytes of memory, with files in `/dev/shm` and cached files of its disk.
    pub memory: Option<u64>,
    /// Processes and threads at a time.
    pub pids: Option<u32>,
    /// Its part of busy processors in relation to others, 1 to 10,000; absent: 100.
    pub cpu_weight: Option<u16>,
    /// Thousandths of one processor, 10 at least.
    pub cpu_max: Option<u32>,
    /// Bytes a second read from the machine's disk.
    pub io_read: Option<u64>,
    /// Bytes a second written to it.
    pub io_write: Option<u64>,
    /// Bytes on the machine's disk: home, `/tmp` and `/var/tmp` together.
    pub disk: Option<u64>,
}

/// A session as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionStatus {
    /// Its name.
    pub name: String,
    /// Its user's number in the guest; absent while its machine does not run.
    pub uid: Option<u32>,
    /// What it may use.
    pub limits: SessionLimits,
    /// What it sees of the host.
    pub shares: Vec<ShareSpec>,
    /// It has a network card.
    pub network: bool,
    /// Its own rules; absent: the machine's.
    #[serde(default)]
    pub policy: Option<PolicySpec>,
    /// Processes and threads that it has now.
    pub pids: u32,
    /// Bytes of memory that it uses now.
    pub memory: u64,
    /// Bytes on the machine's disk that it uses now.
    pub disk: u64,
}

/// Where in a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Place {
    /// The machine.
    pub machine: String,
    /// The session; absent: the machine itself, as its root.
    #[serde(default)]
    pub session: Option<String>,
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Copied {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of the files.
    pub bytes: u64,
}

/// A port that leads elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForwardStatus {
    /// Its number, to end it by.
    pub forward: u64,
    /// Where it is listened: on the host, or in the guest.
    pub listens: SocketAddr,
}

/// A copy between host and guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CopySpec {
    /// The file or folder of the host's: an absolute path.
    pub host: PathBuf,
    /// That of the guest's: an absolute path or, in a session, one from its home.
    pub guest: String,
}

//! What is asked for: machines, sessions, shares, commands.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::NetworkSpec;

/// An engine, for frontends that are no Rust programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSpec {
    /// The store of kernels, agents and images; absent: the user's.
    pub home: Option<PathBuf>,
    /// The worker's program; absent: it is looked for.
    pub worker: Option<PathBuf>,
    /// Where disks that vanish with their machine live; absent: the system's folder of temporary files.
    pub scratch: Option<PathBuf>,
    /// Machines on threads of this process, unconfined.
    pub in_process: bool,
}

/// A machine. Everything but the name has a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MachineSpec {
    /// Its name: letters, digits, `.`, `_` and `-`, at most 64.
    pub name: String,
    /// The root image of the store.
    pub image: String,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Bytes of RAM, whole pages; the host gives it as it is used.
    pub memory: u64,
    /// A file that keeps the guest's changes of its root file system; made when missing. Without one
    /// they vanish with the machine.
    pub disk: Option<PathBuf>,
    /// Folders that the guest sees from the start.
    pub shares: Vec<ShareSpec>,
    /// Folders below which shares may be added while the machine runs.
    pub share_roots: Vec<PathBuf>,
    /// Shares that are added while the machine runs may have journals: the machine's worker then reaches all
    /// journals of this user.
    pub journals: bool,
    /// The network; without one there is only the guest's loopback.
    pub network: Option<NetworkSpec>,
    /// Another kernel than the store's.
    pub kernel: Option<PathBuf>,
    /// More words for the kernel's command line.
    pub command_line: String,
    /// Milliseconds without a process after which the machine is suspended; absent: never.
    pub suspend_after_ms: Option<u64>,
}

impl Default for MachineSpec {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            image: "default".to_owned(),
            cpus: 1,
            memory: 512 << 20,
            disk: None,
            shares: Vec::new(),
            share_roots: Vec::new(),
            journals: false,
            network: None,
            kernel: None,
            command_line: String::new(),
            suspend_after_ms: None,
        }
    }
}

/// A folder of the host's that appears in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShareSpec {
    /// The folder, an absolute path.
    pub host: PathBuf,
    /// Where it appears: an absolute path in the guest.
    pub guest: String,
    /// The guest may only read.
    #[serde(default)]
    pub read_only: bool,
    /// What the guest destroys is kept, in at most this many bytes of the host's disk, so that `cabana share
    /// rollback` brings it back. A folder that the guest may only read needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<u64>,
}

/// A command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CommandSpec {
    /// The command and its arguments; one without a slash is looked up in `PATH`.
    pub argv: Vec<String>,
    /// Variables beside the defaults.
    pub env: BTreeMap<String, String>,
    /// No defaults: `env` is the whole environment.
    pub clear_env: bool,
    /// The working directory; absent: `/` or the session's home.
    pub cwd: Option<String>,
    /// A terminal of this size in place of pipes.
    pub tty: Option<TtySize>,
    /// Standard input comes from the caller; otherwise it is empty.
    pub stdin: bool,
    /// Milliseconds after which the command is ended.
    pub timeout_ms: Option<u64>,
    /// The session that it runs in; absent: the machine itself, as its root.
    pub session: Option<String>,
    /// It outlives whoever started it: one who leaves, or is gone, leaves it running, and `started` says
    /// by which number others attach to it.
    pub background: bool,
}

impl CommandSpec {
    /// A command with its arguments, without input and terminal.
    pub fn new<A: Into<String>>(argv: impl IntoIterator<Item = A>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// The size of a terminal in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TtySize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

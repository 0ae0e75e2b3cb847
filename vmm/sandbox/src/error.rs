//! What can go wrong, each with a code that stays and a sentence for people.

use std::io;
use std::path::PathBuf;

use cabana_block::OpenError;
use cabana_boot::BootError;
use cabana_egress_host::EgressError;
use cabana_fs::ShareError;
use cabana_journal::JournalError;
use cabana_machine::MachineError;
use cabana_netstack::NetworkError;
use cabana_pmem::ImageError;
use cabana_protocol::{Cause, ProtocolError};
use cabana_snapshot::SnapshotError;
use cabana_vsock::VsockError;

/// The codes that come from other processes, by which [`Error::told`] knows them again.
const CODES: &[&str] = &[
    "agent",
    "boot",
    "confine",
    "connection",
    "disk",
    "disk-failed",
    "guest",
    "guest-panicked",
    "host",
    "hypervisor",
    "image",
    "machine",
    "no-hypervisor",
    "share",
    "snapshot",
    "stopped",
    "worker-died",
    "worker-version",
];

/// Everything that a caller of the engine may have to handle.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host cannot run guests.
    #[error("this host cannot run virtual machines: {0}")]
    NoHypervisor(String),
    /// The kernel or its initramfs.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The machine could not be made.
    #[error("cannot start the machine: {0}")]
    Machine(#[source] MachineError),
    /// The root image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A disk that cannot be used.
    #[error(transparent)]
    Disk(#[from] OpenError),
    /// A persistent disk that could not be made.
    #[error("cannot make the disk {}: {source}", path.display())]
    MakeDisk {
        /// The disk.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The host failed a disk of the machine's while it ran.
    #[error("the machine's disk failed: {0}")]
    DiskFailed(String),
    /// A network that cannot begin: a published port that is taken.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// An egress policy that cannot be used.
    #[error(transparent)]
    Egress(#[from] EgressError),
    /// A capture of the network's frames that could not be made.
    #[error("cannot write the capture {}: {source}", path.display())]
    Capture {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A snapshot that cannot be written or read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A snapshot whose machine cannot be one here.
    #[error("the machine of the snapshot {path} cannot go on here: {why}", path = path.display())]
    CannotGoOn {
        /// The snapshot.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A folder that cannot be shared.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// A share's journal that cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The host refused a thread or a descriptor.
    #[error("the host refused {what}: {source}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The guest's kernel gave up.
    #[error("the guest's kernel gave up: {0}")]
    GuestPanicked(String),
    /// The agent ended, or said that it cannot go on.
    #[error("the guest's agent failed: {0}")]
    Agent(String),
    /// The agent could not set the machine up as asked.
    #[error("setting up the machine failed while {what}: {why}")]
    Setup {
        /// What failed and on what.
        what: String,
        /// Why.
        why: String,
    },
    /// The hypervisor could not go on with the guest.
    #[error("the hypervisor stopped the machine: {0}")]
    Hypervisor(String),
    /// The agent is of another generation.
    #[error(
        "the agent in this machine speaks protocol {agent} and this engine {engine}; \
         run `cargo xtask setup` to build a matching pair"
    )]
    ProtocolVersion {
        /// The agent's generation.
        agent: u32,
        /// Ours.
        engine: u32,
    },
    /// The guest broke the protocol.
    #[error("the guest broke the protocol: {0}")]
    Protocol(#[source] ProtocolError),
    /// A command could not be started in the guest.
    #[error("{message}")]
    Exec {
        /// The exit status by which shells report this cause: 126 or 127.
        shell_code: u8,
        /// What failed and why.
        message: String,
    },
    /// The agent refused a request, or could not meet it.
    #[error("{message}")]
    Refused {
        /// The cause, for programs.
        cause: Cause,
        /// What failed, on what and why.
        message: String,
    },
    /// The machine was stopped.
    #[error("the machine was stopped")]
    Stopped,
    /// An error of a machine in another process.
    #[error("{message}")]
    Told {
        /// [`Error::code`] of that error.
        code: &'static str,
        /// Its sentence.
        message: String,
    },
    /// The connection to the guest.
    #[error("no connection to the guest: {0}")]
    Connection(#[from] VsockError),
}

impl Error {
    /// A name for programs that never changes its meaning.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoHypervisor(_) => "no-hypervisor",
            Self::Boot(_) => "boot",
            Self::Machine(_) => "machine",
            Self::Image(_) => "image",
            Self::Disk(_) | Self::MakeDisk { .. } => "disk",
            Self::DiskFailed(_) => "disk-failed",
            Self::Network(_) | Self::Egress(_) | Self::Capture { .. } => "network",
            Self::Snapshot(_) | Self::CannotGoOn { .. } => "snapshot",
            Self::Share(_) => "share",
            Self::Journal(_) => "journal",
            Self::Host { .. } => "host",
            Self::GuestPanicked(_) => "guest-panicked",
            Self::Agent(_) => "agent",
            Self::Setup { .. } => "setup",
            Self::Hypervisor(_) => "hypervisor",
            Self::ProtocolVersion { .. } => "protocol-version",
            Self::Protocol(_) => "protocol",
            Self::Exec { .. } => "exec",
            Self::Refused { cause, .. } => match cause {
                Cause::Invalid => "invalid",
                Cause::NotFound => "not-found",
                Cause::Exists => "exists",
                Cause::Denied => "denied",
                Cause::Exhausted => "exhausted",
                Cause::Unsupported => "unsupported",
                Cause::Other => "refused",
            },
            Self::Stopped => "stopped",
            Self::Told { code, .. } => code,
            Self::Connection(_) => "connection",
        }
    }

    /// What another process says of a machine in it.
    pub fn told(code: &str, message: &str) -> Self {
        let known = CODES.iter().find(|known| **known == code);
        Self::Told { code: known.unwrap_or(&"worker"), message: message.to_owned() }
    }

    pub(crate) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}

impl From<MachineError> for Error {
    fn from(error: MachineError) -> Self {
        match error {
            MachineError::Boot(error) => Self::Boot(error),
            error => Self::Machine(error),
        }
    }
}

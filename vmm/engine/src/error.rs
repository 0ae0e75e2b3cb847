//! What can go wrong, each with a code that stays and a sentence for people.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use cabana_store::StoreError;

/// Everything that a caller of the engine may have to handle.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine or its guest: see [`cabana_sandbox::Error`].
    #[error(transparent)]
    Machine(#[from] cabana_sandbox::Error),
    /// Kernel, agent or image are not in the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No worker program.
    #[error("{0}")]
    NoWorker(String),
    /// A file or folder that a machine needs.
    #[error("cannot open {what} {}: {source}", path.display())]
    Open {
        /// What it is.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A file or folder on the host that a copy is to write.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A port of the host's that is taken, or an address that is none of its own.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the host said.
        source: io::Error,
    },
    /// The host refused a socket, a thread or a process.
    #[error("the host refused {what}: {source}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// A name, path or number that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// There is no machine, session or share of this name.
    #[error("there is no {what} {name}")]
    NotFound {
        /// What was looked for.
        what: &'static str,
        /// By which name.
        name: String,
    },
    /// There is one of this name already.
    #[error("there is a {what} {name} already")]
    Exists {
        /// What.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A folder that the worker could not reach.
    #[error(
        "{} is not below a folder from which this machine may share while it runs; name one with \
         `share_roots` (`--share-root`) when the machine is made",
        path.display()
    )]
    OutsideShareRoots {
        /// The folder.
        path: PathBuf,
    },
}

impl Error {
    /// A name for programs that never changes its meaning.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Machine(error) => error.code(),
            Self::Store(_) => "store",
            Self::NoWorker(_) => "no-worker",
            Self::Open { .. } => "open",
            Self::Write { .. } => "write",
            Self::Listen { .. } => "listen",
            Self::Host { .. } => "host",
            Self::Invalid(_) => "invalid",
            Self::NotFound { .. } => "not-found",
            Self::Exists { .. } => "exists",
            Self::OutsideShareRoots { .. } => "outside-share-roots",
        }
    }

    /// The exit status by which shells report this: 126 or 127 for a command that could not be started,
    /// else 125.
    pub fn status(&self) -> u8 {
        match self {
            Self::Machine(cabana_sandbox::Error::Exec { shell_code, .. }) => *shell_code,
            _ => 125,
        }
    }

    pub(crate) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}

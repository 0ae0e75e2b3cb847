//! What can go wrong in the lab, each a sentence for its user.

use std::io;
use std::path::PathBuf;

use cabana_protocol::{ExecFailed, ProtocolError};

/// Why the lab could not be prepared, started or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program or package that the lab needs is not on this machine.
    #[error("the lab needs {what}, which is not here: {advice}")]
    Missing {
        /// What is missing.
        what: String,
        /// What to do about it.
        advice: String,
    },
    /// A program that prepares the lab failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    Tool {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        stderr: String,
    },
    /// A file could not be read, written or understood.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// A folder that was to be writable in the lab is not usable.
    #[error("{} cannot be writable in the lab: {why}", path.display())]
    Writable {
        /// The folder.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// A process or a thing between processes could not be made.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The outer machine did not come up.
    #[error("the lab's machine did not start: {why}; the last lines of its console:\n{console}")]
    Boot {
        /// The reason, as far as it is known.
        why: String,
        /// The end of its console.
        console: String,
    },
    /// The outer machine ended while it was in use.
    #[error("the lab's machine ended; the last lines of its console:\n{console}")]
    Ended {
        /// The end of its console.
        console: String,
    },
    /// A command could not be started in the lab.
    #[error("{}", .0.message)]
    NotStarted(ExecFailed),
    /// The lab's two ends do not understand each other.
    #[error("the lab's init and its host disagree: {0}")]
    Protocol(#[from] ProtocolError),
}

impl Error {
    /// For `map_err`: what was tried, for the sentence "cannot …".
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }

    /// For `map_err`: the file that was in work.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { path: path.into(), source }
    }
}

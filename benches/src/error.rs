//! Why something could not be measured.

use std::io;
use std::path::{Path, PathBuf};

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program could not be started or waited for.
    #[error("cannot run {program}: {source}")]
    Start {
        /// Its name.
        program: String,
        /// What the system says.
        source: io::Error,
    },
    /// A program did something else than what is measured.
    #[error("{program} {what}; it said: {said}")]
    Behaviour {
        /// Its name.
        program: String,
        /// What it did.
        what: String,
        /// Its standard error.
        said: String,
    },
    /// A file.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// A file that holds something else than it should.
    #[error("{}: {why}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl Error {
    /// For `map_err`: the file that was in work.
    pub fn file(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { path: path.as_ref().into(), source }
    }
}

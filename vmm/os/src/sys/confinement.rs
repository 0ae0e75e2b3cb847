//! What comes of a process's confining itself.

use std::io;

/// What was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// System calls are filtered.
    pub system_calls: bool,
    /// Files are out of reach but for those handed over.
    pub files: bool,
}

/// Why a process cannot confine itself.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The system refused a wall.
    #[error("{wall} was refused: {why}")]
    Refused {
        /// Which.
        wall: &'static str,
        /// What the system said.
        why: String,
    },
    /// A handle.
    #[error("a handle cannot be looked at: {0}")]
    Handle(#[from] io::Error),
}

//! What can go wrong with the store, each as one sentence for a person.

use std::io;
use std::path::{Path, PathBuf};

use crate::Kind;

/// An error of the store. Its text says what failed, on what, why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// None of the environment variables that place the store is set.
    #[error(
        "there is no place for Cabana's files: none of CABANA_HOME, XDG_CACHE_HOME and HOME is \
         set; set CABANA_HOME to a folder"
    )]
    NoHome,

    /// A name with characters that a store's folder must not have.
    #[error(
        "'{name}' cannot be the name of {}: names start with a letter or a digit and \
         go on with a-z, 0-9, '.', '_' and '-', at most 64 in all", kind.with_article()
    )]
    BadName {
        /// What was to be named.
        kind: Kind,
        /// The refused name.
        name: String,
    },

    /// No such artifact.
    #[error("there is no {kind} '{name}' in {}; {} makes it", store.display(), kind.how_to_build(name))]
    NotFound {
        /// What was looked for.
        kind: Kind,
        /// Its name.
        name: String,
        /// The store's folder.
        store: PathBuf,
    },

    /// A file of an artifact is missing or is not what the manifest says.
    #[error(
        "{file} of the {kind} '{name}' {problem}; build it anew: {}", kind.how_to_rebuild(name)
    )]
    Corrupt {
        /// What is damaged.
        kind: Kind,
        /// Its name.
        name: String,
        /// The damaged file, by its name in the artifact.
        file: String,
        /// What is wrong with the file, as the rest of a sentence.
        problem: String,
    },

    /// The artifact has a manifest of a later version of Cabana.
    #[error(
        "the {kind} '{name}' was made by a later version of Cabana (manifest version {version}); \
         use that version, or build it anew: {}", kind.how_to_rebuild(name)
    )]
    TooNew {
        /// What was looked for.
        kind: Kind,
        /// Its name.
        name: String,
        /// The version of its manifest.
        version: u32,
    },

    /// The artifact has no file of that name.
    #[error("the {kind} '{name}' has no file '{file}'; build it anew: {}", kind.how_to_rebuild(name))]
    NoFile {
        /// The artifact's kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// The file that was asked for.
        file: String,
    },

    /// Another process is building or removing the artifact.
    #[error("the {kind} '{name}' is being built by another process; try again when that is done")]
    Busy {
        /// What is being built.
        kind: Kind,
        /// Its name.
        name: String,
    },

    /// What was staged cannot become an artifact.
    #[error("the {kind} '{name}' cannot be stored: {problem}")]
    Unfit {
        /// What was staged.
        kind: Kind,
        /// Its name.
        name: String,
        /// Why it is refused.
        problem: String,
    },

    /// A file system is mounted inside a staging folder, whose removal would reach into it.
    #[error("{} is a mount point left by a killed build; unmount it: umount {}", .0.display(), .0.display())]
    Mounted(PathBuf),

    /// No room left.
    #[error(
        "the disk is full: no room to write {}; free some space, or set CABANA_HOME to a folder \
         on a larger disk", .0.display()
    )]
    Full(PathBuf),

    /// The store is on a file system that cannot be written.
    #[error(
        "the store is on a read-only file system: {} cannot be written; set CABANA_HOME to a \
         folder that can", .0.display()
    )]
    ReadOnly(PathBuf),

    /// Any other failure of the file system.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl StoreError {
    /// Makes the error of an `action` on a `path`, with a variant of its own for what a user can
    /// repair.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(path),
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly(path),
            _ => Self::Io { action, path, source },
        }
    }
}

/// Attaches the action and the path to a failed system call.
pub(crate) trait Context<T> {
    /// See [`StoreError::io`].
    fn context(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::io(action, path, error.into()))
    }
}

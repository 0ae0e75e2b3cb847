//! Why a snapshot cannot be written or used; one sentence for people.

use std::io;
use std::path::PathBuf;

/// A snapshot that cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The host could not read or write the file.
    #[error("cannot {what} the snapshot {path}: {source}", path = path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// The snapshot.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A file of another kind.
    #[error("{} is not a snapshot of Cabana", .0.display())]
    Foreign(PathBuf),
    /// Another version of the format, or of a part.
    #[error(
        "the snapshot {path} was made by {made_by} (its {what} has version {found}, this program \
         reads {known}); make it anew",
        path = path.display()
    )]
    Version {
        /// The snapshot.
        path: PathBuf,
        /// Who made it.
        made_by: String,
        /// What has another version.
        what: String,
        /// The one found.
        found: u32,
        /// The one that this program reads.
        known: u32,
    },
    /// A file that is shorter or longer than it was.
    #[error(
        "the snapshot {path} has {found} bytes of {wanted}: it was not copied to the end; copy it \
         again, or make it anew",
        path = path.display()
    )]
    Truncated {
        /// The snapshot.
        path: PathBuf,
        /// The file's length.
        found: u64,
        /// What it was when it was made.
        wanted: u64,
    },
    /// Bytes that are not those that were written.
    #[error("the snapshot {path} is damaged: {what} is not what was written; make it anew", path = path.display())]
    Corrupted {
        /// The snapshot.
        path: PathBuf,
        /// Where.
        what: String,
    },
}

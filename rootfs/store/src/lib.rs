//! The user's store of artifacts: guest kernels, agents and root images.
//!
//! ```text
//! $CABANA_HOME, else $XDG_CACHE_HOME/cabana, else ~/.cache/cabana (Windows: %LOCALAPPDATA%/cabana)
//! ├── kernel/NAME/  agent/NAME/  image/NAME/
//! │   ├── manifest.json   what it is, what it was built from, the hash of every file
//! │   ├── stamp.json      the files' times when their hashes were last found right
//! │   └── …               the files themselves, read-only
//! ├── staging/            what is being built now; one lock per artifact
//! └── aarch64/            the same for hosts of another processor that share this folder: the Arm lab
//! ```
//!
//! A program that starts a machine calls [`Store::find`]. That costs two small reads and one `stat`
//! per file as long as the stamp matches; only a file whose size or times changed is hashed again.
//! A program that builds an artifact calls [`Store::stage`], writes files into the folder that it is
//! given, and calls [`Staging::commit`]: readers see the old artifact or the new one, never a part
//! of one, and a machine that runs from the old one keeps its open files.

mod digest;
mod error;
mod lock;
mod manifest;
mod size;
mod staging;
mod store;
mod sys;

pub use error::StoreError;
pub use manifest::{FileEntry, Manifest, Run};
pub use size::Bytes;
pub use staging::Staging;
pub use store::{Artifact, Kind, Listing, Store};

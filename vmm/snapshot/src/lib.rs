//! Snapshots of machines, as files.
//!
//! A snapshot is one file. It holds *parts*, small and read as a whole (the state of processors and
//! devices, each part with a version of its own), and *contents*, large and mapped or read in place (RAM,
//! the writable disk), of which zero pages are not stored. [`Draft`] writes one, [`Snapshot`] reads one.
//! What the parts mean is the business of whoever names them.
//!
//! # The format, version 1
//!
//! | bytes | what |
//! |---|---|
//! | 0 to 4095 | the superblock (`format.rs`): magic, version, lengths, hashes |
//! | from 2 MiB on, each at a multiple of that | the contents, sparse |
//! | behind them | the index: who made it and when, parts, contents and where they have data |
//!
//! # What is checked, and when
//!
//! The superblock and the index are checked by their SHA-256 whenever a snapshot is opened. Contents are
//! too large for that: the index says when the file was last modified, to the nanosecond; while the file
//! says so too nobody has written to it since, and its contents are taken as they are. Otherwise (it was
//! copied, or somebody wrote to it) they are read and compared with their hashes.
//!
//! # What stands beside it
//!
//! A record of what machines of a snapshot touch first ([`Touched`], with a format of its own in `touched.rs`), once there was one.

mod content;
mod draft;
mod error;
mod format;
mod snapshot;
mod touched;

pub use content::write_nonzero;
pub use draft::Draft;
pub use error::SnapshotError;
pub use format::{Content, FORMAT_VERSION};
pub use snapshot::Snapshot;
pub use touched::{Run, Touched};

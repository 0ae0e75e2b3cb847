//! What stands beside an artifact's files: the manifest, and the stamp that spares hashing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use cabana_os::tree::Stat;
use serde::{Deserialize, Serialize};

use crate::{Kind, digest, sys};

/// File name of the manifest in an artifact's folder.
pub(crate) const MANIFEST: &str = "manifest.json";
/// File name of the stamp in an artifact's folder.
pub(crate) const STAMP: &str = "stamp.json";
/// Version of the manifest's layout.
pub(crate) const VERSION: u32 = 1;

/// What an artifact is, what it was built from, and the hash of every file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this layout, 1 at present.
    pub version: u32,
    /// The artifact's kind.
    pub kind: Kind,
    /// The artifact's name.
    pub name: String,
    /// SHA-256, in hexadecimal, of what it was built from; the builder says what that covers.
    pub inputs: String,
    /// The artifact's files.
    pub files: BTreeMap<String, FileEntry>,
    /// What the builder wants remembered: sizes, versions, build time.
    pub facts: BTreeMap<String, String>,
}

/// One file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// SHA-256, in hexadecimal: of the content, or of the data alone if `data` is set.
    pub sha256: String,
    /// Size in bytes, holes included.
    pub size: u64,
    /// Set if the file is mostly hole: the runs of aligned blocks of 4 KiB that have anything but
    /// zeros. The hash then covers the size and, of each such block, the offset (both 64-bit
    /// little-endian) and the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Vec<Run>>,
}

/// A run of data in a sparse file: its offset and its length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run(pub u64, pub u64);

impl FileEntry {
    /// Reads and hashes a file.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        if digest::is_sparse(file)? {
            let (sha256, data) = digest::sparse(file, &sys::data_runs(file)?)?;
            return Ok(Self { sha256, size, data: Some(data) });
        }
        Ok(Self { sha256: digest::dense(file)?, size, data: None })
    }

    /// Whether a file has this content; reads all of its data.
    pub(crate) fn holds(&self, file: &File) -> io::Result<bool> {
        if file.metadata()?.len() != self.size {
            return Ok(false);
        }
        let Some(data) = &self.data else { return Ok(digest::dense(file)? == self.sha256) };
        let mut runs = sys::data_runs(file)?;
        if runs == [Run(0, self.size)] && digest::is_sparse(file)? {
            // It has holes, but the file system (9p, some network disks) does not say where:
            // reading gigabytes of zeros would take minutes, so look where data should be.
            runs.clone_from(data);
        }
        Ok(digest::sparse(file, &runs)?.0 == self.sha256)
    }

    /// Where the file has data; for a file that is not sparse, everywhere.
    pub(crate) fn runs(&self) -> Vec<Run> {
        self.data.clone().unwrap_or_else(|| vec![Run(0, self.size)])
    }
}

/// The times of an artifact's files when their hashes were last found right.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Stamp(pub(crate) BTreeMap<String, StampEntry>);

/// One file's part of the stamp: as long as the file's times are these, its hash is this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StampEntry {
    sha256: String,
    size: u64,
    mtime: i128,
    ctime: i128,
}

impl StampEntry {
    /// The stamp of a file that is known to have a hash. Look at it before the hash, so
    /// that a write in between shows.
    pub(crate) fn new(sha256: &str, stat: &Stat) -> Self {
        let (size, mtime, ctime) = sys::times(stat);
        Self { sha256: sha256.to_owned(), size, mtime, ctime }
    }
}

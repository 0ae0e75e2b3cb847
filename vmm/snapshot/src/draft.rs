//! Writing a snapshot.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use cabana_os::Replacement;
use cabana_os::file::FileExt;

use crate::SnapshotError;
use crate::content::survey;
use crate::format::{self, ALIGN, Content, Index, Part, Superblock};

/// A snapshot in the making. Until [`Draft::commit`] its path leads to what it led to before.
#[derive(Debug)]
pub struct Draft {
    replacement: Replacement,
    path: PathBuf,
    index: Index,
    /// Where the next content begins.
    end: u64,
}

impl Draft {
    /// A snapshot that is to stand at `path`, made by this program at this time (since 1970).
    pub fn new(path: &Path, made_by: &str, now: Duration) -> Result<Self, SnapshotError> {
        let replacement = Replacement::new(path).map_err(failed("write", path))?;
        let index = Index {
            made_by: made_by.to_owned(),
            made_at: now.as_secs(),
            stamp: now.as_nanos() as u64,
            ..Index::default()
        };
        Ok(Self { replacement, path: path.to_owned(), index, end: ALIGN })
    }

    /// Adds a part.
    pub fn part(&mut self, name: &str, version: u16, bytes: Vec<u8>) {
        self.index.parts.push(Part { name: name.to_owned(), version, bytes });
    }

    /// Adds a content of `len` bytes, which `fill` writes to the file from an offset on where there are
    /// only holes yet.
    pub fn content(
        &mut self,
        name: &str,
        len: u64,
        fill: impl FnOnce(&File, u64) -> io::Result<()>,
    ) -> Result<(), SnapshotError> {
        let (file, start) = (self.replacement.file(), self.end);
        let written = || {
            file.set_len(start + len)?;
            fill(file, start)?;
            survey(file, start, len)
        };
        let (extents, hash) = written().map_err(failed("write", &self.path))?;
        self.end = (start + len).next_multiple_of(ALIGN);
        self.index.contents.push(Content { name: name.to_owned(), start, len, extents, hash });
        Ok(())
    }

    /// Completes the snapshot and puts it at its path.
    pub fn commit(self) -> Result<(), SnapshotError> {
        let Self { replacement, path, index, end } = self;
        // Plain data always encodes: there is no writer that could fail.
        let bytes = postcard::to_allocvec(&index).unwrap_or_default();
        let superblock = Superblock {
            file_len: end + bytes.len() as u64,
            index_start: end,
            index_len: bytes.len() as u64,
            index_hash: format::hash(&bytes),
        };
        let file = replacement.file();
        let complete = || {
            file.write_all_at(&bytes, end)?;
            file.write_all_at(&superblock.encode(), 0)?;
            file.set_modified(UNIX_EPOCH + Duration::from_nanos(index.stamp))
        };
        complete().and_then(|()| replacement.commit()).map_err(failed("write", &path))
    }
}

pub(crate) fn failed(
    what: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> SnapshotError + use<> {
    let path = path.to_owned();
    move |source| SnapshotError::Io { what, path, source }
}

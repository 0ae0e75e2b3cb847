//! Reading a snapshot.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use cabana_os::file::FileExt;

use crate::SnapshotError;
use crate::content::{PAGE, survey};
use crate::draft::failed;
use crate::format::{
    self, ALIGN, Content, FORMAT_VERSION, Index, MAX_INDEX, NoSuperblock, SUPERBLOCK_LEN,
    Superblock,
};

/// A snapshot, open for reading. Removing or replacing the file does not disturb who has it open.
#[derive(Debug)]
pub struct Snapshot {
    file: File,
    path: PathBuf,
    index: Index,
    /// The hash of the index.
    id: [u8; 32],
}

impl Snapshot {
    /// Opens the snapshot at `path` and checks it.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let failed = || failed("read", path);
        // Asked before it is opened: opening a pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(failed())?.is_file() {
            return Err(SnapshotError::Foreign(path.to_owned()));
        }
        let file = File::open(path).map_err(failed())?;
        let metadata = file.metadata().map_err(failed())?;
        let superblock = superblock(&file, path)?;
        if metadata.len() != superblock.file_len {
            let (found, wanted) = (metadata.len(), superblock.file_len);
            return Err(SnapshotError::Truncated { path: path.to_owned(), found, wanted });
        }
        let index = index(&file, path, &superblock)?;
        let modified =
            metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let id = superblock.index_hash;
        let snapshot = Self { file, path: path.to_owned(), index, id };
        if modified.map(|time| time.as_nanos() as u64) != Some(snapshot.index.stamp) {
            snapshot.verify()?;
        }
        Ok(snapshot)
    }

    /// Reads all contents and compares them with their hashes.
    pub fn verify(&self) -> Result<(), SnapshotError> {
        for content in &self.index.contents {
            let (_, hash) = survey(&self.file, content.start, content.len)
                .map_err(failed("read", &self.path))?;
            if hash != content.hash {
                return Err(corrupted(&self.path, &content.name));
            }
        }
        Ok(())
    }

    /// A part of this name and version.
    pub fn part(&self, name: &str, version: u16) -> Result<&[u8], SnapshotError> {
        let part = self.index.parts.iter().find(|part| part.name == name);
        match part {
            Some(part) if part.version == version => Ok(&part.bytes),
            part => Err(SnapshotError::Version {
                path: self.path.clone(),
                made_by: self.index.made_by.clone(),
                what: name.to_owned(),
                found: part.map_or(0, |part| part.version.into()),
                known: version.into(),
            }),
        }
    }

    /// The content of this name, if there is one.
    pub fn content(&self, name: &str) -> Option<&Content> {
        self.index.contents.iter().find(|content| content.name == name)
    }

    /// A part that is there and makes no sense to whoever it is for.
    pub fn nonsense(&self, name: &str) -> SnapshotError {
        corrupted(&self.path, name)
    }

    /// By what it is known from all others.
    pub(crate) fn id(&self) -> &[u8; 32] {
        &self.id
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The program that made it.
    pub fn made_by(&self) -> &str {
        &self.index.made_by
    }

    /// When it was made, in seconds since 1970.
    pub fn made_at(&self) -> u64 {
        self.index.made_at
    }
}

fn corrupted(path: &Path, what: &str) -> SnapshotError {
    SnapshotError::Corrupted { path: path.to_owned(), what: what.to_owned() }
}

fn superblock(file: &File, path: &Path) -> Result<Superblock, SnapshotError> {
    let mut bytes = [0; SUPERBLOCK_LEN];
    // A shorter file is none of ours, or was cut off; its first bytes tell which.
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed("read", path)(error)),
        }
    }
    Superblock::decode(&bytes).map_err(|error| match error {
        NoSuperblock::Foreign => SnapshotError::Foreign(path.to_owned()),
        NoSuperblock::Version(found) => SnapshotError::Version {
            path: path.to_owned(),
            made_by: "another version of Cabana".to_owned(),
            what: "format".to_owned(),
            found,
            known: FORMAT_VERSION,
        },
        NoSuperblock::Corrupted => corrupted(path, "its beginning"),
    })
}

fn index(file: &File, path: &Path, superblock: &Superblock) -> Result<Index, SnapshotError> {
    let Superblock { file_len, index_start, index_len, index_hash } = *superblock;
    let damaged = || corrupted(path, "its index");
    if index_len > MAX_INDEX || index_start.checked_add(index_len) != Some(file_len) {
        return Err(damaged());
    }
    let mut bytes = vec![0; index_len as usize];
    file.read_exact_at(&mut bytes, index_start).map_err(failed("read", path))?;
    if format::hash(&bytes) != index_hash {
        return Err(damaged());
    }
    let index: Index = match postcard::take_from_bytes(&bytes) {
        Ok((index, [])) => index,
        _ => return Err(damaged()),
    };
    let fits = |content: &Content| {
        let end = content.start.checked_add(content.len);
        content.start.is_multiple_of(ALIGN)
            && end.is_some_and(|end| end <= index_start)
            && extents_fit(content)
    };
    if index.contents.iter().all(fits) { Ok(index) } else { Err(damaged()) }
}

/// Whole pages within the content, ascending.
fn extents_fit(content: &Content) -> bool {
    let mut at = 0;
    content.extents.iter().all(|&(start, len)| {
        let fits = start >= at
            && len > 0
            && start.is_multiple_of(PAGE as u64)
            && len.is_multiple_of(PAGE as u64)
            && start.checked_add(len).is_some_and(|end| end <= content.len);
        at = start.saturating_add(len);
        fits
    })
}

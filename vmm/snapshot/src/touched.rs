//! What machines of a snapshot touch first, recorded by one of them for those that follow: a file beside the
//! snapshot, `.NAME.touched`. It makes a start faster and nothing else, so that one that is damaged, of another
//! snapshot or of another version is as good as none.
//!
//! | bytes | what |
//! |---|---|
//! | 0 to 7 | `cabantch` |
//! | 8 to 11 | the version, little-endian |
//! | 12 to 43 | the hash of the snapshot's index |
//! | to 32 before the end | the areas, as `postcard` writes them |
//! | the last 32 | SHA-256 of all before |

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cabana_os::Replacement;
use cabana_os::file::FileExt;
use serde::{Deserialize, Serialize};

use crate::Snapshot;
use crate::format::hash;

/// The generation of the format. `tests/touched.rs` pins the bytes of this one.
const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"cabantch";
const HEAD: usize = 44;
const HASH: usize = 32;
/// No file is larger: it is read into memory before its hash is known to be right.
const MAX_FILE: u64 = 1 << 20;
/// 128 MiB, in pages of 4 KiB: who touches more at once is not to be helped.
const MOST_PAGES: u64 = 32 << 10;

/// Pages that stand one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The first one's number in its area.
    pub first: u64,
    /// How many there are.
    pub count: u64,
    /// They were written to.
    pub written: bool,
}

/// The pages that were touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// No page is in it that only came in beside another one.
    pub exact: bool,
    /// Each with its name; runs ascend.
    areas: Vec<(String, Vec<Run>)>,
}

impl Touched {
    /// What was recorded of a snapshot's machines, if that makes sense.
    pub fn read(snapshot: &Snapshot) -> Option<Self> {
        let path = beside(snapshot.path())?;
        // Asked before it is opened: opening a pipe would wait for its other end.
        if !std::fs::metadata(&path).ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        File::open(&path).ok()?.take(MAX_FILE + 1).read_to_end(&mut bytes).ok()?;
        Self::decode(&bytes, snapshot.id())
    }

    /// Nothing yet.
    pub fn new(exact: bool) -> Self {
        Self { exact, areas: Vec::new() }
    }

    /// Adds an area. Its runs ascend.
    pub fn add(&mut self, area: &str, runs: Vec<Run>) {
        self.areas.push((area.to_owned(), runs));
    }

    /// The runs of an area that has so many pages.
    pub fn runs(&self, area: &str, pages: u64) -> &[Run] {
        let found = self.areas.iter().find(|(name, _)| name == area);
        let runs = found.map(|(_, runs)| runs.as_slice()).unwrap_or_default();
        let fit = runs.last().is_none_or(|last| last.first + last.count <= pages);
        if fit { runs } else { &[] }
    }

    /// Records it for a snapshot, in place of what was recorded before; not if it is too much.
    pub fn write(&self, snapshot: &Snapshot) -> io::Result<()> {
        if !self.is_sound() {
            return Ok(());
        }
        let path = beside(snapshot.path()).ok_or(io::ErrorKind::InvalidInput)?;
        let replacement = Replacement::new(&path)?;
        replacement.file().write_all_at(&self.encode(snapshot.id()), 0)?;
        replacement.commit()
    }

    /// Removes what was recorded of the snapshot at `path`, if anything was.
    pub fn remove(path: &Path) -> io::Result<()> {
        let path = beside(path).ok_or(io::ErrorKind::InvalidInput)?;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn encode(&self, snapshot: &[u8; HASH]) -> Vec<u8> {
        let mut bytes = [MAGIC.as_slice(), &VERSION.to_le_bytes(), snapshot].concat();
        // Plain data always encodes: there is no writer that could fail.
        bytes.extend(postcard::to_allocvec(self).unwrap_or_default());
        bytes.extend(hash(&bytes));
        bytes
    }

    fn decode(bytes: &[u8], snapshot: &[u8; HASH]) -> Option<Self> {
        if bytes.len() as u64 > MAX_FILE {
            return None;
        }
        let (content, sum) = bytes.split_last_chunk::<HASH>()?;
        let (head, areas) = content.split_at_checked(HEAD)?;
        let ours = [MAGIC.as_slice(), &VERSION.to_le_bytes(), snapshot].concat();
        if head != ours || *sum != hash(content) {
            return None;
        }
        match postcard::take_from_bytes::<Self>(areas) {
            Ok((touched, [])) => Some(touched).filter(Self::is_sound),
            _ => None,
        }
    }

    /// Runs ascend, and are no more than is of use.
    fn is_sound(&self) -> bool {
        let mut pages = 0_u64;
        self.areas.iter().all(|(_, runs)| {
            let mut end = 0;
            runs.iter().all(|run| {
                let ascends = run.first >= end && run.count > 0;
                pages = pages.saturating_add(run.count);
                end = run.first.saturating_add(run.count);
                ascends && end < u64::MAX
            })
        }) && pages <= MOST_PAGES
    }
}

/// Where it stands: not among the snapshots of a folder.
fn beside(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    Some(path.with_file_name(format!(".{name}.touched")))
}

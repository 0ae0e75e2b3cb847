//! What the journal says, record by record, and how it stands in the file.
//!
//! A record is framed by its length (4 bytes, little-endian) and the first 8 bytes of the SHA-256 of
//! its body, which is postcard. The file begins with [`MAGIC`]. Neither ever changes its meaning; a
//! later format has another magic.

use std::fmt;
use std::path::{Path, PathBuf};

use cabana_os::tree::{Attributes, InodeKind, InodeStat, path_bytes, path_from_bytes};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The first bytes of a journal.
pub(crate) const MAGIC: &[u8; 16] = b"cabana-journal1\n";
/// Length and checksum.
pub(crate) const FRAME: usize = 12;
/// No record is longer: a path, and extended attributes of at most 64 KiB with their names.
const RECORD_MAX: usize = 16 << 20;

/// Where an inode has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Place {
    /// In the share, by its path from there, `/` between components. Empty: the share itself.
    Share(Vec<u8>),
    /// In the journal, by the number of the record that put it there.
    Kept(u64),
    /// Nowhere: the host has removed the name by which the guest knew it.
    Lost,
}

impl Place {
    /// In the share.
    pub fn share(path: &Path) -> Self {
        Self::Share(path_bytes(path).into_owned())
    }

    /// The path in the share, if it is there.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Share(bytes) => Some(path_from_bytes(bytes)),
            Self::Kept(_) | Self::Lost => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share(bytes) if bytes.is_empty() => f.write_str("."),
            Self::Share(bytes) => f.write_str(&String::from_utf8_lossy(bytes)),
            Self::Kept(number) => write!(f, "(kept as {number})"),
            Self::Lost => f.write_str("(a name that the host removed)"),
        }
    }
}

/// One inode in one state, as far as that shows without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ident {
    /// The file system.
    pub device: u64,
    /// The inode's number.
    pub ino: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Length in bytes.
    pub size: u64,
    /// When the content last changed, in nanoseconds since 1970.
    pub modified: i128,
    /// When the inode was made; zero where the file system does not say.
    pub born: i128,
}

/// What tells inodes apart: file system, number, and when it was made.
pub(crate) type Inode = (u64, u64, i128);

impl Ident {
    /// Of an inode that was looked at.
    pub fn of(stat: &InodeStat) -> Self {
        let InodeStat { device, ino, mode, size, modified, born, .. } = *stat;
        Self { device, ino, mode, size, modified, born }
    }

    /// The inode, whatever its state.
    pub(crate) fn inode(&self) -> Inode {
        (self.device, self.ino, self.born)
    }

    /// Is `stat` the same inode with the same content, as far as that shows? A folder's entries have
    /// records of their own.
    pub fn is(&self, stat: &InodeStat) -> bool {
        let other = Self::of(stat);
        let same_content = stat.kind == InodeKind::Directory
            || (self.size == other.size && self.modified == other.modified);
        self.inode() == other.inode() && self.mode == other.mode && same_content
    }
}

/// What belonged to an inode beside its content. [`Attributes`] as they are written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    mode: u32,
    uid: u32,
    gid: u32,
    accessed: (i64, u32),
    modified: (i64, u32),
    extended: Vec<(Vec<u8>, Vec<u8>)>,
}

impl From<Attributes> for Before {
    fn from(from: Attributes) -> Self {
        let Attributes { mode, uid, gid, accessed, modified, extended } = from;
        Self { mode, uid, gid, accessed, modified, extended }
    }
}

impl From<Before> for Attributes {
    fn from(from: Before) -> Self {
        let Before { mode, uid, gid, accessed, modified, extended } = from;
        Self { mode, uid, gid, accessed, modified, extended }
    }
}

/// The content of a file before a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// It did not change: the attributes did.
    Same,
    /// It grew: what was there are its first bytes, this many.
    Prefix(u64),
    /// It stands in the journal under the record's number.
    Kept,
}

/// What happened. Everything that changes something is written down before it happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A machine opened the journal.
    Opened,
    /// Something new gets a name.
    Make {
        /// The name.
        at: Place,
        /// Another name of the inode, if it had one before.
        of: Option<Place>,
    },
    /// An inode gets another name; a name in the journal is what removing means.
    Move {
        /// Its name.
        from: Place,
        /// The other one.
        to: Place,
        /// The inode.
        inode: Ident,
        /// What had that name is kept under the record's number.
        over: bool,
    },
    /// Two inodes exchange their names.
    Swap {
        /// One name.
        one: Place,
        /// The other.
        other: Place,
        /// The inode that had the name `one`.
        inode: Ident,
    },
    /// A file's content or an inode's attributes are about to change.
    Change {
        /// A name of it.
        at: Place,
        /// The inode before.
        inode: Ident,
        /// Its attributes before.
        before: Before,
        /// Its content before.
        content: Content,
        /// The first change since the file was opened: this record's own number or an earlier one's.
        opening: u64,
    },
    /// What the record `of` announced has happened.
    Done {
        /// The record's number.
        of: u64,
        /// What stands now where it put something.
        after: Option<Ident>,
    },
    /// What the record `of` announced has not happened.
    Void {
        /// The record's number.
        of: u64,
    },
    /// The guest has closed a file that it changed.
    Settled {
        /// The first change since it was opened.
        of: u64,
        /// A name of it.
        at: Place,
        /// The inode as it is now.
        after: Ident,
    },
    /// What is kept under a number was given up, to make room.
    Dropped {
        /// The number.
        kept: u64,
    },
    /// A rollback begins: the records up to its end are its own.
    RollbackBegun {
        /// The last record that it left in force.
        to: u64,
    },
    /// A rollback has ended.
    RollbackEnded,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Ascends by at least one.
    pub seq: u64,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Who did it: the number of a session in the guest; 0 for the machine as a whole.
    pub session: u32,
    /// What happened.
    pub event: Event,
}

impl Record {
    /// Appends the record as it stands in the file.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + FRAME, 0);
        let mut body = postcard::to_stdvec(self).unwrap_or_default();
        out[start..start + 4].copy_from_slice(&(body.len() as u32).to_le_bytes());
        out[start + 4..start + FRAME].copy_from_slice(&checksum(&body));
        out.append(&mut body);
    }

    /// The record at the front of `bytes` and its length there; `None` if none is whole.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let (len, rest) = bytes.split_first_chunk::<4>()?;
        let (sum, rest) = rest.split_first_chunk::<8>()?;
        let len = u32::from_le_bytes(*len) as usize;
        let body = rest.get(..len).filter(|_| len <= RECORD_MAX)?;
        if checksum(body) != *sum {
            return None;
        }
        Some((postcard::from_bytes(body).ok()?, FRAME + len))
    }
}

fn checksum(body: &[u8]) -> [u8; 8] {
    let hash = Sha256::digest(body);
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let inode = Ident { device: 1, ino: 2, mode: 0o100_644, size: 3, modified: 4, born: 5 };
        let at = Place::share(Path::new("a/b"));
        let before = Before::from(Attributes { mode: 0o644, ..Attributes::default() });
        let event = Event::Change { at, inode, before, content: Content::Kept, opening: 7 };
        Record { seq: 7, time: 9, session: 0, event }
    }

    #[test]
    fn the_bytes_of_a_record_never_change() {
        let mut bytes = Vec::new();
        record().encode(&mut bytes);
        assert_eq!(bytes, GOLDEN);
        assert_eq!(Record::decode(&bytes), Some((record(), bytes.len())));
    }

    const GOLDEN: &[u8] = &[
        0x1c, 0x00, 0x00, 0x00, 0x2b, 0xa0, 0x81, 0x02, 0xa1, 0xab, 0x4d, 0x4d, 0x07, 0x09, 0x00,
        0x04, 0x00, 0x03, 0x61, 0x2f, 0x62, 0x01, 0x02, 0xa4, 0x83, 0x02, 0x03, 0x08, 0x0a, 0xa4,
        0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x07,
    ];

    #[test]
    fn a_torn_or_changed_record_is_none() {
        let mut bytes = Vec::new();
        record().encode(&mut bytes);
        for len in 0..bytes.len() {
            assert_eq!(Record::decode(&bytes[..len]), None);
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            assert_eq!(Record::decode(&changed), None, "byte {at}");
        }
    }
}

//! The superblock and the index, as bytes.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The generation of the format. `tests/goldens.rs` pins the bytes of this one.
pub const FORMAT_VERSION: u32 = 1;

/// How a snapshot begins.
const MAGIC: &[u8; 8] = b"cabansnp";
/// Bytes of the superblock's fields, and of the hash behind them.
const FIELDS: usize = 72;
const HASH: usize = 32;
/// Bytes that the superblock has in the file.
pub(crate) const SUPERBLOCK_LEN: usize = 4096;
/// Contents begin at multiples of this, so that they can be mapped with huge pages.
pub(crate) const ALIGN: u64 = 2 << 20;
/// No index is larger: it is read into memory before its hash is known to be right.
pub(crate) const MAX_INDEX: u64 = 64 << 20;

/// Where the rest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) file_len: u64,
    pub(crate) index_start: u64,
    pub(crate) index_len: u64,
    pub(crate) index_hash: [u8; HASH],
}

/// Why bytes are no superblock of this version.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoSuperblock {
    Foreign,
    Version(u32),
    Corrupted,
}

impl Superblock {
    pub(crate) fn encode(&self) -> [u8; SUPERBLOCK_LEN] {
        let mut bytes = [0; SUPERBLOCK_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        for (at, value) in [(16, self.file_len), (24, self.index_start), (32, self.index_len)] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes[40..FIELDS].copy_from_slice(&self.index_hash);
        let hash = hash(&bytes[..FIELDS]);
        bytes[FIELDS..FIELDS + HASH].copy_from_slice(&hash);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; SUPERBLOCK_LEN]) -> Result<Self, NoSuperblock> {
        if &bytes[..8] != MAGIC {
            return Err(NoSuperblock::Foreign);
        }
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(number)
        };
        let version = number(8) as u32;
        if version != FORMAT_VERSION {
            return Err(NoSuperblock::Version(version));
        }
        if bytes[FIELDS..FIELDS + HASH] != hash(&bytes[..FIELDS]) {
            return Err(NoSuperblock::Corrupted);
        }
        let mut index_hash = [0; HASH];
        index_hash.copy_from_slice(&bytes[40..FIELDS]);
        Ok(Self {
            file_len: number(16),
            index_start: number(24),
            index_len: number(32),
            index_hash,
        })
    }
}

/// What is in a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Index {
    /// The program that made it.
    pub(crate) made_by: String,
    /// When, in seconds since 1970.
    pub(crate) made_at: u64,
    /// When the file was modified last, in nanoseconds since 1970, if nobody has since.
    pub(crate) stamp: u64,
    pub(crate) parts: Vec<Part>,
    pub(crate) contents: Vec<Content>,
}

/// Something small.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) version: u16,
    #[serde(with = "serde_bytes")]
    pub(crate) bytes: Vec<u8>,
}

/// Something large, sparse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Its name.
    pub name: String,
    /// Where it begins in the file.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Where it has data: offsets in it and lengths, whole pages, ascending. All else is zero; what lies
    /// in between may be too.
    pub extents: Vec<(u64, u64)>,
    /// SHA-256 of its pages that are not zero, each behind its number (64 bits, little-endian).
    pub hash: [u8; HASH],
}

pub(crate) fn hash(bytes: &[u8]) -> [u8; HASH] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_superblock_counts() {
        let superblock =
            Superblock { file_len: 1 << 40, index_start: 4096, index_len: 77, index_hash: [9; 32] };
        let bytes = superblock.encode();
        assert_eq!(Superblock::decode(&bytes), Ok(superblock));
        for at in 0..FIELDS + HASH {
            let mut changed = bytes;
            changed[at] ^= 1;
            assert!(Superblock::decode(&changed).is_err(), "byte {at}");
        }
        let mut other = bytes;
        other[8] = 2;
        assert_eq!(Superblock::decode(&other), Err(NoSuperblock::Version(2)));
        other[0] = b'C';
        assert_eq!(Superblock::decode(&other), Err(NoSuperblock::Foreign));
    }
}

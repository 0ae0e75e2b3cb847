//! Hashes of files, and the sparse variant for disks that are nearly all hole.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use crate::sys;

/// Unit of reading; the sparse hash skips units of zeros.
const BLOCK: usize = 64 << 10;

/// Whether a file is to be hashed by its data alone: more than half of it is hole.
pub(crate) fn is_sparse(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    Ok(metadata.len() > BLOCK as u64 && sys::allocated(&metadata) < metadata.len() / 2)
}

/// SHA-256 of a file's content, in hexadecimal.
pub(crate) fn dense(file: &File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 4 * BLOCK];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset)? {
            0 => return Ok(hex(&hasher.finalize())),
            count => {
                hasher.update(&buffer[..count]);
                offset += count as u64;
            }
        }
    }
}

/// SHA-256 over the file's size and, for each aligned block of 64 KiB that has a byte other than
/// zero, its offset and content. The same for every copy of a file, whether its holes are kept or
/// written out; the time is that of reading the data.
pub(crate) fn sparse(file: &File) -> io::Result<String> {
    let size = file.metadata()?.len();
    let mut hasher = Sha256::new();
    hasher.update(size.to_le_bytes());
    let mut buffer = vec![0; BLOCK];
    let mut offset = 0;
    while let Some((start, end)) = sys::next_data(file, offset)? {
        let mut block = offset.max(start / BLOCK as u64 * BLOCK as u64);
        while block < end {
            let count = (size - block).min(BLOCK as u64) as usize;
            file.read_exact_at(&mut buffer[..count], block)?;
            if buffer[..count].iter().any(|byte| *byte != 0) {
                hasher.update(block.to_le_bytes());
                hasher.update(&buffer[..count]);
            }
            block += BLOCK as u64;
        }
        offset = block;
    }
    Ok(hex(&hasher.finalize()))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dense_hash_is_sha256() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"abc", 0).unwrap();
        assert_eq!(
            dense(&file).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(!is_sparse(&file).unwrap());
    }

    #[test]
    fn the_sparse_hash_is_of_the_content_and_not_of_the_layout() {
        let write = |dense: bool| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(3_000_001).unwrap();
            if dense {
                file.write_all_at(&vec![0; 3_000_001], 0).unwrap();
            }
            for offset in [0, 777_777, 3_000_000] {
                file.write_all_at(&[7], offset).unwrap();
            }
            file
        };
        let (holes, full) = (write(false), write(true));
        assert!(is_sparse(&holes).unwrap());
        let hash = sparse(&holes).unwrap();
        assert_eq!(hash, sparse(&full).unwrap());

        holes.write_all_at(&[8], 777_777).unwrap();
        assert_ne!(hash, sparse(&holes).unwrap());
        full.set_len(3_000_002).unwrap();
        assert_ne!(hash, sparse(&full).unwrap());
    }

    #[test]
    fn a_huge_hole_costs_nothing() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(b"x", 1 << 39).unwrap();
        let start = std::time::Instant::now();
        sparse(&file).unwrap();
        assert!(start.elapsed().as_secs() < 2);
    }
}

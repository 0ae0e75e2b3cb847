//! Hashes of files, and the sparse variant for disks that are nearly all hole.

use std::fmt::Write as _;
use std::fs::File;
use std::io;

use cabana_os::file::{FileExt as _, allocated};
use sha2::{Digest, Sha256};

use crate::manifest::Run;

/// Unit of reading.
const CHUNK: usize = 256 << 10;
/// Unit of the sparse hash, which leaves out units of zeros.
const BLOCK: usize = 4 << 10;

/// Whether a file is to be hashed by its data alone: more than half of it is hole.
pub(crate) fn is_sparse(file: &File) -> io::Result<bool> {
    let len = file.metadata()?.len();
    Ok(len > CHUNK as u64 && allocated(file)? < len / 2)
}

/// SHA-256 of a file's content, in hexadecimal.
pub(crate) fn dense(file: &File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
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

/// Hashes a file that is mostly hole; `runs` is where it may have data, in order.
///
/// The SHA-256 covers the file's size and, for each aligned block of 4 KiB that has a byte other
/// than zero, its offset and content: the same for every copy of a file, whether its holes are kept
/// or written out. Returns with it the runs of those blocks.
pub(crate) fn sparse(file: &File, runs: &[Run]) -> io::Result<(String, Vec<Run>)> {
    let size = file.metadata()?.len();
    let mut hasher = Sha256::new();
    hasher.update(size.to_le_bytes());
    let mut data: Vec<Run> = Vec::new();
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    for Run(start, length) in runs {
        let end = start.saturating_add(*length).next_multiple_of(BLOCK as u64).min(size);
        position = position.max(start / BLOCK as u64 * BLOCK as u64);
        while position < end {
            let count = (end - position).min(CHUNK as u64) as usize;
            file.read_exact_at(&mut buffer[..count], position)?;
            for block in buffer[..count].chunks(BLOCK) {
                if block.iter().any(|byte| *byte != 0) {
                    hasher.update(position.to_le_bytes());
                    hasher.update(block);
                    match data.last_mut() {
                        Some(last) if last.0 + last.1 == position => last.1 += block.len() as u64,
                        _ => data.push(Run(position, block.len() as u64)),
                    }
                }
                position += block.len() as u64;
            }
        }
    }
    Ok((hex(&hasher.finalize()), data))
}

/// Copies runs of one file to the same places of another.
pub(crate) fn copy(from: &File, to: &File, runs: &[Run]) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    for Run(start, length) in runs {
        let mut done = 0;
        while done < *length {
            let count = (length - done).min(CHUNK as u64) as usize;
            from.read_exact_at(&mut buffer[..count], start + done)?;
            to.write_all_at(&buffer[..count], start + done)?;
            done += count as u64;
        }
    }
    Ok(())
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
    use crate::sys;

    /// One that may have holes.
    fn file() -> File {
        cabana_os::file::unnamed(&std::env::temp_dir()).unwrap()
    }

    #[test]
    fn the_dense_hash_is_sha256() {
        let file = file();
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
            let file = file();
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
        let hash = |file| sparse(file, &sys::data_runs(file).unwrap()).unwrap();
        let first = hash(&holes);
        assert_eq!(first, hash(&full));
        assert_eq!(first.1, [Run(0, 4096), Run(774_144, 4096), Run(2_998_272, 1729)]);
        assert_eq!(first, sparse(&full, &first.1).unwrap());

        let copied = file();
        copied.set_len(3_000_001).unwrap();
        copy(&full, &copied, &first.1).unwrap();
        assert_eq!(first, hash(&copied));
        assert!(is_sparse(&copied).unwrap());

        holes.write_all_at(&[8], 777_777).unwrap();
        assert_ne!(first.0, hash(&holes).0);
        full.set_len(3_000_002).unwrap();
        assert_ne!(first.0, hash(&full).0);
    }

    #[test]
    fn a_huge_hole_costs_nothing() {
        let file = file();
        file.set_len(1 << 39).unwrap();
        file.write_all_at(b"x", 1 << 39).unwrap();
        let start = std::time::Instant::now();
        let runs = sys::data_runs(&file).unwrap();
        assert_eq!(sparse(&file, &runs).unwrap().1, [Run(1 << 39, 1)]);
        assert!(start.elapsed().as_secs() < 2);
    }
}

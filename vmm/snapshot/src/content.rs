//! Contents: written without their zero pages, and hashed over the others, so that the hash is the same
//! whether a copy kept the holes or filled them.

use std::fs::File;
use std::io;

use cabana_os::file::{self, FileExt};
use sha2::{Digest, Sha256};

pub(crate) const PAGE: usize = 4096;
/// Read at once.
const CHUNK: usize = 64 * PAGE;
/// Extents that are no further apart become one: mapping one more costs more than a few pages of zeroes
/// between.
const GAP: u64 = 64 * PAGE as u64;

static ZEROES: [u8; PAGE] = [0; PAGE];

/// Writes `len` bytes, whole pages, that `read` gives by their offsets, to `file` from `start` on, where
/// there are only holes yet; zero pages stay holes.
pub fn write_nonzero(
    file: &File,
    start: u64,
    len: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < len {
        let chunk = &mut buffer[..CHUNK.min((len - at) as usize)];
        read(at, chunk)?;
        for run in nonzero_runs(chunk) {
            file.write_all_at(&chunk[run.clone()], start + at + run.start as u64)?;
        }
        at += chunk.len() as u64;
    }
    Ok(())
}

/// Where a content has data, and its hash.
pub(crate) type Survey = (Vec<(u64, u64)>, [u8; 32]);

/// Reads a content.
pub(crate) fn survey(file: &File, start: u64, len: u64) -> io::Result<Survey> {
    let mut extents: Vec<(u64, u64)> = Vec::new();
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    file::for_each_data(file, start..start + len, |data| {
        // Whole pages of the content, whatever the file system's blocks are.
        let page = PAGE as u64;
        let mut at = (data.start - start) / page * page;
        let end = (data.end - start).next_multiple_of(page).min(len);
        if let Some((last, length)) = extents.last() {
            at = at.max(last + length);
        }
        while at < end {
            let chunk = &mut buffer[..CHUNK.min((end - at) as usize)];
            file.read_exact_at(chunk, start + at)?;
            for run in nonzero_runs(chunk) {
                let (from, length) = (at + run.start as u64, run.len() as u64);
                for (number, page) in (from / PAGE as u64..).zip(chunk[run].chunks(PAGE)) {
                    hasher.update(number.to_le_bytes());
                    hasher.update(page);
                }
                match extents.last_mut() {
                    Some((last, len)) if from - (*last + *len) <= GAP => {
                        *len = from + length - *last;
                    }
                    _ => extents.push((from, length)),
                }
            }
            at += chunk.len() as u64;
        }
        Ok(())
    })?;
    Ok((extents, hasher.finalize().into()))
}

/// The runs of pages that are not all zero.
fn nonzero_runs(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (number, page) in bytes.chunks(PAGE).enumerate() {
        if page == &ZEROES[..page.len()] {
            continue;
        }
        let start = number * PAGE;
        match runs.last_mut() {
            Some(run) if run.end == start => run.end = start + page.len(),
            _ => runs.push(start..start + page.len()),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_pages_are_holes_and_the_hash_knows_no_holes() {
        let mut content = vec![0; 1024 * PAGE];
        for page in [0, 3, 4, 500, 1023] {
            content[page * PAGE + 7] = page as u8 | 1;
        }
        let read = |at: u64, bytes: &mut [u8]| {
            bytes.copy_from_slice(&content[at as usize..][..bytes.len()]);
            Ok(())
        };
        let (sparse, dense) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let len = content.len() as u64;
        sparse.set_len(8192 + len).unwrap();
        write_nonzero(&sparse, 8192, len, read).unwrap();
        dense.write_all_at(&content, 0).unwrap();
        assert!(file::allocated(&sparse).unwrap() <= 16 * PAGE as u64, "holes are filled");
        let (extents, hash) = survey(&sparse, 8192, len).unwrap();
        let page = PAGE as u64;
        assert_eq!(extents, [(0, 5 * page), (500 * page, page), (1023 * page, page)]);
        assert_eq!(survey(&dense, 0, len).unwrap(), (extents, hash));
        dense.write_all_at(&[9], 600 * page).unwrap();
        assert_ne!(survey(&dense, 0, len).unwrap().1, hash);
        let mut back = vec![0; content.len()];
        sparse.read_exact_at(&mut back, 8192).unwrap();
        assert!(back == content);
    }
}

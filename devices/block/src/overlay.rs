//! A disk that begins as a part of another file and keeps its changes elsewhere: many machines start
//! from one snapshot and copy nothing. Which blocks are the machine's own is known in memory only, since
//! such a disk vanishes with its machine.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use cabana_os::file::{self, FileExt, IoPiece};

/// What changes its owner as a whole: a page of the host's cache, and what guests mostly write.
pub(crate) const BLOCK: u64 = 4096;

/// What the disk began as.
#[derive(Debug)]
pub(crate) struct Base {
    file: File,
    /// Where it begins in the file.
    start: u64,
    len: u64,
    /// One bit a block, set once the block is in the disk's own file. A request is served at a time.
    own: Vec<AtomicU64>,
}

impl Base {
    /// `len` bytes of `file` from `start`.
    pub(crate) fn new(file: File, start: u64, len: u64) -> Self {
        let words = len.div_ceil(BLOCK).div_ceil(64) as usize;
        let mut own = Vec::new();
        own.resize_with(words, AtomicU64::default);
        Self { file, start, len, own }
    }

    fn is_own(&self, block: u64) -> bool {
        let word = self.own.get((block / 64) as usize);
        word.is_none_or(|word| word.load(Ordering::Relaxed) >> (block % 64) & 1 == 1)
    }

    /// The pieces of a range that lie in one file, each with whether that is the disk's own.
    pub(crate) fn runs(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, bool)> + '_ {
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let own = self.is_own(at / BLOCK);
            let start = at;
            while at < range.end && self.is_own(at / BLOCK) == own {
                at = (at / BLOCK + 1) * BLOCK;
            }
            Some((start..at.min(range.end), own))
        })
    }

    /// Reads what is not the disk's own.
    ///
    /// # Safety
    /// As [`file::read_pieces_at`].
    pub(crate) unsafe fn read(&self, pieces: &[IoPiece], offset: u64) -> io::Result<usize> {
        // SAFETY: the caller's promise.
        unsafe { file::read_pieces_at(&self.file, pieces, self.start + offset) }
    }

    /// Brings the blocks at both ends of a range that is about to be written into `own`, where the
    /// range leaves a part of them alone.
    pub(crate) fn bring_ends(&self, own: &File, range: &Range<u64>) -> io::Result<()> {
        let mut bytes = [0; BLOCK as usize];
        for edge in [range.start, range.end] {
            let block = edge / BLOCK;
            if edge.is_multiple_of(BLOCK) || self.is_own(block) {
                continue;
            }
            let at = block * BLOCK;
            let bytes = &mut bytes[..(self.len - at).min(BLOCK) as usize];
            self.file.read_exact_at(bytes, self.start + at)?;
            own.write_all_at(bytes, at)?;
            self.mark(at..at + 1);
        }
        Ok(())
    }

    /// All blocks that the range touches are in the disk's own file.
    pub(crate) fn mark(&self, range: Range<u64>) {
        for block in range.start / BLOCK..range.end.div_ceil(BLOCK) {
            if let Some(word) = self.own.get((block / 64) as usize) {
                word.fetch_or(1 << (block % 64), Ordering::Relaxed);
            }
        }
    }

    /// Writes the whole disk to `to` from `at` on, where nothing is yet; holes stay holes.
    pub(crate) fn copy_to(&self, own: &File, to: &File, at: u64) -> io::Result<()> {
        for (run, is_own) in self.runs(0..self.len) {
            let (from, start) = if is_own { (own, 0) } else { (&self.file, self.start) };
            file::copy_sparse_range(from, start + run.start..start + run.end, to, at + run.start)?;
        }
        Ok(())
    }
}

//! A disk that begins as a part of another file and keeps its changes elsewhere: many machines start
//! from one template or snapshot and copy nothing. Which blocks are the machine's own is known in memory only, since
//! such a disk vanishes with its machine.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use cabana_os::file::{self, FileExt, IoPiece};

/// What changes its owner as a whole: a page of the host's cache, and what guests mostly write.
pub(crate) const BLOCK: u64 = 4096;

/// Blocks of a [`Leaf`], 128 MiB.
const LEAF_BLOCKS: u64 = 1 << 15;

/// A bit for each of some blocks that lie together, set once the block is in the disk's own file.
#[derive(Debug)]
struct Leaf([AtomicU64; LEAF_BLOCKS as usize / 64]);

/// What the disk began as.
#[derive(Debug)]
pub(crate) struct Base {
    file: File,
    /// Where it begins in the file.
    start: u64,
    len: u64,
    /// The disk's own blocks, once there are some: a machine writes to few places of a large disk. A request is served at
    /// a time.
    own: Vec<OnceLock<Box<Leaf>>>,
}

impl Base {
    /// `len` bytes of `file` from `start`.
    pub(crate) fn new(file: File, start: u64, len: u64) -> Self {
        let leaves = len.div_ceil(BLOCK).div_ceil(LEAF_BLOCKS) as usize;
        let mut own = Vec::new();
        own.resize_with(leaves, OnceLock::new);
        Self { file, start, len, own }
    }

    /// Is the block the disk's own, and which is the first behind it of which that is not known as well?
    fn is_own(&self, block: u64) -> (bool, u64) {
        match self.own.get((block / LEAF_BLOCKS) as usize).map(OnceLock::get) {
            None => (true, block + 1),
            Some(None) => (false, (block / LEAF_BLOCKS + 1) * LEAF_BLOCKS),
            Some(Some(leaf)) => (leaf.has(block), block + 1),
        }
    }

    /// The pieces of a range that lie in one file, each with whether that is the disk's own.
    pub(crate) fn runs(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, bool)> + '_ {
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let start = at;
            let (own, mut next) = self.is_own(at / BLOCK);
            loop {
                at = next * BLOCK;
                let (same, behind) = self.is_own(next);
                if at >= range.end || same != own {
                    return Some((start..at.min(range.end), own));
                }
                next = behind;
            }
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
            if edge.is_multiple_of(BLOCK) || self.is_own(block).0 {
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
            if let Some(leaf) = self.own.get((block / LEAF_BLOCKS) as usize) {
                leaf.get_or_init(Leaf::new).add(block);
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

impl Leaf {
    fn new() -> Box<Self> {
        Box::new(Self([const { AtomicU64::new(0) }; LEAF_BLOCKS as usize / 64]))
    }

    fn word(&self, block: u64) -> &AtomicU64 {
        &self.0[(block % LEAF_BLOCKS / 64) as usize]
    }

    fn has(&self, block: u64) -> bool {
        self.word(block).load(Ordering::Relaxed) >> (block % 64) & 1 == 1
    }

    fn add(&self, block: u64) {
        self.word(block).fetch_or(1 << (block % 64), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_blocks_are_told_apart_on_a_large_disk() {
        const LEAF: u64 = LEAF_BLOCKS * BLOCK;
        let len = 5 * LEAF + 512;
        let base = Base::new(tempfile::tempfile().unwrap(), 0, len);
        let runs = |range| base.runs(range).collect::<Vec<_>>();
        assert_eq!(runs(0..len), [(0..len, false)]);
        base.mark(2 * LEAF - 1..2 * LEAF + 1);
        base.mark(5 * LEAF + 100..len);
        let (first, end) = (2 * LEAF - BLOCK, 2 * LEAF + BLOCK);
        let (before, own) = ((0..first, false), (first..end, true));
        let expected = [before, own, (end..5 * LEAF, false), (5 * LEAF..len, true)];
        assert_eq!(runs(0..len), expected);
        assert_eq!(
            runs(first - 7..first + 9),
            [(first - 7..first, false), (first..first + 9, true)]
        );
        assert_eq!(runs(LEAF..LEAF), []);
        assert_eq!(base.own.iter().filter(|leaf| leaf.get().is_some()).count(), 3);
    }
}

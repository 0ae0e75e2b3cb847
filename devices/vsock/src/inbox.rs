//! What the guest has sent and nobody has read yet: a queue of blocks. The device fills blocks and
//! the reader empties them without either holding the other up, and a connection at rest has none.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of a block: a packet of Linux's (64 KiB at most) spans a few, so that the reader starts on
/// the first while the next is being filled.
const BLOCK: usize = 16 << 10;
/// Blocks kept for the next packet, for all connections together.
const SPARE: usize = 32;

/// Locks, and does not care about a panic elsewhere.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A piece of the stream: `bytes[start..end]` is still to be read.
#[derive(Debug)]
pub(crate) struct Block {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Block {
    /// The part behind what is in it, for somebody to fill up to `max` bytes of it.
    fn free(&mut self, max: usize) -> &mut [u8] {
        let end = self.end.saturating_add(max).min(BLOCK);
        &mut self.bytes[self.end..end]
    }

    /// Appends up to `max` bytes through `fill`, which is given the place; says how many.
    pub(crate) fn fill<E>(
        &mut self,
        max: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        let place = self.free(max);
        let len = place.len();
        if len > 0 {
            fill(place)?;
            self.end += len;
        }
        Ok(len)
    }

    /// What is still to be read.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Moves bytes from the front into `buf`, as many as fit.
    pub(crate) fn take(&mut self, buf: &mut [u8]) -> usize {
        let len = buf.len().min(self.bytes().len());
        buf[..len].copy_from_slice(&self.bytes()[..len]);
        self.start += len;
        len
    }

    /// True once all has been taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// Empty blocks that wait for data.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    spare: Mutex<Vec<Box<[u8]>>>,
}

impl Pool {
    /// An empty block.
    pub(crate) fn get(&self) -> Block {
        let bytes = lock(&self.spare).pop().unwrap_or_else(|| vec![0; BLOCK].into_boxed_slice());
        Block { bytes, start: 0, end: 0 }
    }

    /// Takes a block back.
    pub(crate) fn put(&self, block: Block) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE {
            spare.push(block.bytes);
        }
    }
}

/// The blocks of one connection, in order. Its length is bounded by the connection's credit: every
/// block but the first and the last is full.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    blocks: VecDeque<Block>,
}

impl Inbox {
    /// Appends a block that has data.
    pub(crate) fn push(&mut self, block: Block) {
        self.blocks.push_back(block);
    }

    /// The first block.
    pub(crate) fn pop(&mut self) -> Option<Block> {
        self.blocks.pop_front()
    }

    /// The last block, which may have room behind its data.
    pub(crate) fn last(&mut self) -> Option<&mut Block> {
        self.blocks.back_mut()
    }

    /// True if there is nothing to read.
    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.blocks = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(block: &mut Block, max: usize, byte: u8) -> usize {
        block
            .fill(max, |place| {
                place.fill(byte);
                Ok::<(), ()>(())
            })
            .unwrap()
    }

    #[test]
    fn a_block_gives_back_what_was_put_in() {
        let mut block = Pool::default().get();
        assert_eq!(fill(&mut block, 3, 1), 3);
        assert_eq!(fill(&mut block, 2, 2), 2);
        let mut buf = [0; 4];
        assert_eq!(block.take(&mut buf), 4);
        assert_eq!(buf, [1, 1, 1, 2]);
        assert!(!block.is_empty());
        assert_eq!(block.take(&mut buf), 1);
        assert!(block.is_empty());
    }

    #[test]
    fn a_block_takes_no_more_than_it_has_room_for() {
        let mut block = Pool::default().get();
        assert_eq!(fill(&mut block, BLOCK - 1, 1), BLOCK - 1);
        assert_eq!(fill(&mut block, usize::MAX, 2), 1);
        assert_eq!(fill(&mut block, 1, 3), 0);
    }

    #[test]
    fn a_failed_fill_leaves_no_trace() {
        let mut block = Pool::default().get();
        assert_eq!(block.fill(5, |_| Err(())), Err(()));
        assert!(block.is_empty());
    }

    #[test]
    fn the_pool_is_bounded() {
        let pool = Pool::default();
        let blocks: Vec<_> = (0..SPARE + 5).map(|_| pool.get()).collect();
        for block in blocks {
            pool.put(block);
        }
        assert_eq!(lock(&pool.spare).len(), SPARE);
    }
}

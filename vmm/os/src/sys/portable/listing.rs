//! Directories that are read one entry after another, on systems that cannot go on at any place: to go back is to
//! begin anew.

use std::ffi::CString;
use std::io::{self, Result};

use crate::sys::tree::{Handle, Listed};

/// An entry.
pub struct Item {
    pub(in crate::sys) name: CString,
    pub(in crate::sys) ino: u64,
    pub(in crate::sys) kind: u32,
}

/// What a system reads directories by.
pub trait Entries: Sized {
    /// Begins to read a directory.
    fn open(directory: &Handle) -> Result<Self>;
    /// The next entry; `None` behind the last.
    fn next(&mut self) -> Result<Option<Item>>;
    /// Begins anew.
    fn rewind(&mut self) -> Result<()>;
    /// Brings the directory to the disk.
    fn sync(&self) -> Result<()>;
}

/// A directory that is being read.
#[derive(Debug)]
pub struct Sequence<E> {
    entries: E,
    /// How many have been handed on.
    position: u64,
    /// One that was read and had no room.
    waiting: Option<Item>,
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.name.fmt(f)
    }
}

/// Bytes that an entry takes in a buffer of Linux's, beside its name.
const OVERHEAD: usize = 19;

impl<E: Entries> Sequence<E> {
    /// Begins to read a directory.
    pub fn open(directory: &Handle) -> Result<Self> {
        Ok(Self { entries: E::open(directory)?, position: 0, waiting: None })
    }

    /// Calls `each` for about as many entries as `room` bytes hold, until it says false; the one that it refuses comes
    /// again.
    pub fn read(&mut self, room: usize, mut each: impl FnMut(&Listed) -> bool) -> Result<()> {
        let mut left = room;
        loop {
            let Some(item) = self.next()? else { return Ok(()) };
            let listed = Listed {
                name: &item.name,
                ino: item.ino,
                kind: item.kind,
                next: self.position + 1,
            };
            if !each(&listed) {
                self.waiting = Some(item);
                return Ok(());
            }
            self.position += 1;
            left = left.saturating_sub(OVERHEAD + item.name.count_bytes());
            if left == 0 {
                return Ok(());
            }
        }
    }

    /// Moves the position to what [`Listed::next`] said; zero is the beginning.
    pub fn seek(&mut self, position: u64) -> Result<()> {
        if position < self.position || position == 0 {
            self.entries.rewind()?;
            (self.position, self.waiting) = (0, None);
        }
        while self.position < position && self.next()?.is_some() {
            self.position += 1;
        }
        Ok(())
    }

    /// Brings the directory to the disk.
    pub fn sync(&self, _data_only: bool) -> io::Result<()> {
        self.entries.sync()
    }

    fn next(&mut self) -> Result<Option<Item>> {
        match self.waiting.take() {
            Some(item) => Ok(Some(item)),
            None => self.entries.next(),
        }
    }
}

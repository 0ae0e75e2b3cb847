//! An initramfs or initrd: one file at the top of low RAM.

use std::fs::File;
use std::path::{Path, PathBuf};

use cabana_memory::{GuestAddress, GuestRam};

use crate::{BootError, read_into};

const PAGE: u64 = 4096;
/// Up to this length a copy into RAM costs less than the faults of mapped pages, which the kernel
/// first reads and later writes.
const COPIED: u64 = 4 << 20;

/// A file that the kernel finds in its memory.
#[derive(Debug)]
pub struct Initrd {
    path: PathBuf,
    file: File,
    len: u64,
}

/// Where it was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) start: u64,
    pub(crate) len: u64,
}

impl Initrd {
    /// Opens the file.
    pub fn open(path: &Path) -> Result<Self, BootError> {
        let read = |source| BootError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(read(std::io::Error::other("it is not a file")));
        }
        Ok(Self { path: path.to_owned(), file, len: metadata.len() })
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Maps it below `top`, above `bottom` (the kernel's end).
    pub(crate) fn place(&self, ram: &GuestRam, bottom: u64, top: u64) -> Result<Placed, BootError> {
        if self.len == 0 {
            return Ok(Placed { start: 0, len: 0 });
        }
        let room = self.len.next_multiple_of(PAGE);
        let start = top.checked_sub(room).filter(|start| *start >= bottom).ok_or_else(|| {
            BootError::TooLittleMemory {
                what: format!("the kernel with {}", self.path.display()),
                needed: bottom.saturating_add(room),
                available: top,
            }
        })? & !(PAGE - 1);
        if self.len > COPIED {
            ram.map_file(GuestAddress(start), room as usize, &self.file, 0)?;
        } else {
            read_into(&self.file, 0, ram, GuestAddress(start), self.len as usize)
                .map_err(|error| error.of(&self.path))?;
        }
        Ok(Placed { start, len: self.len })
    }
}

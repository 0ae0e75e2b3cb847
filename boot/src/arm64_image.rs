//! The arm64 kernel's `Image` (`Documentation/arch/arm64/booting.rst`, "Call the kernel image").

use std::fs::File;
use std::path::Path;

use cabana_memory::{GuestAddress, GuestRam};

use crate::{BootError, read_into};

/// `magic` of the header, and where it stands.
const MAGIC: (usize, &[u8]) = (0x38, b"ARM\x64");
const HEADER_LEN: usize = 64;
/// Bit 0 of `flags`: the kernel is big-endian.
const BIG_ENDIAN: u64 = 1;
/// The kernel may be placed at `text_offset` from an address aligned so.
const ALIGN: u64 = 2 << 20;

/// What the header says.
#[derive(Debug)]
pub struct Arm64Image {
    text_offset: u64,
    /// What it takes in memory, its zeroed data included.
    image_size: u64,
    /// What of it is in the file.
    file_len: u64,
}

impl Arm64Image {
    /// Reads the header; `None` if this is no such image.
    pub(crate) fn parse(path: &Path, file: &File, head: &[u8]) -> Result<Option<Self>, BootError> {
        let (at, magic) = MAGIC;
        let Some(header) = head.get(..HEADER_LEN).filter(|head| head[at..].starts_with(magic))
        else {
            return Ok(None);
        };
        let u64_at = |at: usize| {
            header[at..at + 8].iter().rev().fold(0, |above, &byte| above << 8 | u64::from(byte))
        };
        let (text_offset, image_size, flags) = (u64_at(8), u64_at(16), u64_at(24));
        let refuse = |why| Err(BootError::NotAKernel { path: path.to_owned(), why });
        if image_size == 0 {
            return refuse("it is an arm64 kernel older than 3.17, which does not tell its size");
        }
        if flags & BIG_ENDIAN != 0 {
            return refuse("it is a big-endian arm64 kernel");
        }
        if text_offset >= ALIGN {
            return refuse("its text offset is not below 2 MiB");
        }
        let read = |source| BootError::Read { path: path.to_owned(), source };
        let file_len = file.metadata().map_err(read)?.len();
        Ok(Some(Self { text_offset, image_size: image_size.max(file_len), file_len }))
    }

    /// Where it starts, and where it is entered, in RAM that begins at `ram`.
    pub(crate) fn entry(&self, ram: u64) -> u64 {
        ram.next_multiple_of(ALIGN) + self.text_offset
    }

    /// One past the last byte that the kernel needs.
    pub(crate) fn end(&self, ram: u64) -> u64 {
        self.entry(ram).saturating_add(self.image_size)
    }

    /// Copies it to `at`. What is written and what is read are not told apart in the file, so that it is
    /// not mapped.
    pub(crate) fn load(
        &self,
        path: &Path,
        file: &File,
        ram: &GuestRam,
        at: u64,
    ) -> Result<(), BootError> {
        read_into(file, 0, ram, GuestAddress(at), self.file_len as usize)
            .map_err(|error| error.of(path))
    }
}

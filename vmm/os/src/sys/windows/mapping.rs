//! Memory, owned and given back on drop (`VirtualAlloc`).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr;

use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_DECOMMIT, MEM_RELEASE, MEM_RESERVE, PAGE_NOACCESS, PAGE_READWRITE,
    VirtualAlloc, VirtualFree,
};

use super::file::{IoPiece, read_pieces_at};
use crate::sys::whole_pages;

/// Pages have this size on every Windows that runs here.
const PAGE: usize = 4096;

/// A page-aligned range of this process's address space.
#[derive(Debug)]
pub struct Mapping {
    addr: *mut u8,
    len: usize,
    /// What was reserved for it, free room on both sides included.
    base: *mut u8,
}

// SAFETY: the range belongs to the value alone; what is stored in it is accessed by whoever holds
// the pointer, under rules of their own (guest memory is volatile by nature).
unsafe impl Send for Mapping {}
// SAFETY: as above; the methods themselves only hand out the address or call the system.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes of zeroes, backed as they are touched. Windows counts them against its commit limit at
    /// once. Aligned to 2 MiB, with addresses on both sides that nobody may touch.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        const HUGE: usize = 2 << 20;
        let len = match len.checked_next_multiple_of(PAGE) {
            Some(len) if len > 0 => len,
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let reserved = len.checked_add(2 * HUGE).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new range at an address of the system's choice touches nothing that exists.
        let base = unsafe { VirtualAlloc(ptr::null(), reserved, MEM_RESERVE, PAGE_NOACCESS) };
        if base.is_null() {
            return Err(io::Error::last_os_error());
        }
        let addr = (base as usize + 1).next_multiple_of(HUGE) as *mut u8;
        let mapping = Self { addr, len, base: base.cast() };
        mapping.commit(0..len)?;
        Ok(mapping)
    }

    /// Replaces `range` of this mapping by the bytes of `file` from `offset`. They are read, not mapped:
    /// a view of a file can take the place of memory only in steps of 64 KiB.
    pub fn overlay_file(&self, range: Range<usize>, file: &File, offset: u64) -> io::Result<()> {
        self.check(&range)?;
        let piece = IoPiece { addr: self.addr.wrapping_add(range.start), len: range.len() };
        // SAFETY: the piece lies within this mapping (checked above), to which nobody has references.
        unsafe { read_pieces_at(file, &[piece], offset) }?;
        Ok(())
    }

    /// The first byte's address.
    pub fn as_ptr(&self) -> *mut u8 {
        self.addr
    }

    /// Length in bytes, a multiple of the page size.
    #[allow(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Large pages are a privilege of few users on Windows: nothing is asked for.
    pub fn advise_huge(&self, range: Range<usize>) -> io::Result<()> {
        self.check(&range)
    }

    /// All pages are small.
    pub fn advise_small(&self, range: Range<usize>) -> io::Result<()> {
        self.check(&range)
    }

    /// Windows has no such thing.
    pub fn populate(&self, range: Range<usize>) -> io::Result<()> {
        self.check(&range)?;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// What was mapped is in memory already.
    pub fn will_need(&self, range: Range<usize>) -> io::Result<()> {
        self.check(&range)
    }

    /// Large pages are a privilege of few users on Windows.
    pub fn enlarge(&self, range: Range<usize>) -> io::Result<()> {
        self.check(&range)?;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Windows does not say which pages a process has touched, so that it makes no difference.
    pub fn bring_in_singly(&self, range: Range<usize>) -> io::Result<()> {
        self.check(&range)
    }

    /// Ends what [`Mapping::bring_in_singly`] began.
    pub fn bring_in_together(&self, range: Range<usize>) -> io::Result<()> {
        self.check(&range)
    }

    /// Gives the whole pages in `range` back to the host; they read as zeroes again.
    pub fn discard(&self, range: Range<usize>) -> io::Result<()> {
        self.check(&range)?;
        let range = whole_pages(range, PAGE);
        if range.is_empty() {
            return Ok(());
        }
        let at = self.addr.wrapping_add(range.start);
        // SAFETY: the range lies within this mapping (checked above), to which nobody has references.
        if unsafe { VirtualFree(at.cast(), range.len(), MEM_DECOMMIT) } == 0 {
            return Err(io::Error::last_os_error());
        }
        self.commit(range)
    }

    fn commit(&self, range: Range<usize>) -> io::Result<()> {
        let at = self.addr.wrapping_add(range.start);
        // SAFETY: within what this value has reserved.
        let done = unsafe { VirtualAlloc(at.cast(), range.len(), MEM_COMMIT, PAGE_READWRITE) };
        if done.is_null() { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn check(&self, range: &Range<usize>) -> io::Result<()> {
        if range.start > range.end || range.end > self.len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is owned by this value and nobody can use it any more.
        unsafe { VirtualFree(self.base.cast(), 0, MEM_RELEASE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_whole_pages() {
        assert_eq!(Mapping::anonymous(5000).unwrap().len(), 8192);
    }
}

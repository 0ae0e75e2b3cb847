//! Memory mappings (`mmap(2)`), owned and unmapped on drop.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};

use super::host;
use crate::sys::whole_pages;

/// What a mapping of a file may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only; pages are shared with the host's page cache.
    ReadOnly,
    /// Read and write; what is written stays private to this process.
    CopyOnWrite,
    /// Read and write; what is written reaches the file.
    Shared,
}

/// A page-aligned range of this process's address space.
#[derive(Debug)]
pub struct Mapping {
    addr: *mut u8,
    len: usize,
    /// All addresses that go with it: itself and what is kept free around it.
    reserved: Range<usize>,
}

// SAFETY: the range belongs to the value alone; what is stored in it is accessed by whoever holds
// the pointer, under rules of their own (guest memory is volatile by nature).
unsafe impl Send for Mapping {}
// SAFETY: as above; the methods themselves only hand out the address or call the kernel.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes of zeroes, committed as they are touched and not counted against overcommit.
    /// Aligned to 2 MiB, so that the host can back it with huge pages, and with addresses on both sides
    /// that nobody may touch: who runs over an end of it meets no other memory.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        const HUGE: usize = 2 << 20;
        let len = page_align(len)?;
        let reserved = len.checked_add(2 * HUGE).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), reserved, ProtFlags::empty(), flags)? };
        let base = base as usize;
        // Past the first page, so that at least that stays free in front.
        let addr = (base + 1).next_multiple_of(HUGE) as *mut u8;
        let mapping = Self { addr, len, reserved: base..base + reserved };
        let prot = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: a part of the mapping made above that nothing uses yet: it begins at most 2 MiB
        // behind its start and ends before its end.
        unsafe { mprotect(addr.cast(), len, prot)? };
        Ok(mapping)
    }

    /// `len` bytes of `file` from `offset` (a multiple of the page size).
    pub fn file(file: &File, offset: u64, len: usize, access: Access) -> io::Result<Self> {
        let len = page_align(len)?;
        let (prot, flags) = file_flags(access);
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let addr = unsafe { mmap(ptr::null_mut(), len, prot, flags, file, offset)? };
        Ok(Self { addr: addr.cast(), len, reserved: addr as usize..addr as usize + len })
    }

    /// Replaces `range` of this mapping by the bytes of `file` from `offset`, copy on write.
    /// Everything is a multiple of the page size; bytes past the file's end fault when touched.
    pub fn overlay_file(&self, range: Range<usize>, file: &File, offset: u64) -> io::Result<()> {
        let at = self.within(&range)?;
        let (prot, flags) = file_flags(Access::CopyOnWrite);
        // SAFETY: the range lies within this mapping (checked above), which this value owns.
        unsafe { mmap(at.cast(), range.len(), prot, flags | MapFlags::FIXED, file, offset)? };
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

    /// Asks for 2 MiB pages where the host has them.
    pub fn advise_huge(&self, range: Range<usize>) -> io::Result<()> {
        let at = self.within(&range)?;
        // SAFETY: the range lies within this mapping.
        unsafe { host::advise_huge(at, range.len()) }
    }

    /// Asks for small pages, even where the host prefers large ones.
    pub fn advise_small(&self, range: Range<usize>) -> io::Result<()> {
        let at = self.within(&range)?;
        // SAFETY: the range lies within this mapping.
        unsafe { host::advise_small(at, range.len()) }
    }

    /// Gives the whole pages in `range` back to the host; they read as zeroes (or as the file) again.
    pub fn discard(&self, range: Range<usize>) -> io::Result<()> {
        self.within(&range)?;
        let pages = whole_pages(range, rustix::param::page_size());
        if pages.is_empty() {
            return Ok(());
        }
        let at = self.within(&pages)?;
        // SAFETY: the pages lie within this mapping, and no Rust reference points to them: guest memory has
        // none.
        unsafe { host::discard(at, pages.len()) }
    }

    /// Gives the process all pages in `range` as its own now, in place of one by one when it writes to them.
    pub fn populate(&self, range: Range<usize>) -> io::Result<()> {
        let at = self.within(&range)?;
        // SAFETY: the range lies within this mapping.
        unsafe { host::populate(at, range.len()) }
    }

    /// Begins to read what files have of `range`, and does not wait for it.
    pub fn will_need(&self, range: Range<usize>) -> io::Result<()> {
        let at = self.within(&range)?;
        // SAFETY: the range lies within this mapping.
        unsafe { host::will_need(at, range.len()) }
    }

    /// Puts what is in `range`, multiples of 2 MiB of one file, into pages of that size: quick if it is already. Where the
    /// system or the file's cannot, it is an error and nothing has changed.
    pub fn enlarge(&self, range: Range<usize>) -> io::Result<()> {
        let at = self.within(&range)?;
        // SAFETY: the range lies within this mapping.
        unsafe { host::enlarge(at, range.len()) }
    }

    /// Lets a page in `range` (whole pages) that is touched come in without its neighbours: what has come in was touched
    /// then. It costs the system a mapping a page.
    pub fn bring_in_singly(&self, range: Range<usize>) -> io::Result<()> {
        let page = rustix::param::page_size();
        for at in range.step_by(2 * page) {
            let start = self.within(&(at..at + page))?;
            // SAFETY: the range lies within this mapping.
            unsafe { host::separate(start, page, true)? };
        }
        Ok(())
    }

    /// Ends what [`Mapping::bring_in_singly`] began.
    pub fn bring_in_together(&self, range: Range<usize>) -> io::Result<()> {
        let at = self.within(&range)?;
        // SAFETY: the range lies within this mapping.
        unsafe { host::separate(at, range.len(), false) }
    }

    /// Where a range of this mapping begins.
    fn within(&self, range: &Range<usize>) -> io::Result<*mut u8> {
        if range.start > range.end || range.end > self.len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(self.addr.wrapping_add(range.start))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let Range { start, end } = self.reserved;
        // SAFETY: the range is owned by this value and nobody can use it any more.
        let _ = unsafe { munmap(start as *mut _, end - start) };
    }
}

fn file_flags(access: Access) -> (ProtFlags, MapFlags) {
    match access {
        Access::ReadOnly => (ProtFlags::READ, MapFlags::SHARED),
        Access::CopyOnWrite => {
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE)
        }
        Access::Shared => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED),
    }
}

fn page_align(len: usize) -> io::Result<usize> {
    match len.checked_next_multiple_of(rustix::param::page_size()) {
        Some(len) if len > 0 => Ok(len),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::unix::pieces::{IoPiece, read_pieces_at};
    use std::io::Write;

    fn byte(mapping: &Mapping, at: usize) -> *mut u8 {
        assert!(at < mapping.len());
        mapping.as_ptr().wrapping_add(at)
    }

    #[test]
    fn anonymous_memory_is_zero_and_huge_page_aligned() {
        let mapping = Mapping::anonymous(5000).unwrap();
        assert_eq!(mapping.len(), 8192);
        assert_eq!(mapping.as_ptr() as usize % (2 << 20), 0);
        // SAFETY: within the mapping.
        assert_eq!(unsafe { byte(&mapping, 8191).read_volatile() }, 0);
    }

    #[test]
    fn what_lies_beside_anonymous_memory_cannot_be_touched() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 2]).unwrap();
        let mapping = Mapping::anonymous(4096).unwrap();
        let read = |addr| {
            // SAFETY: where this is memory, it is the mapping's own; elsewhere the call fails.
            unsafe { read_pieces_at(&file, &[IoPiece { addr, len: 1 }], 0) }
        };
        assert_eq!(read(byte(&mapping, 4095)).unwrap(), 1);
        assert!(read(mapping.as_ptr().wrapping_add(4096)).is_err());
        assert!(read(mapping.as_ptr().wrapping_sub(1)).is_err());
    }

    #[test]
    fn an_overlaid_file_is_copied_on_write() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7u8; 4096]).unwrap();
        let mapping = Mapping::anonymous(3 * 4096).unwrap();
        mapping.overlay_file(4096..8192, &file, 0).unwrap();
        // SAFETY: within the mapping.
        unsafe {
            assert_eq!(byte(&mapping, 4095).read_volatile(), 0);
            assert_eq!(byte(&mapping, 4096).read_volatile(), 7);
            byte(&mapping, 4096).write_volatile(9);
        }
        let again = Mapping::file(&file, 0, 4096, Access::ReadOnly).unwrap();
        // SAFETY: within the mapping.
        assert_eq!(unsafe { byte(&again, 0).read_volatile() }, 7);
        assert!(mapping.overlay_file(8192..16384, &file, 0).is_err());
    }

    #[test]
    fn discarded_pages_read_as_zero_and_parts_of_pages_stay() {
        let mapping = Mapping::anonymous(3 * 4096).unwrap();
        for page in 0..3 {
            // SAFETY: within the mapping.
            unsafe { byte(&mapping, page * 4096).write_volatile(1) };
        }
        mapping.discard(0..4095).unwrap();
        mapping.discard(1..3 * 4096 - 1).unwrap();
        // SAFETY: within the mapping.
        let bytes = [0, 1, 2].map(|page| unsafe { byte(&mapping, page * 4096).read_volatile() });
        assert_eq!(bytes, [1, 0, 1]);
        assert!(mapping.discard(0..4 * 4096).is_err());
        assert!(mapping.discard(0..3 * 4096 + 1).is_err());
    }

    #[test]
    fn an_empty_mapping_is_refused() {
        assert!(Mapping::anonymous(0).is_err());
    }
}

//! Memory mappings (`mmap(2)`), owned and unmapped on drop.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};

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
    /// `len` bytes of zeroes, committed as they are touched, aligned to 2 MiB, with addresses on both sides
    /// that nobody may touch.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        const ALIGN: usize = 2 << 20;
        let len = page_align(len)?;
        let reserved = len.checked_add(2 * ALIGN).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe {
            mmap_anonymous(ptr::null_mut(), reserved, ProtFlags::empty(), MapFlags::PRIVATE)?
        } as usize;
        let addr = (base + 1).next_multiple_of(ALIGN) as *mut u8;
        let mapping = Self { addr, len, reserved: base..base + reserved };
        let prot = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: a part of the mapping made above that nothing uses yet.
        unsafe { mprotect(addr.cast(), len, prot)? };
        Ok(mapping)
    }

    /// Replaces `range` of this mapping by the bytes of `file` from `offset`, copy on write.
    /// Everything is a multiple of the page size (16 KiB on Apple silicon).
    pub fn overlay_file(&self, range: Range<usize>, file: &File, offset: u64) -> io::Result<()> {
        self.check(&range)?;
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        let at = self.addr.wrapping_add(range.start);
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

    /// macOS chooses the size of pages by itself.
    pub fn advise_huge(&self, range: Range<usize>) -> io::Result<()> {
        self.check(&range)
    }

    /// Gives the pages of `range` back to the host; they read as zeroes again.
    pub fn discard(&self, range: Range<usize>) -> io::Result<()> {
        self.check(&range)?;
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        let at = self.addr.wrapping_add(range.start);
        // SAFETY: the range lies within this mapping (checked above); new memory takes its place, and
        // nobody has references into guest memory.
        unsafe { mmap_anonymous(at.cast(), range.len(), prot, flags | MapFlags::FIXED)? };
        Ok(())
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
        let Range { start, end } = self.reserved;
        // SAFETY: the range is owned by this value and nobody can use it any more.
        let _ = unsafe { munmap(start as *mut _, end - start) };
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

    #[test]
    fn memory_is_zero_and_zero_again_when_it_was_given_back() {
        let mapping = Mapping::anonymous(5000).unwrap();
        assert!(mapping.len() >= 5000);
        // SAFETY: within the mapping.
        unsafe {
            mapping.as_ptr().write_volatile(7);
            mapping.discard(0..mapping.len()).unwrap();
            assert_eq!(mapping.as_ptr().read_volatile(), 0);
        }
    }
}

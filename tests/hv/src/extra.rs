//! A second piece of memory, beside RAM.

use cabana_hv::MemorySlot;
use cabana_os::Mapping;

use crate::{Guest, layout};

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// Memory is whole pages of every hypervisor: those of Apple's are the largest.
const LARGEST_PAGE: u64 = 16 << 10;

/// Zeroed memory for [`layout::EXTRA`]. A case declares it before its guest, so that it goes after it.
#[derive(Debug)]
pub struct Extra(Mapping);

impl Extra {
    /// As many pages, or a few more.
    pub fn new(pages: u64) -> Self {
        let len = (pages * PAGE).next_multiple_of(LARGEST_PAGE);
        Self(Mapping::anonymous(len as usize).expect("memory"))
    }

    /// A byte of it.
    pub fn byte(&self, at: u64) -> u8 {
        // SAFETY: within the mapping, to which nobody has references.
        unsafe { self.place(at).read_volatile() }
    }

    /// Writes a byte.
    pub fn set_byte(&self, at: u64, value: u8) {
        // SAFETY: within the mapping, to which nobody has references.
        unsafe { self.place(at).write_volatile(value) }
    }

    /// All of it, as it would be mapped.
    pub fn slot(&self, read_only: bool, track_dirty: bool) -> MemorySlot {
        let (host, len) = (self.0.as_ptr(), self.0.len());
        MemorySlot { guest: layout::EXTRA, host, len, read_only, track_dirty }
    }

    /// Maps all of it.
    pub fn map(&self, guest: &Guest, read_only: bool, track_dirty: bool) {
        // SAFETY: each case keeps its memory longer than its guest, and nobody makes references to it.
        unsafe { guest.vm.map(&self.slot(read_only, track_dirty)) }.expect("memory is mapped");
    }

    fn place(&self, at: u64) -> *mut u8 {
        assert!((at as usize) < self.0.len());
        self.0.as_ptr().wrapping_add(at as usize)
    }
}

//! What is mapped, and which pages were written: those are tracked by taking the right to write away, and giving it
//! back at the first write.

use std::collections::BTreeMap;
use std::ffi::c_void;

use cabana_hv::{HvError, MemorySlot};

use crate::functions::check;

/// The contract's pages.
const PAGE: u64 = 4 << 10;

/// `hv_memory_flags_t`.
const READ_EXECUTE: u64 = 1 << 0 | 1 << 2;
const WRITE: u64 = 1 << 1;

/// The functions that change a guest's memory, which are the same on both kinds of Macs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calls {
    pub(crate) map: unsafe extern "C" fn(*mut c_void, u64, usize, u64) -> i32,
    pub(crate) unmap: unsafe extern "C" fn(u64, usize) -> i32,
    pub(crate) protect: unsafe extern "C" fn(u64, usize, u64) -> i32,
    /// Bytes of the framework's pages.
    pub(crate) granule: u64,
}

/// Mapped memory by its guest-physical address.
#[derive(Debug)]
pub(crate) struct Slots {
    calls: Calls,
    slots: BTreeMap<u64, Slot>,
}

#[derive(Debug)]
struct Slot {
    /// Its address in this process.
    host: usize,
    len: u64,
    read_only: bool,
    /// Of each granule: was it written since it was asked for?
    dirty: Option<Vec<bool>>,
}

impl Slots {
    pub(crate) fn new(calls: Calls) -> Self {
        Self { calls, slots: BTreeMap::new() }
    }

    /// # Safety
    /// As [`cabana_hv::Vm::map`] says.
    pub(crate) unsafe fn map(&mut self, slot: &MemorySlot) -> Result<(), HvError> {
        let MemorySlot { guest, host, read_only, track_dirty, .. } = *slot;
        let len = slot.len as u64;
        let whole = |page: u64| guest.is_multiple_of(page) && len.is_multiple_of(page);
        let (true, Some(end), 1..) = (whole(PAGE), guest.checked_add(len), len) else {
            return Err(HvError::Invalid(format!(
                "a memory slot of {len:#x} bytes at {guest:#x} is not whole pages"
            )));
        };
        let before = self.slots.range(..end).next_back();
        if before.is_some_and(|(&at, other)| at + other.len > guest) {
            return Err(HvError::Invalid(format!("there is memory at {guest:#x} already")));
        }
        if !whole(self.calls.granule) {
            return Err(HvError::Unsupported("memory in pages of less than 16 KiB"));
        }
        let flags = if read_only || track_dirty { READ_EXECUTE } else { READ_EXECUTE | WRITE };
        // SAFETY: the caller keeps the host memory mapped and free of references.
        let code = unsafe { (self.calls.map)(host.cast(), guest, slot.len, flags) };
        check("hv_vm_map", code)?;
        let granules = (len / self.calls.granule) as usize;
        let dirty = (track_dirty && !read_only).then(|| vec![false; granules]);
        self.slots.insert(guest, Slot { host: host as usize, len, read_only, dirty });
        Ok(())
    }

    pub(crate) fn unmap(&mut self, guest: u64) -> Result<(), HvError> {
        let len = self.slots.get(&guest).ok_or_else(|| nothing_at(guest))?.len;
        // SAFETY: takes memory away and gives none.
        check("hv_vm_unmap", unsafe { (self.calls.unmap)(guest, len as usize) })?;
        self.slots.remove(&guest);
        Ok(())
    }

    /// A write without the right to: if the granule is tracked it is written from now on, and the vCPU tries again.
    pub(crate) fn written(&mut self, at: u64) -> Result<bool, HvError> {
        let Calls { protect, granule, .. } = self.calls;
        let Some((&guest, slot)) = self.slots.range_mut(..=at).next_back() else {
            return Ok(false);
        };
        let Some(dirty) = &mut slot.dirty else { return Ok(false) };
        let Some(mark) = dirty.get_mut(((at - guest) / granule) as usize) else {
            return Ok(false);
        };
        // Two vCPUs may come for the same one.
        if !*mark {
            set_rights(protect, at & !(granule - 1), granule, READ_EXECUTE | WRITE)?;
            *mark = true;
        }
        Ok(true)
    }

    /// The host's address of `len` bytes at `at`, if they are all there and may be used so.
    pub(crate) fn host(&self, at: u64, len: usize, write: bool) -> Option<*mut u8> {
        let (&guest, slot) = self.slots.range(..=at).next_back()?;
        let offset = at - guest;
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= slot.len);
        let allowed = inside && !(write && slot.read_only);
        allowed.then(|| std::ptr::with_exposed_provenance_mut(slot.host + offset as usize))
    }

    /// As [`cabana_hv::Vm::dirty_pages`].
    pub(crate) fn take_dirty(&mut self, guest: u64) -> Result<Vec<u64>, HvError> {
        let Calls { protect, granule, .. } = self.calls;
        let slot = self.slots.get_mut(&guest).ok_or_else(|| nothing_at(guest))?;
        let Some(dirty) = &mut slot.dirty else {
            return Err(HvError::Invalid(format!("the memory at {guest:#x} is not tracked")));
        };
        let mut pages = vec![0u64; (slot.len / PAGE).div_ceil(64) as usize];
        let each = (granule / PAGE) as usize;
        for (at, mark) in dirty.iter_mut().enumerate().filter(|(_, mark)| **mark) {
            // What is written from here on is caught again.
            set_rights(protect, guest + at as u64 * granule, granule, READ_EXECUTE)?;
            *mark = false;
            for page in at * each..(at + 1) * each {
                pages[page / 64] |= 1 << (page % 64);
            }
        }
        Ok(pages)
    }
}

fn set_rights(
    protect: unsafe extern "C" fn(u64, usize, u64) -> i32,
    guest: u64,
    len: u64,
    flags: u64,
) -> Result<(), HvError> {
    // SAFETY: changes what the guest may do with memory that it has.
    check("hv_vm_protect", unsafe { protect(guest, len as usize, flags) })
}

fn nothing_at(guest: u64) -> HvError {
    HvError::Invalid(format!("nothing is mapped at {guest:#x}"))
}

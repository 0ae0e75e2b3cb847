//! What is mapped, and which pages were written: those are tracked by taking the right to write away, and giving it
//! back at the first write.

use std::collections::BTreeMap;

use cabana_hv::{HvError, MemorySlot};

use crate::functions::{Functions, check};

/// The framework's pages.
pub(crate) const GRANULE: u64 = 16 << 10;
/// The contract's pages.
const PAGE: u64 = 4 << 10;

/// `hv_memory_flags_t`.
const READ_EXECUTE: u64 = 1 << 0 | 1 << 2;
const WRITE: u64 = 1 << 1;

/// Mapped memory by its guest-physical address.
#[derive(Debug, Default)]
pub(crate) struct Slots(BTreeMap<u64, Slot>);

#[derive(Debug)]
struct Slot {
    len: u64,
    /// Of each granule: was it written since it was asked for?
    dirty: Option<Vec<bool>>,
}

impl Slots {
    /// # Safety
    /// As [`cabana_hv::Vm::map`] says.
    pub(crate) unsafe fn map(
        &mut self,
        functions: &Functions,
        slot: &MemorySlot,
    ) -> Result<(), HvError> {
        let MemorySlot { guest, host, read_only, track_dirty, .. } = *slot;
        let len = slot.len as u64;
        let whole = |page: u64| guest.is_multiple_of(page) && len.is_multiple_of(page);
        let (true, Some(end), 1..) = (whole(PAGE), guest.checked_add(len), len) else {
            return Err(HvError::Invalid(format!(
                "a memory slot of {len:#x} bytes at {guest:#x} is not whole pages"
            )));
        };
        let before = self.0.range(..end).next_back();
        if before.is_some_and(|(&at, other)| at + other.len > guest) {
            return Err(HvError::Invalid(format!("there is memory at {guest:#x} already")));
        }
        if !whole(GRANULE) {
            return Err(HvError::Unsupported("memory in pages of less than 16 KiB"));
        }
        let flags = if read_only || track_dirty { READ_EXECUTE } else { READ_EXECUTE | WRITE };
        // SAFETY: the caller keeps the host memory mapped and free of references.
        let code = unsafe { (functions.hv_vm_map)(host.cast(), guest, slot.len, flags) };
        check("hv_vm_map", code)?;
        let granules = (len / GRANULE) as usize;
        let dirty = (track_dirty && !read_only).then(|| vec![false; granules]);
        self.0.insert(guest, Slot { len, dirty });
        Ok(())
    }

    pub(crate) fn unmap(&mut self, functions: &Functions, guest: u64) -> Result<(), HvError> {
        let len = self.0.get(&guest).ok_or_else(|| nothing_at(guest))?.len;
        // SAFETY: takes memory away and gives none.
        check("hv_vm_unmap", unsafe { (functions.hv_vm_unmap)(guest, len as usize) })?;
        self.0.remove(&guest);
        Ok(())
    }

    /// A write without the right to: if the granule is tracked it is written from now on, and the vCPU tries again.
    pub(crate) fn written(&mut self, functions: &Functions, at: u64) -> Result<bool, HvError> {
        let Some((&guest, slot)) = self.0.range_mut(..=at).next_back() else { return Ok(false) };
        let Some(dirty) = &mut slot.dirty else { return Ok(false) };
        let Some(mark) = dirty.get_mut(((at - guest) / GRANULE) as usize) else {
            return Ok(false);
        };
        // Two vCPUs may come for the same one.
        if !*mark {
            protect(functions, at & !(GRANULE - 1), GRANULE, READ_EXECUTE | WRITE)?;
            *mark = true;
        }
        Ok(true)
    }

    /// As [`cabana_hv::Vm::dirty_pages`].
    pub(crate) fn take_dirty(
        &mut self,
        functions: &Functions,
        guest: u64,
    ) -> Result<Vec<u64>, HvError> {
        let slot = self.0.get_mut(&guest).ok_or_else(|| nothing_at(guest))?;
        let Some(dirty) = &mut slot.dirty else {
            return Err(HvError::Invalid(format!("the memory at {guest:#x} is not tracked")));
        };
        let mut pages = vec![0u64; (slot.len / PAGE).div_ceil(64) as usize];
        let each = (GRANULE / PAGE) as usize;
        for (granule, mark) in dirty.iter_mut().enumerate().filter(|(_, mark)| **mark) {
            // What is written from here on is caught again.
            protect(functions, guest + granule as u64 * GRANULE, GRANULE, READ_EXECUTE)?;
            *mark = false;
            for page in granule * each..(granule + 1) * each {
                pages[page / 64] |= 1 << (page % 64);
            }
        }
        Ok(pages)
    }
}

fn protect(functions: &Functions, guest: u64, len: u64, flags: u64) -> Result<(), HvError> {
    // SAFETY: changes what the guest may do with memory that it has.
    check("hv_vm_protect", unsafe { (functions.hv_vm_protect)(guest, len as usize, flags) })
}

fn nothing_at(guest: u64) -> HvError {
    HvError::Invalid(format!("nothing is mapped at {guest:#x}"))
}

//! Guest-physical memory: what is mapped with which rights, and what KVM's slots are for it (`cabana-shim-x86`).

use std::collections::BTreeMap;
use std::sync::Arc;

use cabana_hv_hvf::HV_BAD_ARGUMENT;
use cabana_shim_x86::{END, PAGE, Reserved, Slot, Slots, read_only};
use kvm_ioctls::VmFd;

use crate::{Answer, failed};

/// `hv_memory_flags_t`.
const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const ALL: u64 = READ | WRITE | 1 << 2;

/// Mapped memory with the same rights.
#[derive(Clone, Debug)]
struct Range {
    len: u64,
    host: u64,
    /// A view of it that may only be read, and where in that it begins: there as soon as the first part may not be written.
    view: Option<(Arc<Reserved>, u64)>,
    flags: u64,
}

/// All guest-physical memory of a VM.
#[derive(Debug)]
pub(crate) struct Memory {
    ranges: BTreeMap<u64, Range>,
    slots: Slots,
}

impl Memory {
    pub(crate) fn new(vm: &VmFd) -> Answer<Self> {
        let mut memory = Self { ranges: BTreeMap::new(), slots: Slots::new().map_err(failed)? };
        memory.update(vm)?;
        Ok(memory)
    }

    /// No vCPU runs, as in all that changes something.
    pub(crate) fn map(
        &mut self,
        vm: &VmFd,
        host: u64,
        guest: u64,
        len: u64,
        flags: u64,
    ) -> Answer<()> {
        let end = end(guest, len)?;
        let before = self.ranges.range(..end).next_back();
        let taken = before.is_some_and(|(&at, range)| at + range.len > guest);
        if taken || host == 0 || !host.is_multiple_of(PAGE) || flags & !ALL != 0 {
            return Err(HV_BAD_ARGUMENT);
        }
        let mut range = Range { len, host, view: None, flags };
        range.prepare()?;
        self.ranges.insert(guest, range);
        self.update(vm).inspect_err(|_| {
            self.ranges.remove(&guest);
        })
    }

    pub(crate) fn unmap(&mut self, vm: &VmFd, guest: u64, len: u64) -> Answer<()> {
        // Kept until their slots are gone.
        let mut gone = Vec::new();
        for at in self.cut_out(guest, len)? {
            gone.extend(self.ranges.remove(&at));
        }
        self.update(vm)
    }

    pub(crate) fn protect(&mut self, vm: &VmFd, guest: u64, len: u64, flags: u64) -> Answer<()> {
        if flags & !ALL != 0 {
            return Err(HV_BAD_ARGUMENT);
        }
        for at in self.cut_out(guest, len)? {
            if let Some(range) = self.ranges.get_mut(&at) {
                range.flags = flags;
                range.prepare()?;
            }
        }
        self.update(vm)
    }

    /// The ranges that are exactly these addresses, all of which must be mapped.
    fn cut_out(&mut self, guest: u64, len: u64) -> Answer<Vec<u64>> {
        let end = end(guest, len)?;
        self.cut(guest);
        self.cut(end);
        let found: Vec<_> =
            self.ranges.range(guest..end).map(|(&at, range)| (at, range.len)).collect();
        if found.iter().map(|(_, len)| len).sum::<u64>() != len {
            return Err(HV_BAD_ARGUMENT);
        }
        Ok(found.into_iter().map(|(at, _)| at).collect())
    }

    /// Lets a range end, and another one begin, at an address.
    fn cut(&mut self, at: u64) {
        let Some((&start, range)) = self.ranges.range_mut(..at).next_back() else { return };
        let first = at - start;
        if first < range.len {
            let view = range.view.clone().map(|(view, offset)| (view, offset + first));
            let (len, host) = (range.len - first, range.host + first);
            let rest = Range { len, host, view, flags: range.flags };
            range.len = first;
            self.ranges.insert(at, rest);
        }
    }

    fn find(&self, guest: u64) -> Option<(u64, &Range)> {
        let (&start, range) = self.ranges.range(..=guest).next_back()?;
        (guest - start < range.len).then_some((start, range))
    }

    /// Lets KVM have it, in as few slots as can be.
    fn update(&mut self, vm: &VmFd) -> Answer<()> {
        let mut wanted = BTreeMap::<u64, Slot>::new();
        for (&at, range) in self.ranges.iter().filter(|(_, range)| range.flags & READ != 0) {
            let slot = Slot { len: range.len, host: range.seen(), flags: 0 };
            if let Some(mut last) = wanted.last_entry()
                && last.key() + last.get().len == at
                && last.get().host + last.get().len == slot.host
            {
                last.get_mut().len += slot.len;
                continue;
            }
            wanted.insert(at, slot);
        }
        self.slots.update(vm, wanted, &[]).map_err(failed)
    }
}

impl Range {
    /// Makes the view, if it is needed for the first time.
    fn prepare(&mut self) -> Answer<()> {
        if self.flags & WRITE == 0 && self.view.is_none() {
            let view = read_only(self.host as usize, self.len as usize).map_err(failed)?;
            self.view = view.map(|view| (Arc::new(view), 0));
        }
        Ok(())
    }

    /// Where KVM sees it.
    fn seen(&self) -> u64 {
        match &self.view {
            Some((view, offset)) if self.flags & WRITE == 0 => view.at as u64 + offset,
            _ => self.host,
        }
    }
}

impl cabana_shim_x86::Memory for Memory {
    fn read(&self, guest: u64, bytes: &mut [u8]) -> bool {
        let Some((start, range)) = self.find(guest) else { return false };
        if guest % PAGE + bytes.len() as u64 > PAGE || range.flags & READ == 0 {
            return false;
        }
        let from = (range.host + guest - start) as *const u8;
        for (at, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: within a page of mapped memory, which its owner keeps.
            *byte = unsafe { from.add(at).read_volatile() };
        }
        true
    }

    fn allows(&self, guest: u64, write: bool) -> Option<bool> {
        let (_, range) = self.find(guest).filter(|(_, range)| range.flags & READ != 0)?;
        Some(!write || range.flags & WRITE != 0)
    }
}

/// Where a range of whole pages ends.
fn end(guest: u64, len: u64) -> Answer<u64> {
    let whole = guest.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len > 0;
    let end = guest.checked_add(len).filter(|&end| end <= END);
    end.filter(|_| whole).ok_or(HV_BAD_ARGUMENT)
}

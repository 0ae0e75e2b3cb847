//! Guest-physical memory as KVM slots.

use std::collections::BTreeMap;

use cabana_hv_hvf::{HV_BAD_ARGUMENT, HV_ERROR};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use crate::Answer;

/// Apple's pages.
const GRANULE: u64 = 16 << 10;
/// This host's.
const HOST_PAGE: u64 = 4 << 10;
/// `hv_memory_flags_t`.
const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const ALL: u64 = READ | WRITE | 1 << 2;

/// Mapped memory, or a slot of KVM: the same host memory with the same rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    len: u64,
    host: u64,
    flags: u64,
}

/// All guest-physical memory of a VM.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    address_bits: u32,
    ranges: BTreeMap<u64, Range>,
    /// Slots by their address, with KVM's number.
    slots: BTreeMap<u64, (u32, Range)>,
    free: Vec<u32>,
    next: u32,
}

impl Memory {
    pub(crate) fn new(address_bits: u32) -> Self {
        Self { address_bits, ..Self::default() }
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
        let end = self.end(guest, len)?;
        let before = self.ranges.range(..end).next_back();
        let taken = before.is_some_and(|(&at, range)| at + range.len > guest);
        if taken || host == 0 || !host.is_multiple_of(HOST_PAGE) || flags & !ALL != 0 {
            return Err(HV_BAD_ARGUMENT);
        }
        self.ranges.insert(guest, Range { len, host, flags });
        self.update(vm).inspect_err(|_| {
            self.ranges.remove(&guest);
        })
    }

    pub(crate) fn unmap(&mut self, vm: &VmFd, guest: u64, len: u64) -> Answer<()> {
        for at in self.cut_out(guest, len)? {
            self.ranges.remove(&at);
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
            }
        }
        self.update(vm)
    }

    /// Is there memory, whatever it may be used for?
    pub(crate) fn is_mapped(&self, at: u64) -> bool {
        let before = self.ranges.range(..=at).next_back();
        before.is_some_and(|(&start, range)| at - start < range.len)
    }

    /// Where a range of whole pages ends.
    fn end(&self, guest: u64, len: u64) -> Answer<u64> {
        let whole = guest.is_multiple_of(GRANULE) && len.is_multiple_of(GRANULE) && len > 0;
        let end = guest.checked_add(len).filter(|&end| end <= 1 << self.address_bits);
        end.filter(|_| whole).ok_or(HV_BAD_ARGUMENT)
    }

    /// The ranges that are exactly these addresses, all of which must be mapped.
    fn cut_out(&mut self, guest: u64, len: u64) -> Answer<Vec<u64>> {
        let end = self.end(guest, len)?;
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
            let rest = Range { len: range.len - first, host: range.host + first, ..*range };
            range.len = first;
            self.ranges.insert(at, rest);
        }
    }

    /// What KVM should have: as few slots as can be.
    fn wanted(&self) -> BTreeMap<u64, Range> {
        let mut wanted = BTreeMap::<u64, Range>::new();
        for (&at, range) in self.ranges.iter().filter(|(_, range)| range.flags & READ != 0) {
            if let Some(mut last) = wanted.last_entry() {
                let (start, last) = (*last.key(), last.get_mut());
                let goes_on = start + last.len == at
                    && last.host + last.len == range.host
                    && last.flags & WRITE == range.flags & WRITE;
                if goes_on {
                    last.len += range.len;
                    continue;
                }
            }
            wanted.insert(at, Range { flags: range.flags & WRITE, ..*range });
        }
        wanted
    }

    /// Lets KVM have it.
    fn update(&mut self, vm: &VmFd) -> Answer<()> {
        let wanted = self.wanted();
        let gone: Vec<_> = (self.slots.iter())
            .filter(|&(at, (_, range))| wanted.get(at) != Some(range))
            .map(|(&at, &(number, _))| (at, number))
            .collect();
        for (at, number) in gone {
            set(vm, number, at, Range { len: 0, host: 0, flags: WRITE })?;
            self.slots.remove(&at);
            self.free.push(number);
        }
        for (at, range) in wanted {
            if self.slots.contains_key(&at) {
                continue;
            }
            let number = self.free.pop().unwrap_or_else(|| {
                self.next += 1;
                self.next - 1
            });
            set(vm, number, at, range)?;
            self.slots.insert(at, (number, range));
        }
        Ok(())
    }
}

fn set(vm: &VmFd, slot: u32, guest: u64, range: Range) -> Answer<()> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: if range.flags & WRITE == 0 { KVM_MEM_READONLY } else { 0 },
        guest_phys_addr: guest,
        memory_size: range.len,
        userspace_addr: range.host,
    };
    // SAFETY: the caller of `hv_vm_map` keeps the memory mapped until it is unmapped here.
    unsafe { vm.set_user_memory_region(region) }.map_err(|_| HV_ERROR)
}

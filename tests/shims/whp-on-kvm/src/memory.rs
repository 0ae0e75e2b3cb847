//! Guest-physical memory: what is mapped, and what KVM's slots are for it (`cabana-shim-x86`).

use std::collections::BTreeMap;

use cabana_shim_x86::{END, PAGE, Refused, Reserved, Slot, Slots, read_only};
use kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
use kvm_ioctls::VmFd;
use windows_sys::Win32::Foundation::{E_FAIL, E_INVALIDARG, WHV_E_GPA_RANGE_NOT_FOUND};
use windows_sys::Win32::System::Hypervisor::{
    WHV_MAP_GPA_RANGE_FLAGS, WHvMapGpaRangeFlagExecute, WHvMapGpaRangeFlagRead,
    WHvMapGpaRangeFlagTrackDirtyPages, WHvMapGpaRangeFlagWrite,
};

use crate::Answer;

/// The local APICs are KVM's.
const APIC: u64 = 0xfee0_0000;
const ALL_FLAGS: WHV_MAP_GPA_RANGE_FLAGS = WHvMapGpaRangeFlagRead
    | WHvMapGpaRangeFlagWrite
    | WHvMapGpaRangeFlagExecute
    | WHvMapGpaRangeFlagTrackDirtyPages;

/// A mapped range.
#[derive(Debug)]
struct Range {
    len: u64,
    /// The caller's memory.
    host: usize,
    /// What KVM sees of it, where that is not the memory itself: a view that may only be read.
    view: Option<Reserved>,
    flags: WHV_MAP_GPA_RANGE_FLAGS,
}

/// All guest-physical memory of a partition.
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

    /// No processor runs.
    pub(crate) fn map(
        &mut self,
        vm: &VmFd,
        host: usize,
        guest: u64,
        len: u64,
        flags: WHV_MAP_GPA_RANGE_FLAGS,
    ) -> Answer<()> {
        let aligned = [host as u64, guest, len].iter().all(|at| at.is_multiple_of(PAGE));
        let end = guest.checked_add(len).filter(|&end| end <= END);
        let (true, 1.., Some(end)) = (aligned, host, end) else { return Err(E_INVALIDARG) };
        let before = self.ranges.range(..end).next_back();
        let taken = before.is_some_and(|(&at, range)| at + range.len > guest);
        let apic = guest < APIC + PAGE && end > APIC;
        if len == 0
            || taken
            || apic
            || flags & !ALL_FLAGS != 0
            || flags & WHvMapGpaRangeFlagRead == 0
        {
            return Err(E_INVALIDARG);
        }
        let view = if flags & WHvMapGpaRangeFlagWrite == 0 {
            read_only(host, len as usize).map_err(failed)?
        } else {
            None
        };
        self.ranges.insert(guest, Range { len, host, view, flags });
        self.update(vm)
    }

    /// No processor runs.
    pub(crate) fn unmap(&mut self, vm: &VmFd, guest: u64, len: u64) -> Answer<()> {
        if self.ranges.get(&guest).is_none_or(|range| range.len != len) {
            return Err(WHV_E_GPA_RANGE_NOT_FOUND);
        }
        // Kept until its slot is gone.
        let _gone = self.ranges.remove(&guest);
        self.update(vm)
    }

    /// Pages written since the last call.
    pub(crate) fn dirty(&self, vm: &VmFd, guest: u64, len: u64) -> Answer<Vec<u64>> {
        let range = self.ranges.get(&guest).filter(|range| range.len == len);
        let range = range.ok_or(WHV_E_GPA_RANGE_NOT_FOUND)?;
        if range.flags & WHvMapGpaRangeFlagTrackDirtyPages == 0 {
            return Err(E_INVALIDARG);
        }
        let number = self.slots.number(guest).ok_or(E_FAIL)?;
        vm.get_dirty_log(number, len as usize).map_err(|_| E_FAIL)
    }

    fn find(&self, guest: u64) -> Option<(u64, &Range)> {
        let (&start, range) = self.ranges.range(..=guest).next_back()?;
        (guest - start < range.len).then_some((start, range))
    }

    /// Makes KVM's slots those of the ranges, with holes between them.
    fn update(&mut self, vm: &VmFd) -> Answer<()> {
        let slot = |range: &Range| {
            let host = range.view.as_ref().map_or(range.host, |view| view.at) as u64;
            let tracked = range.flags & WHvMapGpaRangeFlagTrackDirtyPages != 0;
            let flags = if tracked { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
            Slot { len: range.len, host, flags }
        };
        let wanted = self.ranges.iter().map(|(&at, range)| (at, slot(range))).collect();
        self.slots.update(vm, wanted, &[(APIC, PAGE)]).map_err(failed)
    }
}

impl cabana_shim_x86::Memory for Memory {
    fn allows(&self, guest: u64, write: bool) -> Option<bool> {
        let (_, range) = self.find(guest)?;
        Some(!write || range.flags & WHvMapGpaRangeFlagWrite != 0)
    }

    /// The local APICs' page.
    fn is_kvms(&self, guest: u64) -> bool {
        guest & !(PAGE - 1) == APIC
    }

    fn read(&self, guest: u64, bytes: &mut [u8]) -> bool {
        let Some((start, range)) = self.find(guest) else { return false };
        if guest % PAGE + bytes.len() as u64 > PAGE {
            return false;
        }
        let from = (range.host + (guest - start) as usize) as *const u8;
        for (at, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: within a page of mapped memory, which its owner keeps.
            *byte = unsafe { from.add(at).read_volatile() };
        }
        true
    }
}

fn failed(_: Refused) -> windows_sys::core::HRESULT {
    E_FAIL
}

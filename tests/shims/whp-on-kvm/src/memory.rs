//! Guest-physical memory as KVM slots, so that what is not mapped is handed over before anything is done.
//!
//! KVM carries an access to memory without a slot out by itself and tells afterwards. The platform tells before.
//! So there is no memory without a slot: between the mapped ranges lie *holes*, slots whose host memory nobody
//! may touch, and `KVM_RUN` fails at the instruction with `EFAULT`. Read-only memory is a slot whose host memory
//! this process may only read: writes fail the same way.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::ptr;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use windows_sys::Win32::Foundation::{
    E_FAIL, E_INVALIDARG, E_OUTOFMEMORY, WHV_E_GPA_RANGE_NOT_FOUND,
};
use windows_sys::Win32::System::Hypervisor::{
    WHV_MAP_GPA_RANGE_FLAGS, WHvMapGpaRangeFlagExecute, WHvMapGpaRangeFlagRead,
    WHvMapGpaRangeFlagTrackDirtyPages, WHvMapGpaRangeFlagWrite,
};

use crate::Answer;

pub(crate) const PAGE: u64 = 4096;
/// Guest-physical addresses end here: 512 GiB.
const END: u64 = 1 << 39;
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
    /// What KVM sees of it.
    view: View,
    flags: WHV_MAP_GPA_RANGE_FLAGS,
}

#[derive(Debug)]
enum View {
    /// The memory itself.
    Same,
    /// A mapping of its own that may only be read.
    ReadOnly(Reserved),
}

/// A slot as KVM has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    len: u64,
    host: u64,
    flags: u32,
}

/// Addresses of this process that belong to us, given back on drop.
#[derive(Debug)]
struct Reserved {
    at: usize,
    len: usize,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and its slot is gone.
        unsafe { libc::munmap(self.at as *mut _, self.len) };
    }
}

/// All guest-physical memory of a partition.
#[derive(Debug)]
pub(crate) struct Memory {
    ranges: BTreeMap<u64, Range>,
    /// Slots by their address, with KVM's number.
    slots: BTreeMap<u64, (u32, Slot)>,
    free: Vec<u32>,
    next: u32,
    /// What stands behind holes: as much as there is guest-physical memory, and never touched.
    nothing: Reserved,
}

impl Memory {
    pub(crate) fn new(vm: &VmFd) -> Answer<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let nothing = map(0, END as usize, libc::PROT_NONE, flags, -1)?;
        let (ranges, slots) = (BTreeMap::new(), BTreeMap::new());
        let mut memory = Self { ranges, slots, free: Vec::new(), next: 0, nothing };
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
        let read_only = flags & WHvMapGpaRangeFlagWrite == 0;
        let view = if read_only && writable(host)? {
            View::ReadOnly(share(host, len as usize)?)
        } else {
            View::Same
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
        let (number, _) = self.slots.get(&guest).ok_or(E_FAIL)?;
        vm.get_dirty_log(*number, len as usize).map_err(|_| E_FAIL)
    }

    /// May the guest do this there? `None` where nothing is mapped.
    pub(crate) fn allows(&self, guest: u64, write: bool) -> Option<bool> {
        let (_, range) = self.find(guest)?;
        Some(!write || range.flags & WHvMapGpaRangeFlagWrite != 0)
    }

    /// Is it the local APICs' page?
    pub(crate) fn is_apic(guest: u64) -> bool {
        guest & !(PAGE - 1) == APIC
    }

    /// Copies from mapped memory, within a page.
    pub(crate) fn read(&self, guest: u64, bytes: &mut [u8]) -> bool {
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

    fn find(&self, guest: u64) -> Option<(u64, &Range)> {
        let (&start, range) = self.ranges.range(..=guest).next_back()?;
        (guest - start < range.len).then_some((start, range))
    }

    /// Makes KVM's slots those of the ranges, with holes between them.
    fn update(&mut self, vm: &VmFd) -> Answer<()> {
        let wanted = self.wanted();
        let gone: Vec<u64> = (self.slots.iter())
            .filter(|(at, (_, slot))| wanted.get(at) != Some(slot))
            .map(|(&at, _)| at)
            .collect();
        for at in gone {
            if let Some((number, _)) = self.slots.remove(&at) {
                set(vm, number, at, Slot { len: 0, host: 0, flags: 0 })?;
                self.free.push(number);
            }
        }
        for (at, slot) in wanted {
            if self.slots.contains_key(&at) {
                continue;
            }
            let number = self.free.pop().unwrap_or_else(|| {
                self.next += 1;
                self.next - 1
            });
            set(vm, number, at, slot)?;
            self.slots.insert(at, (number, slot));
        }
        Ok(())
    }

    fn wanted(&self) -> BTreeMap<u64, Slot> {
        let mut wanted = BTreeMap::new();
        let mut hole = |from: u64, to: u64| {
            if from < to {
                let host = self.nothing.at as u64 + from;
                wanted.insert(from, Slot { len: to - from, host, flags: 0 });
            }
        };
        // What is no hole, in order.
        let mut taken: Vec<_> = self.ranges.iter().map(|(&at, range)| (at, range.len)).collect();
        taken.push((APIC, PAGE));
        taken.sort_unstable();
        let mut at = 0;
        for (start, len) in taken {
            hole(at, start);
            at = start + len;
        }
        hole(at, END);
        for (&guest, range) in &self.ranges {
            let host = match &range.view {
                View::Same => range.host,
                View::ReadOnly(view) => view.at,
            };
            let tracked = range.flags & WHvMapGpaRangeFlagTrackDirtyPages != 0;
            let flags = if tracked { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
            wanted.insert(guest, Slot { len: range.len, host: host as u64, flags });
        }
        wanted
    }
}

fn set(vm: &VmFd, number: u32, guest: u64, slot: Slot) -> Answer<()> {
    let region = kvm_userspace_memory_region {
        slot: number,
        flags: slot.flags,
        guest_phys_addr: guest,
        memory_size: slot.len,
        userspace_addr: slot.host,
    };
    // SAFETY: the memory is the caller's, who keeps it while it is mapped, or our own.
    unsafe { vm.set_user_memory_region(region) }.map_err(|_| E_FAIL)
}

fn map(at: usize, len: usize, prot: i32, flags: i32, fd: i32) -> Answer<Reserved> {
    // SAFETY: at an address of the kernel's choice, or over memory that the caller gave for it.
    let at = unsafe { libc::mmap(at as *mut _, len, prot, flags, fd, 0) };
    if at == libc::MAP_FAILED { Err(E_OUTOFMEMORY) } else { Ok(Reserved { at: at as usize, len }) }
}

/// May this process write there?
fn writable(host: usize) -> Answer<bool> {
    let maps = fs::read_to_string("/proc/self/maps").map_err(|_| E_FAIL)?;
    let found = maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        (number(from)?..number(to)?).contains(&host).then(|| rest.as_bytes().get(1) == Some(&b'w'))
    });
    found.ok_or(E_INVALIDARG)
}

/// Puts shared memory with the same content in the place of the caller's, and returns a second view of it that
/// may only be read.
fn share(host: usize, len: usize) -> Answer<Reserved> {
    // SAFETY: the name ends with a zero.
    let fd = unsafe { libc::memfd_create(c"read-only".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(E_OUTOFMEMORY);
    }
    // SAFETY: the kernel made the descriptor for us alone.
    let file = unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    let (fd, flags) = (file.as_raw_fd(), libc::MAP_SHARED);
    // SAFETY: the caller gave `len` bytes of memory; the descriptor is a file's. Nobody holds references.
    let copied = unsafe { libc::write(fd, ptr::with_exposed_provenance(host), len) };
    if usize::try_from(copied) != Ok(len) {
        return Err(E_OUTOFMEMORY);
    }
    let view = map(0, len, libc::PROT_READ, flags, fd)?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // It stays with its owner.
    std::mem::forget(map(host, len, prot, flags | libc::MAP_FIXED, fd)?);
    Ok(view)
}

//! A VM: memory, interrupts, doorbells.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use cabana_hv::x86::{CpuidLeaf, Msi, MsiRoute, VcpuSetup, X86};
use cabana_hv::{Doorbell, HvError, MemorySlot, Seats, VcpuSeat, Vm, X86Vm};
use cabana_os::Event;
use windows_sys::Win32::Foundation::{E_INVALIDARG, HANDLE};
use windows_sys::Win32::System::Hypervisor::{
    WHV_DOORBELL_MATCH_DATA, WHV_INTERRUPT_CONTROL, WHvMapGpaRangeFlagExecute,
    WHvMapGpaRangeFlagRead, WHvMapGpaRangeFlagTrackDirtyPages, WHvMapGpaRangeFlagWrite,
    WHvX64InterruptTypeFixed, WHvX64InterruptTypeInit, WHvX64InterruptTypeLowestPriority,
    WHvX64InterruptTypeNmi,
};

use crate::System;
use crate::functions::check;
use crate::partition::{Partition, cpuid_results};
use crate::vcpu::WhpSeat;

const PAGE: u64 = 4096;
/// What one partition may have on every edition of Windows.
const MAX_VCPUS: u32 = 64;
/// `WHV_DOORBELL_MATCH_DATA.MatchOnValue` and `MatchOnLength`.
const MATCH_VALUE_AND_LENGTH: u32 = 0b11;

/// One VM.
#[derive(Debug)]
pub(crate) struct WhpVm {
    shared: Arc<VmShared>,
    seats: Seats<VcpuSetup>,
}

/// What a VM and its vCPUs hold together.
#[derive(Debug)]
pub(crate) struct VmShared {
    pub(crate) partition: Arc<Partition>,
    slots: RwLock<Slots>,
}

/// Mapped memory by its guest-physical address.
pub(crate) type Slots = BTreeMap<u64, Slot>;

/// A piece of mapped memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// Its address in this process.
    pub(crate) host: usize,
    pub(crate) len: u64,
    pub(crate) read_only: bool,
    track_dirty: bool,
}

impl VmShared {
    /// What is mapped, held until the answer is dropped.
    pub(crate) fn slots(&self) -> RwLockReadGuard<'_, Slots> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WhpVm {
    pub(crate) fn new(system: Arc<System>) -> Result<Self, HvError> {
        let partition = Arc::new(Partition::new(system)?);
        let shared = Arc::new(VmShared { partition, slots: RwLock::default() });
        Ok(Self { shared, seats: Seats::default() })
    }

    fn partition(&self) -> &Arc<Partition> {
        &self.shared.partition
    }
}

impl Vm<X86> for WhpVm {
    unsafe fn map(&self, slot: &MemorySlot) -> Result<(), HvError> {
        let len = slot.len as u64;
        let aligned = [slot.guest, slot.host as u64, len].iter().all(|at| at.is_multiple_of(PAGE));
        let end = slot.guest.checked_add(len);
        let (true, Some(end), 1..) = (aligned, end, len) else {
            return Err(HvError::Invalid(format!(
                "a memory slot of {len:#x} bytes at {:#x} is not whole pages",
                slot.guest
            )));
        };
        let mut slots = self.shared.slots.write().unwrap_or_else(PoisonError::into_inner);
        // The platform would let the newcomer take the place of what is there.
        let before = slots.range(..end).next_back();
        if before.is_some_and(|(&at, other)| at + other.len > slot.guest) {
            return Err(HvError::Invalid(format!("there is memory at {:#x} already", slot.guest)));
        }
        let mut flags = WHvMapGpaRangeFlagRead | WHvMapGpaRangeFlagExecute;
        if !slot.read_only {
            flags |= WHvMapGpaRangeFlagWrite;
        }
        if slot.track_dirty {
            flags |= WHvMapGpaRangeFlagTrackDirtyPages;
        }
        let map = self.partition().functions().map_gpa_range;
        // SAFETY: the caller keeps the host memory mapped and free of references.
        let result = unsafe {
            map(self.partition().handle, slot.host.cast_const().cast(), slot.guest, len, flags)
        };
        check("WHvMapGpaRange", result)?;
        let MemorySlot { guest, host, read_only, track_dirty, .. } = *slot;
        slots.insert(guest, Slot { host: host as usize, len, read_only, track_dirty });
        Ok(())
    }

    fn unmap(&self, guest: u64) -> Result<(), HvError> {
        let mut slots = self.shared.slots.write().unwrap_or_else(PoisonError::into_inner);
        let len = slots.get(&guest).ok_or_else(|| nothing_at(guest))?.len;
        let unmap = self.partition().functions().unmap_gpa_range;
        // SAFETY: takes memory away and gives none.
        check("WHvUnmapGpaRange", unsafe { unmap(self.partition().handle, guest, len) })?;
        slots.remove(&guest);
        Ok(())
    }

    fn dirty_pages(&self, guest: u64) -> Result<Vec<u64>, HvError> {
        let slots = self.shared.slots();
        let slot = slots.get(&guest).ok_or_else(|| nothing_at(guest))?;
        if !slot.track_dirty {
            return Err(HvError::Invalid(format!("the memory at {guest:#x} is not tracked")));
        }
        let mut bitmap = vec![0u64; (slot.len / PAGE).div_ceil(64) as usize];
        let query = self.partition().functions().query_gpa_range_dirty_bitmap;
        let bytes = size_of_val(bitmap.as_slice()) as u32;
        // SAFETY: the bitmap has the length that is said.
        let result =
            unsafe { query(self.partition().handle, guest, slot.len, bitmap.as_mut_ptr(), bytes) };
        check("WHvQueryGpaRangeDirtyBitmap", result)?;
        Ok(bitmap)
    }

    fn doorbell(&self, doorbell: Doorbell, event: &Event) -> Result<(), HvError> {
        let data = WHV_DOORBELL_MATCH_DATA {
            GuestAddress: doorbell.guest,
            Value: doorbell.value.into(),
            Length: 4,
            _bitfield: MATCH_VALUE_AND_LENGTH,
        };
        let register = self.partition().functions().register_partition_doorbell_event;
        // SAFETY: the event's handle is open; the hypervisor keeps one of its own.
        let result =
            unsafe { register(self.partition().handle, &raw const data, handle_of(event)) };
        check("WHvRegisterPartitionDoorbellEvent", result)
    }

    fn set_vcpus(&self, vcpus: Vec<VcpuSetup>) -> Result<(), HvError> {
        let supported = self.partition().system.supported_cpuid()?;
        let answers = cpuid_results(&vcpus, supported);
        self.partition().set_up(vcpus.len() as u32, &answers)?;
        self.seats.set(vcpus);
        Ok(())
    }

    fn vcpu_seat(&self, index: u32) -> Result<Box<dyn VcpuSeat<X86>>, HvError> {
        let setup = self.seats.take(index)?;
        Ok(Box::new(WhpSeat::new(Arc::clone(&self.shared), index, &setup)?))
    }

    fn max_vcpus(&self) -> u32 {
        MAX_VCPUS
    }
}

impl X86Vm for WhpVm {
    fn signal_msi(&self, msi: Msi) -> Result<(), HvError> {
        let Some(interrupt) = interrupt_of(msi) else { return Ok(()) };
        let len = size_of::<WHV_INTERRUPT_CONTROL>() as u32;
        let request = self.partition().functions().request_interrupt;
        // SAFETY: the structure has the length that is said.
        let result = unsafe { request(self.partition().handle, &raw const interrupt, len) };
        if result == E_INVALIDARG {
            // To nobody, or of a vector that is none: the guest's own doing.
            return Ok(());
        }
        check("WHvRequestInterrupt", result)
    }

    fn set_msi_routes(&self, _routes: &[MsiRoute]) -> Result<(), HvError> {
        // Each message says by itself whether its end is to be told.
        Ok(())
    }

    fn irq_event(&self, _gsi: u32, _event: &Event) -> Result<(), HvError> {
        Err(HvError::Unsupported("interrupts by events"))
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidLeaf>, HvError> {
        self.partition().system.supported_cpuid().map(<[CpuidLeaf]>::to_vec)
    }

    fn tsc_khz(&self) -> Result<u32, HvError> {
        Ok(self.partition().system.tsc_khz)
    }

    fn apic_khz(&self) -> u32 {
        self.partition().system.apic_khz
    }

    fn clock(&self) -> Result<u64, HvError> {
        Ok(0)
    }

    fn set_clock(&self, _nanoseconds: u64) -> Result<(), HvError> {
        Ok(())
    }
}

/// A message in the platform's words (Intel SDM 3A §11.11); `None` of delivery modes that devices do not use.
fn interrupt_of(msi: Msi) -> Option<WHV_INTERRUPT_CONTROL> {
    let kind = match msi.data >> 8 & 7 {
        0 => WHvX64InterruptTypeFixed,
        1 => WHvX64InterruptTypeLowestPriority,
        4 => WHvX64InterruptTypeNmi,
        5 => WHvX64InterruptTypeInit,
        _ => return None,
    };
    let (logical, level) = (msi.address >> 2 & 1, u64::from(msi.data >> 15 & 1));
    Some(WHV_INTERRUPT_CONTROL {
        // Type, DestinationMode, TriggerMode.
        _bitfield: kind as u64 | logical << 8 | level << 12,
        Destination: (msi.address >> 12 & 0xff) as u32,
        Vector: msi.data & 0xff,
    })
}

fn nothing_at(guest: u64) -> HvError {
    HvError::Invalid(format!("nothing is mapped at {guest:#x}"))
}

#[cfg(windows)]
fn handle_of(event: &Event) -> HANDLE {
    use std::os::windows::io::{AsHandle, AsRawHandle};
    event.as_handle().as_raw_handle()
}

/// Where there are no handles, the descriptor's number stands for one.
#[cfg(unix)]
fn handle_of(event: &Event) -> HANDLE {
    use std::os::fd::{AsFd, AsRawFd};
    std::ptr::without_provenance_mut(event.as_fd().as_raw_fd() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_whom_how_and_what() {
        let msi = Msi { address: 0xfee0_3004, data: 1 << 15 | 1 << 14 | 1 << 8 | 0x41 };
        let interrupt = interrupt_of(msi).unwrap();
        assert_eq!(interrupt._bitfield, 1 | 1 << 8 | 1 << 12);
        assert_eq!((interrupt.Destination, interrupt.Vector), (3, 0x41));
        assert!(interrupt_of(Msi { address: 0xfee0_0000, data: 7 << 8 }).is_none());
    }
}

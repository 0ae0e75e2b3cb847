//! A VM: memory slots, doorbells, interrupts by events.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cabana_hv::{Doorbell, HvError, MemorySlot, VcpuSeat, Vm};
use cabana_os::Event;
use cabana_os::process::close_behind;
use kvm_bindings::{
    KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_ioeventfd, kvm_irqfd,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, VmFd};

use crate::System;
use crate::arch::{self, Guest};
use crate::ioctl::{IOEVENTFD, IRQFD, failed, ioctl_with};

const PAGE: u64 = 4096;
/// `kvm_ioeventfd.flags`: only the given value rings.
const IOEVENTFD_DATAMATCH: u32 = 1;

/// One VM.
#[derive(Debug)]
pub(crate) struct KvmVm {
    pub(crate) shared: Arc<VmShared>,
    pub(crate) arch: arch::VmParts,
}

/// What a VM and its vCPUs hold together.
#[derive(Debug)]
pub(crate) struct VmShared {
    pub(crate) system: Arc<System>,
    pub(crate) fd: VmFd,
    slots: Mutex<Slots>,
}

/// KVM numbers its slots; we go by guest address.
#[derive(Debug, Default)]
struct Slots {
    by_guest: BTreeMap<u64, Slot>,
    /// Numbers below `next` that are free again.
    free: Vec<u32>,
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    number: u32,
    len: usize,
    track_dirty: bool,
}

impl KvmVm {
    pub(crate) fn new(system: Arc<System>, arch: arch::VmParts) -> Result<Self, HvError> {
        let fd = arch::create_vm(&system.kvm)?;
        let shared = VmShared { system, fd, slots: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), arch })
    }

    /// Signals the interrupt numbered `gsi` whenever `event` is signalled.
    pub(crate) fn irqfd(&self, gsi: u32, event: &Event) -> Result<(), HvError> {
        let request =
            kvm_irqfd { fd: event.as_fd().as_raw_fd() as u32, gsi, ..kvm_irqfd::default() };
        ioctl_with(&self.shared.fd, IRQFD, "KVM_IRQFD", &request)?;
        Ok(())
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.shared.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vm<Guest> for KvmVm {
    /// KVM waits for whoever may still be reading its page tables (`kvm_mmu_uninit_tdp_mmu`): some ticks of the host's clock.
    fn end_with_process(&self) {
        // SAFETY: the VM's file is open as long as the VM is there.
        let fd = unsafe { BorrowedFd::borrow_raw(self.shared.fd.as_raw_fd()) };
        // Refused, for instance to a confined process, the end takes its time.
        let _ = close_behind(fd);
    }

    unsafe fn map(&self, slot: &MemorySlot) -> Result<(), HvError> {
        let aligned = slot.guest.is_multiple_of(PAGE)
            && (slot.host as u64).is_multiple_of(PAGE)
            && (slot.len as u64).is_multiple_of(PAGE);
        if !aligned || slot.len == 0 {
            return Err(HvError::Invalid(format!(
                "a memory slot of {:#x} bytes at {:#x} is not whole pages",
                slot.len, slot.guest
            )));
        }
        let mut slots = self.slots();
        let number = slots.free.last().copied().unwrap_or(slots.next);
        let mut flags = 0;
        if slot.read_only {
            flags |= KVM_MEM_READONLY;
        }
        if slot.track_dirty {
            flags |= KVM_MEM_LOG_DIRTY_PAGES;
        }
        let region = kvm_userspace_memory_region {
            slot: number,
            flags,
            guest_phys_addr: slot.guest,
            memory_size: slot.len as u64,
            userspace_addr: slot.host as u64,
        };
        // SAFETY: the caller keeps the host memory mapped and free of references.
        unsafe { self.shared.fd.set_user_memory_region(region) }
            .map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        if slots.free.pop().is_none() {
            slots.next += 1;
        }
        let mapped = Slot { number, len: slot.len, track_dirty: slot.track_dirty };
        slots.by_guest.insert(slot.guest, mapped);
        Ok(())
    }

    fn unmap(&self, guest: u64) -> Result<(), HvError> {
        let mut slots = self.slots();
        let slot = *slots.by_guest.get(&guest).ok_or_else(|| nothing_at(guest))?;
        let region = kvm_userspace_memory_region {
            slot: slot.number,
            guest_phys_addr: guest,
            ..kvm_userspace_memory_region::default()
        };
        // SAFETY: a slot of no size takes memory away and gives none.
        unsafe { self.shared.fd.set_user_memory_region(region) }
            .map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        slots.by_guest.remove(&guest);
        slots.free.push(slot.number);
        Ok(())
    }

    fn dirty_pages(&self, guest: u64) -> Result<Vec<u64>, HvError> {
        let slots = self.slots();
        let slot = slots.by_guest.get(&guest).ok_or_else(|| nothing_at(guest))?;
        if !slot.track_dirty {
            return Err(HvError::Invalid(format!("the memory at {guest:#x} is not tracked")));
        }
        self.shared.fd.get_dirty_log(slot.number, slot.len).map_err(failed("KVM_GET_DIRTY_LOG"))
    }

    fn doorbell(&self, doorbell: Doorbell, event: &Event) -> Result<(), HvError> {
        let request = kvm_ioeventfd {
            datamatch: u64::from(doorbell.value),
            addr: doorbell.guest,
            len: 4,
            fd: event.as_fd().as_raw_fd(),
            flags: IOEVENTFD_DATAMATCH,
            ..kvm_ioeventfd::default()
        };
        ioctl_with(&self.shared.fd, IOEVENTFD, "KVM_IOEVENTFD", &request)?;
        Ok(())
    }

    fn set_vcpus(&self, vcpus: Vec<arch::VcpuSetup>) -> Result<(), HvError> {
        self.arch.set_vcpus(&self.shared, vcpus)
    }

    fn vcpu_seat(&self, index: u32) -> Result<Box<dyn VcpuSeat<Guest>>, HvError> {
        Ok(Box::new(self.arch.seat(&self.shared, index)?))
    }

    fn max_vcpus(&self) -> u32 {
        u32::try_from(self.shared.fd.check_extension_int(Cap::MaxVcpus))
            .map_or(1, |max| max.clamp(1, arch::MAX_VCPUS))
    }
}

fn nothing_at(guest: u64) -> HvError {
    HvError::Invalid(format!("nothing is mapped at {guest:#x}"))
}

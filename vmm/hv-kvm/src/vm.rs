//! A VM: memory slots, interrupts, doorbells.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cabana_hv::x86::{CpuidLeaf, IOAPIC_PINS, Msi, MsiRoute, VcpuSetup, X86};
use cabana_hv::{Doorbell, HvError, MemorySlot, Seats, VcpuSeat, Vm, X86Vm};
use cabana_os::Event;
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY,
    KvmIrqRouting, kvm_clock_data, kvm_enable_cap, kvm_ioeventfd, kvm_irq_routing_entry, kvm_irqfd,
    kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, VmFd};

use crate::System;
use crate::ioctl::{GET_TSC_KHZ, IOEVENTFD, IRQFD, failed, ioctl, ioctl_with};
use crate::vcpu::KvmSeat;

const PAGE: u64 = 4096;
/// APIC ids are 8 bits wide in xAPIC mode, and 255 means everybody.
const MAX_VCPUS: u32 = 254;
/// KVM's bus clock: one tick a nanosecond (`APIC_BUS_CYCLE_NS_DEFAULT`).
const APIC_KHZ: u32 = 1_000_000;
/// Three pages for real mode on processors that have none for guests.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// `kvm_ioeventfd.flags`: only the given value rings.
const IOEVENTFD_DATAMATCH: u32 = 1;

/// One VM.
#[derive(Debug)]
pub(crate) struct KvmVm {
    shared: Arc<VmShared>,
    /// What the vCPUs are to be that nobody has taken yet.
    seats: Seats<VcpuSetup>,
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
    pub(crate) fn new(system: Arc<System>) -> Result<Self, HvError> {
        let fd = system.kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        if needs_tss() {
            fd.set_tss_address(TSS_ADDRESS).map_err(failed("KVM_SET_TSS_ADDR"))?;
        }
        let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..kvm_enable_cap::default() };
        split.args[0] = u64::from(IOAPIC_PINS);
        fd.enable_cap(&split).map_err(failed("KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)"))?;
        let shared = VmShared { system, fd, slots: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), seats: Seats::default() })
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.shared.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Intel's first virtualizing processors run a guest's real mode as virtual-8086 mode, which needs
/// a task state segment in guest memory. Nobody else does, and making it costs start-up time.
fn needs_tss() -> bool {
    fs::read("/sys/module/kvm_intel/parameters/unrestricted_guest")
        .is_ok_and(|answer| answer.first() == Some(&b'N'))
}

impl Vm<X86> for KvmVm {
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

    fn set_vcpus(&self, vcpus: Vec<VcpuSetup>) -> Result<(), HvError> {
        self.seats.set(vcpus);
        Ok(())
    }

    fn vcpu_seat(&self, index: u32) -> Result<Box<dyn VcpuSeat<X86>>, HvError> {
        let setup = self.seats.take(index)?;
        Ok(Box::new(KvmSeat::new(Arc::clone(&self.shared), index, &setup)?))
    }

    fn max_vcpus(&self) -> u32 {
        u32::try_from(self.shared.fd.check_extension_int(Cap::MaxVcpus))
            .map_or(1, |max| max.clamp(1, MAX_VCPUS))
    }
}

impl X86Vm for KvmVm {
    fn signal_msi(&self, msi: Msi) -> Result<(), HvError> {
        let message = kvm_msi {
            address_lo: msi.address as u32,
            address_hi: (msi.address >> 32) as u32,
            data: msi.data,
            ..kvm_msi::default()
        };
        match self.shared.fd.signal_msi(message) {
            // The answer counts the processors reached; none (0, or -1 as if it were an error) is
            // the guest's own doing.
            Ok(_) => Ok(()),
            Err(error) if error.errno() == libc::EPERM => Ok(()),
            Err(error) => Err(failed("KVM_SIGNAL_MSI")(error)),
        }
    }

    fn set_msi_routes(&self, routes: &[MsiRoute]) -> Result<(), HvError> {
        let entries: Vec<kvm_irq_routing_entry> = routes.iter().map(route_to_kvm).collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| HvError::Invalid(format!("{} interrupt routes", routes.len())))?;
        self.shared.fd.set_gsi_routing(&table).map_err(failed("KVM_SET_GSI_ROUTING"))
    }

    fn irq_event(&self, gsi: u32, event: &Event) -> Result<(), HvError> {
        let request =
            kvm_irqfd { fd: event.as_fd().as_raw_fd() as u32, gsi, ..kvm_irqfd::default() };
        ioctl_with(&self.shared.fd, IRQFD, "KVM_IRQFD", &request)?;
        Ok(())
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidLeaf>, HvError> {
        self.shared.system.supported_cpuid().map(<[CpuidLeaf]>::to_vec)
    }

    fn tsc_khz(&self) -> Result<u32, HvError> {
        // SAFETY: KVM_GET_TSC_KHZ has no argument.
        let of_vm =
            unsafe { ioctl(self.shared.fd.as_raw_fd(), GET_TSC_KHZ, ptr::null_mut::<()>()) };
        if let Ok(khz) = of_vm {
            return Ok(khz.unsigned_abs());
        }
        // Before Linux 5.18 only a vCPU answers: one of a VM that nobody else sees.
        let vm = self.shared.system.kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        vcpu.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))
    }

    fn apic_khz(&self) -> u32 {
        APIC_KHZ
    }

    fn clock(&self) -> Result<u64, HvError> {
        Ok(self.shared.fd.get_clock().map_err(failed("KVM_GET_CLOCK"))?.clock)
    }

    fn set_clock(&self, nanoseconds: u64) -> Result<(), HvError> {
        let clock = kvm_clock_data { clock: nanoseconds, ..kvm_clock_data::default() };
        self.shared.fd.set_clock(&clock).map_err(failed("KVM_SET_CLOCK"))
    }
}

fn nothing_at(guest: u64) -> HvError {
    HvError::Invalid(format!("nothing is mapped at {guest:#x}"))
}

fn route_to_kvm(route: &MsiRoute) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi: route.gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..kvm_irq_routing_entry::default()
    };
    entry.u.msi.address_lo = route.msi.address as u32;
    entry.u.msi.address_hi = (route.msi.address >> 32) as u32;
    entry.u.msi.data = route.msi.data;
    entry
}

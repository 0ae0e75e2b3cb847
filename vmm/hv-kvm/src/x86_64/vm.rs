//! What an x86-64 VM has beside memory: local APICs, messages to them, clocks.

use std::fs;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;

use cabana_hv::x86::{CpuidLeaf, IOAPIC_PINS, Msi, MsiRoute, VcpuSetup};
use cabana_hv::{HvError, Seats, X86Vm};
use cabana_os::Event;
use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_clock_data,
    kvm_enable_cap, kvm_irq_routing_entry, kvm_msi,
};
use kvm_ioctls::{Kvm, VmFd};

use super::ioctl::GET_TSC_KHZ;
use super::{convert, state};
use crate::ioctl::{failed, ioctl};
use crate::vcpu::KvmSeat;
use crate::vm::{KvmVm, VmShared};

/// APIC ids are 8 bits wide in xAPIC mode, and 255 means everybody.
pub(crate) const MAX_VCPUS: u32 = 254;
/// KVM's bus clock: one tick a nanosecond (`APIC_BUS_CYCLE_NS_DEFAULT`).
const APIC_KHZ: u32 = 1_000_000;
/// Three pages for real mode on processors that have none for guests.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// A new VM with local APICs.
pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd, HvError> {
    let fd = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
    if needs_tss() {
        fd.set_tss_address(TSS_ADDRESS).map_err(failed("KVM_SET_TSS_ADDR"))?;
    }
    let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..kvm_enable_cap::default() };
    split.args[0] = u64::from(IOAPIC_PINS);
    fd.enable_cap(&split).map_err(failed("KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)"))?;
    Ok(fd)
}

/// What the vCPUs are to be that nobody has taken yet.
#[derive(Debug, Default)]
pub(crate) struct VmParts {
    seats: Seats<VcpuSetup>,
}

impl VmParts {
    #[allow(clippy::unnecessary_wraps, reason = "other processors' vCPUs are made here")]
    pub(crate) fn set_vcpus(
        &self,
        _vm: &Arc<VmShared>,
        vcpus: Vec<VcpuSetup>,
    ) -> Result<(), HvError> {
        self.seats.set(vcpus);
        Ok(())
    }

    pub(crate) fn seat(&self, vm: &Arc<VmShared>, index: u32) -> Result<KvmSeat, HvError> {
        let setup = self.seats.take(index)?;
        let fd = vm.fd.create_vcpu(u64::from(index)).map_err(failed("KVM_CREATE_VCPU"))?;
        if !setup.cpuid.is_empty() {
            let entries: Vec<_> = setup.cpuid.iter().map(convert::leaf_to_kvm).collect();
            let cpuid = CpuId::from_entries(&entries)
                .map_err(|_| HvError::Invalid(format!("{} CPUID leaves", entries.len())))?;
            fd.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
        }
        state::set_msrs(&fd, &setup.msrs)?;
        Ok(KvmSeat::new(Arc::clone(vm), fd))
    }
}

/// Intel's first virtualizing processors run a guest's real mode as virtual-8086 mode, which needs
/// a task state segment in guest memory. Nobody else does, and making it costs start-up time.
fn needs_tss() -> bool {
    fs::read("/sys/module/kvm_intel/parameters/unrestricted_guest")
        .is_ok_and(|answer| answer.first() == Some(&b'N'))
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
        self.irqfd(gsi, event)
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidLeaf>, HvError> {
        let system = &self.shared.system;
        system.arch.supported_cpuid(&system.kvm).map(<[CpuidLeaf]>::to_vec)
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

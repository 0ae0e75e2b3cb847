//! What an arm64 VM has beside memory: the interrupt controller and its lines.

use std::sync::{Arc, OnceLock};

use cabana_hv::arm64::{self, VcpuSetup};
use cabana_hv::{Arm64Vm, HvError, Seats};
use cabana_os::Event;
use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2,
    kvm_vcpu_init,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::gic::Gic;
use crate::ioctl::failed;
use crate::vcpu::KvmSeat;
use crate::vm::{KvmVm, VmShared};

/// What the redistributors of the machine's memory map have room for, and more than fits any host.
pub(crate) const MAX_VCPUS: u32 = 123;

/// Guest-physical addresses have this many bits, if the host can have as many: more would only make the
/// host's page tables deeper.
const ADDRESS_BITS: i32 = 40;

/// The first shared peripheral interrupt.
const FIRST_SPI: u32 = 32;

/// A new VM.
pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd, HvError> {
    let vm = if kvm.check_extension(Cap::ArmVmIPASize) {
        kvm.create_vm_with_ipa_size(kvm.get_host_ipa_limit().min(ADDRESS_BITS) as u32)
    } else {
        kvm.create_vm_with_type(0)
    };
    vm.map_err(failed("KVM_CREATE_VM"))
}

/// The interrupt controller, and the vCPUs that nobody has taken yet.
#[derive(Debug)]
pub(crate) struct VmParts {
    place: arm64::Gic,
    gic: OnceLock<Gic>,
    seats: Seats<KvmSeat>,
}

impl VmParts {
    pub(crate) fn new(place: arm64::Gic) -> Self {
        Self { place, gic: OnceLock::new(), seats: Seats::default() }
    }

    /// Makes all vCPUs, and then the interrupt controller, which has to know them.
    pub(crate) fn set_vcpus(
        &self,
        vm: &Arc<VmShared>,
        vcpus: Vec<VcpuSetup>,
    ) -> Result<(), HvError> {
        let mut target = kvm_vcpu_init::default();
        vm.fd.get_preferred_target(&mut target).map_err(failed("KVM_ARM_PREFERRED_TARGET"))?;
        target.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        let gic = Gic::new(&vm.fd, vcpus.len() as u32, self.place.lines)?;
        let mut seats = Vec::with_capacity(vcpus.len());
        for (index, setup) in vcpus.into_iter().enumerate() {
            let fd = vm.fd.create_vcpu(index as u64).map_err(failed("KVM_CREATE_VCPU"))?;
            let mut init = target;
            init.features[0] |= u32::from(setup.off) << KVM_ARM_VCPU_POWER_OFF;
            fd.vcpu_init(&init).map_err(failed("KVM_ARM_VCPU_INIT"))?;
            seats.push(KvmSeat::new(Arc::clone(vm), fd));
        }
        gic.set_up(self.place)?;
        let _ = self.gic.set(gic);
        self.seats.set(seats);
        Ok(())
    }

    pub(crate) fn seat(&self, _vm: &Arc<VmShared>, index: u32) -> Result<KvmSeat, HvError> {
        self.seats.take(index)
    }

    fn gic(&self) -> Result<&Gic, HvError> {
        self.gic.get().ok_or_else(|| HvError::Invalid("the vCPUs are not set".into()))
    }
}

impl Arm64Vm for KvmVm {
    fn irq_line(&self, line: u32, level: bool) -> Result<(), HvError> {
        let interrupt = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | (FIRST_SPI + line);
        self.shared.fd.set_irq_line(interrupt, level).map_err(failed("KVM_IRQ_LINE"))
    }

    fn irq_event(&self, line: u32, event: &Event) -> Result<(), HvError> {
        // KVM's own table leads from each number to the interrupt of the same number.
        self.irqfd(line, event)
    }

    fn gic_state(&self) -> Result<Vec<u8>, HvError> {
        self.arch.gic()?.state()
    }

    fn set_gic_state(&self, state: &[u8]) -> Result<(), HvError> {
        self.arch.gic()?.set_state(state)
    }
}

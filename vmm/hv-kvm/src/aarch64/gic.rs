//! KVM's interrupt controller (Documentation/virt/kvm/devices/arm-vgic-v3.rst), and its whole state.

use cabana_hv::HvError;
use cabana_hv::arm64::{self, SystemRegister};
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use crate::ioctl::failed;

/// Private interrupts of each vCPU; the shared ones come behind.
const PRIVATE: u32 = 32;
/// KVM makes at least this many interrupts, and them by 32.
const FEWEST: u32 = 64;

/// Registers for shared interrupts: where those for interrupt 0 are, and bits an interrupt (Arm IHI 0069
/// §12.9): group, enabled, pending, active, priority, trigger, target.
const SHARED: [(u32, u32); 7] =
    [(0x80, 1), (0x100, 1), (0x200, 1), (0x300, 1), (0x400, 8), (0xc00, 2), (0x6000, 64)];
const GICD_CTLR: u32 = 0;
/// Of a redistributor: control and waking; then, in its second frame, what [`SHARED`] is for the shared ones
/// (§12.11).
const GICR_CTLR: u32 = 0;
const GICR_WAKER: u32 = 0x14;
const GICR_PRIVATE: [(u32, u32); 6] =
    [(0x1_0080, 1), (0x1_0100, 1), (0x1_0200, 1), (0x1_0300, 1), (0x1_0400, 8), (0x1_0c00, 2)];
/// The processor's interface (§12.2): `ICC_SRE_EL1` first, then `CTLR`, `IGRPEN0`, `IGRPEN1`, `PMR`, `BPR0`, `BPR1`,
/// `AP0R0`, `AP1R0`.
const INTERFACE: [SystemRegister; 9] = [
    SystemRegister::new(3, 0, 12, 12, 5),
    SystemRegister::new(3, 0, 12, 12, 4),
    SystemRegister::new(3, 0, 12, 12, 6),
    SystemRegister::new(3, 0, 12, 12, 7),
    SystemRegister::new(3, 0, 4, 6, 0),
    SystemRegister::new(3, 0, 12, 8, 3),
    SystemRegister::new(3, 0, 12, 12, 3),
    SystemRegister::new(3, 0, 12, 8, 4),
    SystemRegister::new(3, 0, 12, 9, 0),
];

/// The device.
#[derive(Debug)]
pub(crate) struct Gic {
    device: DeviceFd,
    vcpus: u32,
    /// Private and shared interrupts.
    interrupts: u32,
}

impl Gic {
    /// Makes the device. It is not complete before [`Gic::set_up`].
    pub(crate) fn new(vm: &VmFd, vcpus: u32, lines: u32) -> Result<Self, HvError> {
        let mut device = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
            ..kvm_create_device::default()
        };
        let device = vm
            .create_device(&mut device)
            .map_err(failed("KVM_CREATE_DEVICE(KVM_DEV_TYPE_ARM_VGIC_V3)"))?;
        let interrupts = (PRIVATE + lines).next_multiple_of(PRIVATE).max(FEWEST);
        Ok(Self { device, vcpus, interrupts })
    }

    /// Puts it in its place, when all vCPUs are made.
    pub(crate) fn set_up(&self, place: arm64::Gic) -> Result<(), HvError> {
        let addresses = [
            (KVM_VGIC_V3_ADDR_TYPE_DIST, place.distributor),
            (KVM_VGIC_V3_ADDR_TYPE_REDIST, place.redistributors),
        ];
        for (kind, address) in addresses {
            self.set(KVM_DEV_ARM_VGIC_GRP_ADDR, kind.into(), address)?;
        }
        self.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, self.interrupts.into())?;
        self.set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT.into(), 0)
    }

    /// All registers as numbers of eight bytes, in the order of [`Gic::registers`].
    pub(crate) fn state(&self) -> Result<Vec<u8>, HvError> {
        let mut state = Vec::new();
        for (group, attribute) in self.registers() {
            state.extend(self.get(group, attribute)?.to_le_bytes());
        }
        Ok(state)
    }

    /// Sets what [`Gic::state`] told of a controller with as many interrupts and vCPUs.
    pub(crate) fn set_state(&self, state: &[u8]) -> Result<(), HvError> {
        let registers = self.registers();
        let (values, rest) = state.as_chunks::<8>();
        if values.len() != registers.len() || !rest.is_empty() {
            return Err(HvError::Invalid(
                "the saved state is of another interrupt controller".into(),
            ));
        }
        for ((group, attribute), value) in registers.into_iter().zip(values) {
            self.set(group, attribute, u64::from_le_bytes(*value))?;
        }
        Ok(())
    }

    /// Group and attribute of each register, in the order in which they are set: what the levels of lines
    /// are comes last, since pending interrupts of level-triggered lines follow them.
    fn registers(&self) -> Vec<(u32, u64)> {
        let mut registers = vec![(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, u64::from(GICD_CTLR))];
        for (base, bits) in SHARED {
            let (start, end) = (PRIVATE * bits / 8, self.interrupts * bits / 8);
            let words = (start..end).step_by(4);
            registers
                .extend(words.map(|at| (KVM_DEV_ARM_VGIC_GRP_DIST_REGS, u64::from(base + at))));
        }
        for vcpu in (0..self.vcpus).map(affinity) {
            let mut redistributor =
                |at: u32| registers.push((KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, vcpu | u64::from(at)));
            redistributor(GICR_CTLR);
            redistributor(GICR_WAKER);
            for (base, bits) in GICR_PRIVATE {
                (0..PRIVATE * bits / 8).step_by(4).for_each(|at| redistributor(base + at));
            }
            registers.extend(
                INTERFACE.map(|name| (KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, vcpu | u64::from(name.0))),
            );
            registers.push((KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, vcpu));
        }
        let shared = (PRIVATE..self.interrupts).step_by(PRIVATE as usize);
        registers.extend(shared.map(|at| (KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, u64::from(at))));
        registers
    }

    fn get(&self, group: u32, attribute: u64) -> Result<u64, HvError> {
        // The kernel writes four or eight bytes of it; the machine is little-endian.
        let mut value = 0u64;
        let mut request = request(group, attribute, &raw mut value);
        // SAFETY: `value` takes whatever a register has.
        unsafe { self.device.get_device_attr(&mut request) }
            .map_err(failed("KVM_GET_DEVICE_ATTR(KVM_DEV_TYPE_ARM_VGIC_V3)"))?;
        Ok(value)
    }

    fn set(&self, group: u32, attribute: u64, mut value: u64) -> Result<(), HvError> {
        let request = request(group, attribute, &raw mut value);
        self.device
            .set_device_attr(&request)
            .map_err(failed("KVM_SET_DEVICE_ATTR(KVM_DEV_TYPE_ARM_VGIC_V3)"))
    }
}

fn request(group: u32, attr: u64, value: *mut u64) -> kvm_device_attr {
    kvm_device_attr { flags: 0, group, attr, addr: value as u64 }
}

/// A vCPU's affinity where an attribute has it: as KVM numbers its vCPUs, 16 to a cluster.
fn affinity(index: u32) -> u64 {
    (u64::from(index % 16) | u64::from(index / 16) << 8) << 32
}

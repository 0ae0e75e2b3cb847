//! The interrupt controller: KVM's (Documentation/virt/kvm/devices/arm-vgic-v3.rst), by Apple's functions.

use cabana_hv_hvf::{HV_BAD_ARGUMENT, HV_BUSY, HV_ERROR};
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use crate::machine::{self, MAX_VCPUS};
use crate::{Answer, failed};

/// The first shared interrupt, and how many there are.
pub(crate) const FIRST: u32 = 32;
pub(crate) const COUNT: u32 = 128;
/// Registers are aligned to this.
const ALIGNMENT: u64 = 0x1_0000;
/// `hv_gic_icc_reg_t`, those of EL1.
const INTERFACE: [u16; 10] =
    [0xc230, 0xc643, 0xc644, 0xc648, 0xc65b, 0xc663, 0xc664, 0xc665, 0xc666, 0xc667];
/// How a state begins.
const MAGIC: u64 = u64::from_le_bytes(*b"hvfkvm01");

/// Where registers for interrupt 0 are, and bits an interrupt (Arm IHI 0069 §12.9): group, enabled, pending, active,
/// priority, trigger, target. Private interrupts have no target.
const REGISTERS: [(u32, u32); 7] =
    [(0x80, 1), (0x100, 1), (0x200, 1), (0x300, 1), (0x400, 8), (0xc00, 2), (0x6000, 64)];
/// The second frame of a redistributor.
const PRIVATE_FRAME: u32 = 0x1_0000;
/// Of a redistributor: control and waking.
const GICR: [u32; 2] = [0, 0x14];

/// KVM's device.
#[derive(Debug)]
pub(crate) struct Gic(DeviceFd);

impl Gic {
    /// All vCPUs are there, and none has run.
    pub(crate) fn new(vm: &VmFd, distributor: u64, redistributors: u64) -> Answer<Self> {
        if [distributor, redistributors].iter().any(|at| !at.is_multiple_of(ALIGNMENT)) {
            return Err(HV_BAD_ARGUMENT);
        }
        let mut device = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
            ..kvm_create_device::default()
        };
        let gic = Self(vm.create_device(&mut device).map_err(failed)?);
        let addresses = [
            (KVM_VGIC_V3_ADDR_TYPE_DIST, distributor),
            (KVM_VGIC_V3_ADDR_TYPE_REDIST, redistributors),
        ];
        for (kind, address) in addresses {
            gic.set(KVM_DEV_ARM_VGIC_GRP_ADDR, kind.into(), address)
                .map_err(|_| HV_BAD_ARGUMENT)?;
        }
        gic.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, (FIRST + COUNT).into())?;
        gic.set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT.into(), 0)?;
        Ok(gic)
    }

    /// A register of a vCPU's interface.
    pub(crate) fn interface(&self, vcpu: u32, name: u16) -> Answer<u64> {
        self.get(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, interface(vcpu, name)?)
    }

    pub(crate) fn set_interface(&self, vcpu: u32, name: u16, value: u64) -> Answer<()> {
        self.set(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, interface(vcpu, name)?, value)
    }

    /// All registers but the interfaces', as numbers of eight bytes behind [`MAGIC`].
    pub(crate) fn state(&self) -> Answer<Vec<u8>> {
        let mut state = MAGIC.to_le_bytes().to_vec();
        for (group, attribute) in registers() {
            state.extend(self.get(group, attribute)?.to_le_bytes());
        }
        Ok(state)
    }

    pub(crate) fn set_state(&self, state: &[u8]) -> Answer<()> {
        let registers: Vec<_> = registers().collect();
        let (numbers, rest) = state.as_chunks::<8>();
        let Some((head, values)) = numbers.split_first() else { return Err(HV_BAD_ARGUMENT) };
        let known = *head == MAGIC.to_le_bytes() && rest.is_empty();
        if !known || values.len() != registers.len() {
            return Err(HV_BAD_ARGUMENT);
        }
        for ((group, attribute), value) in registers.into_iter().zip(values) {
            self.set(group, attribute, u64::from_le_bytes(*value))?;
        }
        Ok(())
    }

    fn get(&self, group: u32, attribute: u64) -> Answer<u64> {
        // The kernel writes four or eight bytes of it; the machine is little-endian.
        let mut value = 0u64;
        let mut request = request(group, attribute, &raw mut value);
        // SAFETY: `value` takes whatever a register has.
        unsafe { self.0.get_device_attr(&mut request) }.map_err(busy)?;
        Ok(value)
    }

    fn set(&self, group: u32, attribute: u64, mut value: u64) -> Answer<()> {
        self.0.set_device_attr(&request(group, attribute, &raw mut value)).map_err(busy)
    }
}

fn request(group: u32, attr: u64, value: *mut u64) -> kvm_device_attr {
    kvm_device_attr { flags: 0, group, attr, addr: value as u64 }
}

/// A vCPU runs.
fn busy(error: kvm_ioctls::Error) -> i32 {
    if error.errno() == libc::EBUSY { HV_BUSY } else { HV_ERROR }
}

/// A vCPU's affinity where an attribute has it.
fn affinity(vcpu: u32) -> u64 {
    machine::affinity(vcpu) << 32
}

fn interface(vcpu: u32, name: u16) -> Answer<u64> {
    if !INTERFACE.contains(&name) {
        return Err(HV_BAD_ARGUMENT);
    }
    Ok(affinity(vcpu) | u64::from(name))
}

/// Group and attribute of each register, in the order in which they are set: what the levels of lines are comes
/// last, since pending interrupts of level-triggered lines follow them.
fn registers() -> impl Iterator<Item = (u32, u64)> {
    let of = |first: u32, count: u32, group, attribute: u64| {
        REGISTERS.into_iter().filter(move |(_, bits)| *bits < 64 || first > 0).flat_map(
            move |(base, bits)| {
                let words = (first * bits / 8..(first + count) * bits / 8).step_by(4);
                words.map(move |at| (group, attribute | u64::from(base + at)))
            },
        )
    };
    let shared = of(FIRST, COUNT, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0);
    let redistributor = move |vcpu| {
        let head =
            GICR.map(|at| (KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, affinity(vcpu) | u64::from(at)));
        let frame = affinity(vcpu) + u64::from(PRIVATE_FRAME);
        let private = of(0, FIRST, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, frame);
        let level = (KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, affinity(vcpu));
        head.into_iter().chain(private).chain([level])
    };
    let levels = (FIRST..FIRST + COUNT).step_by(32);
    let levels = levels.map(|at| (KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, u64::from(at)));
    // The distributor's control comes first.
    [(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0)]
        .into_iter()
        .chain(shared)
        .chain((0..MAX_VCPUS).flat_map(redistributor))
        .chain(levels)
}

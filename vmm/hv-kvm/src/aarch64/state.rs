//! The whole state of a vCPU, saved and set (`KVM_GET_ONE_REG`, `KVM_SET_ONE_REG`).

use std::mem::offset_of;

use cabana_hv::HvError;
use cabana_hv::arm64::{BootState, EL1H_MASKED, Regs, Simd, SystemRegister, VcpuState};
use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED, KVM_REG_ARM_CORE, KVM_REG_ARM64,
    KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U32, KVM_REG_SIZE_U64, KVM_REG_SIZE_U128, kvm_mp_state,
    kvm_regs, user_fpsimd_state, user_pt_regs,
};
use kvm_ioctls::VcpuFd;

use crate::ioctl::failed;
use crate::vm::VmShared;

/// All system registers are of this kind; their names stand in the low 16 bits.
const SYSTEM: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64;

/// `CNTV_CVAL_EL0` and `CNTVCT_EL0`. KVM has each under the name of the other (api.rst, "ARM registers").
const TIMER_COMPARE: SystemRegister = SystemRegister::new(3, 3, 14, 3, 2);
const TIMER_COUNT: SystemRegister = SystemRegister::new(3, 3, 14, 0, 2);
/// `CNTPCT_EL0`: to set it would shift the physical counter, which all of the VM has from the host.
const PHYSICAL_COUNT: SystemRegister = SystemRegister::new(3, 3, 14, 0, 1);

/// A register of `kvm_regs` that stands at `offset` of it.
const fn core(size: u64, offset: usize) -> u64 {
    KVM_REG_ARM64 | KVM_REG_ARM_CORE as u64 | size | (offset / 4) as u64
}

const fn general(offset: usize) -> u64 {
    core(KVM_REG_SIZE_U64, offset_of!(kvm_regs, regs) + offset)
}

const fn simd(size: u64, offset: usize) -> u64 {
    core(size, offset_of!(kvm_regs, fp_regs) + offset)
}

const fn x(index: usize) -> u64 {
    general(offset_of!(user_pt_regs, regs) + 8 * index)
}

const fn v(index: usize) -> u64 {
    simd(KVM_REG_SIZE_U128, offset_of!(user_fpsimd_state, vregs) + 16 * index)
}

const SP_EL0: u64 = general(offset_of!(user_pt_regs, sp));
const PC: u64 = general(offset_of!(user_pt_regs, pc));
const PSTATE: u64 = general(offset_of!(user_pt_regs, pstate));
const SP_EL1: u64 = core(KVM_REG_SIZE_U64, offset_of!(kvm_regs, sp_el1));
const ELR_EL1: u64 = core(KVM_REG_SIZE_U64, offset_of!(kvm_regs, elr_el1));
const SPSR_EL1: u64 = core(KVM_REG_SIZE_U64, offset_of!(kvm_regs, spsr));
const FPSR: u64 = simd(KVM_REG_SIZE_U32, offset_of!(user_fpsimd_state, fpsr));
const FPCR: u64 = simd(KVM_REG_SIZE_U32, offset_of!(user_fpsimd_state, fpcr));

fn read(vcpu: &VcpuFd, register: u64) -> Result<u128, HvError> {
    let mut bytes = [0; 16];
    vcpu.get_one_reg(register, &mut bytes).map_err(failed("KVM_GET_ONE_REG"))?;
    Ok(u128::from_le_bytes(bytes))
}

fn get_u64(vcpu: &VcpuFd, register: u64) -> Result<u64, HvError> {
    Ok(read(vcpu, register)? as u64)
}

fn write(vcpu: &VcpuFd, register: u64, value: impl Into<u128>) -> Result<(), HvError> {
    let bytes = value.into().to_le_bytes();
    vcpu.set_one_reg(register, &bytes).map_err(failed("KVM_SET_ONE_REG"))?;
    Ok(())
}

/// The system registers that are a vCPU's state, by their proper names and by KVM's numbers.
fn system_registers(registers: &[u64]) -> impl Iterator<Item = (SystemRegister, u64)> {
    const NAME: u64 = 0xffff;
    let system = registers.iter().copied().filter(|register| register & !NAME == SYSTEM);
    system.filter_map(|register| match SystemRegister(register as u16) {
        PHYSICAL_COUNT | TIMER_COMPARE => None,
        TIMER_COUNT => Some((TIMER_COMPARE, register)),
        name => Some((name, register)),
    })
}

/// Everything but the interrupt controller's part.
pub(crate) fn get(vm: &VmShared, vcpu: &VcpuFd) -> Result<VcpuState, HvError> {
    let mut regs = Regs {
        sp_el0: get_u64(vcpu, SP_EL0)?,
        sp_el1: get_u64(vcpu, SP_EL1)?,
        pc: get_u64(vcpu, PC)?,
        pstate: get_u64(vcpu, PSTATE)?,
        elr_el1: get_u64(vcpu, ELR_EL1)?,
        spsr_el1: get_u64(vcpu, SPSR_EL1)?,
        ..Regs::default()
    };
    for (index, value) in regs.x.iter_mut().enumerate() {
        *value = get_u64(vcpu, x(index))?;
    }
    let mut simd =
        Simd { fpsr: read(vcpu, FPSR)? as u32, fpcr: read(vcpu, FPCR)? as u32, ..Simd::default() };
    for (index, value) in simd.v.iter_mut().enumerate() {
        *value = read(vcpu, v(index))?;
    }
    let system = system_registers(vm.system.arch.registers(vcpu)?)
        .map(|(name, register)| Ok((name, get_u64(vcpu, register)?)))
        .collect::<Result<_, HvError>>()?;
    let activity = vcpu.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
    let off = activity.mp_state == KVM_MP_STATE_STOPPED;
    Ok(VcpuState { regs, simd, system, counter: counter(vcpu)?, off })
}

/// What says what the processor is can only be set to what it is, so that only differences are set.
pub(crate) fn set(vm: &VmShared, vcpu: &VcpuFd, state: &VcpuState) -> Result<(), HvError> {
    let VcpuState { regs, simd, system, counter, off } = state;
    let known: Vec<_> = system_registers(vm.system.arch.registers(vcpu)?).collect();
    if known.len() != system.len() {
        return Err(HvError::Invalid("the saved state is of another processor".into()));
    }
    let mp_state = if *off { KVM_MP_STATE_STOPPED } else { KVM_MP_STATE_RUNNABLE };
    vcpu.set_mp_state(kvm_mp_state { mp_state }).map_err(failed("KVM_SET_MP_STATE"))?;
    for (index, value) in regs.x.iter().enumerate() {
        write(vcpu, x(index), *value)?;
    }
    for (register, value) in [
        (SP_EL0, regs.sp_el0),
        (SP_EL1, regs.sp_el1),
        (PC, regs.pc),
        (PSTATE, regs.pstate),
        (ELR_EL1, regs.elr_el1),
        (SPSR_EL1, regs.spsr_el1),
    ] {
        write(vcpu, register, value)?;
    }
    for (index, value) in simd.v.iter().enumerate() {
        write(vcpu, v(index), *value)?;
    }
    write(vcpu, FPSR, simd.fpsr)?;
    write(vcpu, FPCR, simd.fpcr)?;
    write(vcpu, SYSTEM | u64::from(TIMER_COMPARE.0), *counter)?;
    for (&(name, value), (here, register)) in system.iter().zip(known) {
        if name != here {
            return Err(HvError::Invalid("the saved state is of another processor".into()));
        }
        if get_u64(vcpu, register)? != value {
            vcpu.set_one_reg(register, &value.to_le_bytes()).map_err(|_| {
                HvError::Invalid(format!(
                    "this host refuses the value {value:#x} of system register {:#06x}",
                    name.0
                ))
            })?;
        }
    }
    Ok(())
}

/// What a boot needs; a new vCPU has everything else at reset.
pub(crate) fn set_boot(vcpu: &VcpuFd, boot: &BootState) -> Result<(), HvError> {
    write(vcpu, PSTATE, EL1H_MASKED)?;
    write(vcpu, x(0), boot.x0)?;
    write(vcpu, PC, boot.pc)
}

/// The virtual counter.
pub(crate) fn counter(vcpu: &VcpuFd) -> Result<u64, HvError> {
    get_u64(vcpu, SYSTEM | u64::from(TIMER_COMPARE.0))
}

/// Where the vCPU stands.
pub(crate) fn instruction(vcpu: &VcpuFd) -> Result<u64, HvError> {
    get_u64(vcpu, PC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timers_registers_come_under_their_own_names() {
        let of = |name: SystemRegister| SYSTEM | u64::from(name.0);
        let sctlr = SystemRegister::new(3, 0, 1, 0, 0);
        let list = [of(sctlr), of(TIMER_COUNT), of(TIMER_COMPARE), of(PHYSICAL_COUNT), x(0)];
        let found: Vec<_> = system_registers(&list).collect();
        assert_eq!(found, [(sctlr, of(sctlr)), (TIMER_COMPARE, of(TIMER_COUNT))]);
    }
}

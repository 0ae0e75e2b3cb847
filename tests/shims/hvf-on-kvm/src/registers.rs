//! A vCPU's registers by Apple's names (`hv_reg_t`, `hv_sys_reg_t`), and by KVM's.

use std::mem::offset_of;

use cabana_hv_hvf::HV_BAD_ARGUMENT;
use kvm_bindings::{
    KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U32, KVM_REG_SIZE_U64,
    KVM_REG_SIZE_U128, kvm_regs, user_fpsimd_state, user_pt_regs,
};
use kvm_ioctls::VcpuFd;

use crate::{Answer, failed};

/// X0 to X30, and then these.
const PC: u32 = 31;
const FPCR: u32 = 32;
const FPSR: u32 = 33;
const CPSR: u32 = 34;

/// System registers that KVM has among the general ones.
const SPSR_EL1: u16 = 0xc200;
const ELR_EL1: u16 = 0xc201;
const SP_EL0: u16 = 0xc208;
const SP_EL1: u16 = 0xe208;
/// KVM has the deadline of the virtual timer under another name (api.rst, "ARM registers").
const CNTV_CVAL_EL0: u16 = 0xdf1a;
const KVMS_CNTV_CVAL_EL0: u16 = 0xdf02;
/// The keys of pointer authentication, which guests do not have here.
const KEYS: [u16; 10] =
    [0xc108, 0xc109, 0xc10a, 0xc10b, 0xc110, 0xc111, 0xc112, 0xc113, 0xc118, 0xc119];
/// All others that Apple names, but for `MPIDR_EL1`.
const NAMES: [u16; 37] = [
    0x8010,
    0x8012,
    0xc000,
    0xc020,
    0xc021,
    0xc028,
    0xc029,
    0xc030,
    0xc031,
    0xc038,
    0xc039,
    0xc03a,
    0xc080,
    0xc081,
    0xc082,
    0xc100,
    0xc101,
    0xc102,
    0xc288,
    0xc289,
    0xc290,
    0xc300,
    0xc3a0,
    0xc510,
    0xc518,
    0xc600,
    0xc681,
    0xc684,
    0xc708,
    0xd000,
    0xde82,
    0xde83,
    0xdf19,
    CNTV_CVAL_EL0,
    SP_EL0,
    SPSR_EL1,
    ELR_EL1,
];

const fn core(size: u64, offset: usize) -> u64 {
    KVM_REG_ARM64 | KVM_REG_ARM_CORE as u64 | size | (offset / 4) as u64
}

const fn general(offset: usize) -> u64 {
    core(KVM_REG_SIZE_U64, offset_of!(kvm_regs, regs) + offset)
}

const fn vector(index: u32) -> u64 {
    let offset = offset_of!(user_fpsimd_state, vregs) + 16 * index as usize;
    core(KVM_REG_SIZE_U128, offset_of!(kvm_regs, fp_regs) + offset)
}

/// KVM's number of a general register.
fn register(name: u32) -> Answer<u64> {
    let floating = |offset| core(KVM_REG_SIZE_U32, offset_of!(kvm_regs, fp_regs) + offset);
    Ok(match name {
        0..31 => general(offset_of!(user_pt_regs, regs) + 8 * name as usize),
        PC => general(offset_of!(user_pt_regs, pc)),
        CPSR => general(offset_of!(user_pt_regs, pstate)),
        FPCR => floating(offset_of!(user_fpsimd_state, fpcr)),
        FPSR => floating(offset_of!(user_fpsimd_state, fpsr)),
        _ => return Err(HV_BAD_ARGUMENT),
    })
}

/// KVM's number of a system register; `None` of one that it does not have.
fn system(name: u16) -> Answer<Option<u64>> {
    // DBGBVR, DBGBCR, DBGWVR, DBGWCR, sixteen of each.
    let debug = name & !0x7f == 0x8000 && name & 7 >= 4;
    let number = match name {
        SP_EL0 => general(offset_of!(user_pt_regs, sp)),
        SP_EL1 => core(KVM_REG_SIZE_U64, offset_of!(kvm_regs, sp_el1)),
        ELR_EL1 => core(KVM_REG_SIZE_U64, offset_of!(kvm_regs, elr_el1)),
        SPSR_EL1 => core(KVM_REG_SIZE_U64, offset_of!(kvm_regs, spsr)),
        CNTV_CVAL_EL0 => sysreg(KVMS_CNTV_CVAL_EL0),
        name if KEYS.contains(&name) => return Ok(None),
        name if debug || NAMES.contains(&name) => sysreg(name),
        _ => return Err(HV_BAD_ARGUMENT),
    };
    Ok(Some(number))
}

const fn sysreg(name: u16) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | name as u64
}

fn read(vcpu: &VcpuFd, number: u64) -> Answer<u128> {
    let mut bytes = [0; 16];
    vcpu.get_one_reg(number, &mut bytes).map_err(failed)?;
    Ok(u128::from_le_bytes(bytes))
}

fn write(vcpu: &VcpuFd, number: u64, value: u128) -> Answer<()> {
    vcpu.set_one_reg(number, &value.to_le_bytes()).map(drop).map_err(failed)
}

pub(crate) fn get(vcpu: &VcpuFd, name: u32) -> Answer<u64> {
    Ok(read(vcpu, register(name)?)? as u64)
}

pub(crate) fn set(vcpu: &VcpuFd, name: u32, value: u64) -> Answer<()> {
    write(vcpu, register(name)?, value.into())
}

pub(crate) fn program_counter(vcpu: &VcpuFd) -> Answer<u64> {
    get(vcpu, PC)
}

pub(crate) fn set_program_counter(vcpu: &VcpuFd, value: u64) -> Answer<()> {
    set(vcpu, PC, value)
}

pub(crate) fn get_vector(vcpu: &VcpuFd, index: u32) -> Answer<u128> {
    if index < 32 { read(vcpu, vector(index)) } else { Err(HV_BAD_ARGUMENT) }
}

pub(crate) fn set_vector(vcpu: &VcpuFd, index: u32, value: u128) -> Answer<()> {
    if index < 32 { write(vcpu, vector(index), value) } else { Err(HV_BAD_ARGUMENT) }
}

pub(crate) fn get_system(vcpu: &VcpuFd, name: u16) -> Answer<u64> {
    system(name)?.map_or(Ok(0), |number| Ok(read(vcpu, number)? as u64))
}

pub(crate) fn set_system(vcpu: &VcpuFd, name: u16, value: u64) -> Answer<()> {
    match system(name)? {
        Some(number) => write(vcpu, number, value.into()),
        None if value == 0 => Ok(()),
        None => Err(HV_BAD_ARGUMENT),
    }
}

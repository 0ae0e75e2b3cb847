//! The whole state of a vCPU: what it begins with, saved, and set.

use cabana_hv::HvError;
use cabana_hv::arm64::{BootState, EL1H_MASKED, Regs, Simd, SystemRegister};

use crate::processor::{
    CNTV_CTL_EL0, CNTV_CVAL_EL0, CPSR, ELR_EL1, FPCR, FPSR, ID_AA64DFR0_EL1, ID_AA64MMFR0_EL1,
    ID_AA64PFR0_EL1, ID_AA64PFR1_EL1, MPIDR_EL1, PC, Processor, SCTLR_EL1, SP_EL0, SP_EL1,
    SPSR_EL1,
};
use crate::psci;

/// `SCTLR_EL1` with MMU and caches off: bits that are always one (Arm DDI 0487 D19.2.118).
const SCTLR_OFF: u64 = 0x30d0_0800;
/// `MPIDR_EL1`: a bit that is always one.
const MPIDR_ONE: u64 = 1 << 31;

/// Kernel's and user's registers, the timer's last, its control behind its deadline. What says what the processor
/// is does not change, and is not here; what [`Regs`] has neither.
const SYSTEM: [u16; 33] = [
    0x8010,
    0x8012, // MDCCINT_EL1, MDSCR_EL1
    SCTLR_EL1,
    0xc082, // CPACR_EL1
    0xc100,
    0xc101,
    0xc102, // TTBR0_EL1, TTBR1_EL1, TCR_EL1
    0xc108,
    0xc109,
    0xc10a,
    0xc10b, // The keys of pointer authentication: A and B for instructions,
    0xc110,
    0xc111,
    0xc112,
    0xc113, // for data,
    0xc118,
    0xc119, // generic.
    0xc288,
    0xc289,
    0xc290,
    0xc300,
    0xc3a0, // AFSR0_EL1, AFSR1_EL1, ESR_EL1, FAR_EL1, PAR_EL1
    0xc510,
    0xc518,
    0xc600, // MAIR_EL1, AMAIR_EL1, VBAR_EL1
    0xc681,
    0xc684, // CONTEXTIDR_EL1, TPIDR_EL1
    0xc708,
    0xd000, // CNTKCTL_EL1, CSSELR_EL1
    0xde82,
    0xde83, // TPIDR_EL0, TPIDRRO_EL0
    CNTV_CVAL_EL0,
    CNTV_CTL_EL0,
];
/// Breakpoints and watchpoints: `DBGBVR0_EL1`, and each register's fifteen followers 8 behind.
const DEBUG: [u16; 4] = [0x8004, 0x8005, 0x8006, 0x8007];
const DEBUG_EACH: u16 = 16;
/// The interrupt controller's interface: `ICC_SRE_EL1` first, then `CTLR`, `IGRPEN0`, `IGRPEN1`, `PMR`, `BPR0`, `BPR1`,
/// `AP0R0`, `AP1R0`. They belong to a vCPU here, whose thread alone may ask for them.
const INTERFACE: [u16; 9] =
    [0xc665, 0xc664, 0xc666, 0xc667, 0xc230, 0xc643, 0xc663, 0xc644, 0xc648];

/// A register by its name, and whose it is.
fn registers() -> impl Iterator<Item = (u16, bool)> {
    let debug = DEBUG.into_iter().flat_map(|first| (0..DEBUG_EACH).map(move |at| first + 8 * at));
    let system = debug.chain(SYSTEM).map(|name| (name, false));
    system.chain(INTERFACE.into_iter().map(|name| (name, true)))
}

/// What a new vCPU is from birth: its affinity, and a processor without SVE and SME (whose registers no state here has),
/// without counters and traces of its activity (which the framework does not carry out), with the interrupt
/// controller's interface and addresses of as many bits as the VM has.
pub(crate) fn begin(vcpu: &Processor, index: u32, address_bits: u32) -> Result<(), HvError> {
    // Fields of the registers below (Arm DDI 0487 D24.2).
    const SVE: u64 = 0xf << 32;
    const ACTIVITY_MONITORS: u64 = 0xf << 44;
    const SME: u64 = 0xf << 24;
    const TRACE: u64 = 0xf << 4 | 0xff << 40;
    const COUNTERS: u64 = 0xf << 8;
    const PROFILES: u64 = 0xf << 32 | 0xf << 52;
    const GIC: u64 = 0xf << 24;
    vcpu.set_system(MPIDR_EL1, MPIDR_ONE | psci::affinity(index))?;
    let change = |register, change: &dyn Fn(u64) -> u64| {
        let before = vcpu.get_system(register)?;
        let after = change(before);
        if after == before { Ok(()) } else { vcpu.set_system(register, after) }
    };
    let with_gic = |value: u64| if value & GIC == 0 { value | 1 << 24 } else { value };
    change(ID_AA64PFR0_EL1, &|value| with_gic(value & !(SVE | ACTIVITY_MONITORS)))?;
    change(ID_AA64PFR1_EL1, &|value| value & !SME)?;
    change(ID_AA64DFR0_EL1, &|value| value & !(TRACE | COUNTERS | PROFILES))?;
    change(ID_AA64MMFR0_EL1, &|value| value & !0xf | (value & 0xf).min(range(address_bits)))
}

/// `ID_AA64MMFR0_EL1.PARange` of as many bits, or of fewer.
fn range(bits: u32) -> u64 {
    const BITS: [u32; 6] = [32, 36, 40, 42, 44, 48];
    BITS.iter().rposition(|&known| known <= bits).unwrap_or(0) as u64
}

/// Sets what a boot needs.
pub(crate) fn set_boot(vcpu: &Processor, boot: &BootState) -> Result<(), HvError> {
    vcpu.set_system(SCTLR_EL1, SCTLR_OFF)?;
    vcpu.set(CPSR, EL1H_MASKED)?;
    vcpu.set(0, boot.x0)?;
    vcpu.set(PC, boot.pc)
}

pub(crate) fn regs(vcpu: &Processor) -> Result<Regs, HvError> {
    let mut regs = Regs {
        sp_el0: vcpu.get_system(SP_EL0)?,
        sp_el1: vcpu.get_system(SP_EL1)?,
        pc: vcpu.get(PC)?,
        pstate: vcpu.get(CPSR)?,
        elr_el1: vcpu.get_system(ELR_EL1)?,
        spsr_el1: vcpu.get_system(SPSR_EL1)?,
        ..Regs::default()
    };
    for (register, value) in (0..).zip(&mut regs.x) {
        *value = vcpu.get(register)?;
    }
    Ok(regs)
}

pub(crate) fn set_regs(vcpu: &Processor, regs: &Regs) -> Result<(), HvError> {
    for (register, value) in (0..).zip(regs.x) {
        vcpu.set(register, value)?;
    }
    vcpu.set(PC, regs.pc)?;
    vcpu.set(CPSR, regs.pstate)?;
    vcpu.set_system(SP_EL0, regs.sp_el0)?;
    vcpu.set_system(SP_EL1, regs.sp_el1)?;
    vcpu.set_system(ELR_EL1, regs.elr_el1)?;
    vcpu.set_system(SPSR_EL1, regs.spsr_el1)
}

pub(crate) fn simd(vcpu: &Processor) -> Result<Simd, HvError> {
    let (fpsr, fpcr) = (vcpu.get(FPSR)? as u32, vcpu.get(FPCR)? as u32);
    let mut simd = Simd { fpsr, fpcr, ..Simd::default() };
    for (register, value) in (0..).zip(&mut simd.v) {
        *value = vcpu.get_vector(register)?;
    }
    Ok(simd)
}

pub(crate) fn set_simd(vcpu: &Processor, simd: &Simd) -> Result<(), HvError> {
    for (register, value) in (0..).zip(simd.v) {
        vcpu.set_vector(register, value)?;
    }
    vcpu.set(FPSR, simd.fpsr.into())?;
    vcpu.set(FPCR, simd.fpcr.into())
}

pub(crate) fn system(vcpu: &Processor) -> Result<Vec<(SystemRegister, u64)>, HvError> {
    let value = |name, interface| {
        if interface { vcpu.get_interface(name) } else { vcpu.get_system(name) }
    };
    registers()
        .map(|(name, interface)| Ok((SystemRegister(name), value(name, interface)?)))
        .collect()
}

/// Are these the registers that a state has here?
pub(crate) fn fits(system: &[(SystemRegister, u64)]) -> bool {
    registers().map(|(name, _)| name).eq(system.iter().map(|(name, _)| name.0))
}

/// Sets what [`fits`].
pub(crate) fn set_system(
    vcpu: &Processor,
    system: &[(SystemRegister, u64)],
) -> Result<(), HvError> {
    for ((name, interface), &(_, value)) in registers().zip(system) {
        if !interface {
            vcpu.set_system(name, value)?;
        } else if vcpu.get_interface(name)? != value {
            // Some have parts that can only be what they are.
            vcpu.set_interface(name, value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_names_each_register_once() {
        let mut names: Vec<u16> = registers().map(|(name, _)| name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), names.contains(&SP_EL0)), (count, false));
        assert!(names.contains(&(0x8007 + 8 * 15)));
        assert_eq!(SystemRegister::new(2, 0, 0, 15, 7).0, 0x8007 + 8 * 15);
        assert_eq!(SystemRegister::new(3, 3, 14, 3, 1).0, CNTV_CTL_EL0);
    }

    #[test]
    fn addresses_have_no_more_bits_than_the_vm() {
        assert_eq!([31, 36, 39, 40, 47, 64].map(range), [0, 1, 1, 2, 4, 5]);
    }
}

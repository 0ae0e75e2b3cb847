//! The framework's vCPU: owned, of one thread, with checked calls.

use std::ptr;
use std::sync::Arc;

use cabana_hv::HvError;

use crate::functions::{Exit, Functions, Vector, check};

/// `hv_reg_t`: X0 to X30 are themselves.
pub(crate) const PC: u32 = 31;
pub(crate) const FPCR: u32 = 32;
pub(crate) const FPSR: u32 = 33;
pub(crate) const CPSR: u32 = 34;

/// `hv_sys_reg_t`: the registers' own encodings.
pub(crate) const MPIDR_EL1: u16 = 0xc005;
pub(crate) const ID_AA64PFR0_EL1: u16 = 0xc020;
pub(crate) const ID_AA64PFR1_EL1: u16 = 0xc021;
pub(crate) const ID_AA64DFR0_EL1: u16 = 0xc028;
pub(crate) const ID_AA64MMFR0_EL1: u16 = 0xc038;
pub(crate) const SCTLR_EL1: u16 = 0xc080;
pub(crate) const SPSR_EL1: u16 = 0xc200;
pub(crate) const ELR_EL1: u16 = 0xc201;
pub(crate) const SP_EL0: u16 = 0xc208;
pub(crate) const ESR_EL1: u16 = 0xc290;
pub(crate) const VBAR_EL1: u16 = 0xc600;
pub(crate) const CNTV_CTL_EL0: u16 = 0xdf19;
pub(crate) const CNTV_CVAL_EL0: u16 = 0xdf1a;
pub(crate) const SP_EL1: u16 = 0xe208;

/// A vCPU of the thread that has made it, destroyed on drop.
#[derive(Debug)]
pub(crate) struct Processor {
    functions: Arc<Functions>,
    id: u64,
    /// Not of another thread, as the pointer says.
    exit: *const Exit,
}

impl Processor {
    pub(crate) fn new(functions: Arc<Functions>) -> Result<Self, HvError> {
        let (mut id, mut exit) = (0, ptr::null());
        // SAFETY: both are written; no configuration is the vendor's own.
        let code =
            unsafe { (functions.hv_vcpu_create)(&raw mut id, &raw mut exit, ptr::null_mut()) };
        check("hv_vcpu_create", code)?;
        Ok(Self { functions, id, exit })
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Runs until the next exit.
    pub(crate) fn run(&self) -> Result<Exit, HvError> {
        // SAFETY: the vCPU is this thread's, as it is in all calls here.
        check("hv_vcpu_run", unsafe { (self.functions.hv_vcpu_run)(self.id) })?;
        // SAFETY: the framework's structure, there for as long as the vCPU is, and written by runs alone.
        Ok(unsafe { self.exit.read() })
    }

    pub(crate) fn get(&self, register: u32) -> Result<u64, HvError> {
        let mut value = 0;
        // SAFETY: the value is written.
        let code = unsafe { (self.functions.hv_vcpu_get_reg)(self.id, register, &raw mut value) };
        check("hv_vcpu_get_reg", code)?;
        Ok(value)
    }

    pub(crate) fn set(&self, register: u32, value: u64) -> Result<(), HvError> {
        // SAFETY: plain values.
        let code = unsafe { (self.functions.hv_vcpu_set_reg)(self.id, register, value) };
        check("hv_vcpu_set_reg", code)
    }

    /// X0 to X30, or the register that is always zero.
    pub(crate) fn get_x(&self, register: u8) -> Result<u64, HvError> {
        if register < 31 { self.get(register.into()) } else { Ok(0) }
    }

    pub(crate) fn set_x(&self, register: u8, value: u64) -> Result<(), HvError> {
        if register < 31 { self.set(register.into(), value) } else { Ok(()) }
    }

    /// Past the instruction that the vCPU stands at.
    pub(crate) fn step(&self) -> Result<(), HvError> {
        self.set(PC, self.get(PC)?.wrapping_add(4))
    }

    pub(crate) fn get_vector(&self, register: u32) -> Result<u128, HvError> {
        let mut value = 0u128;
        let place = (&raw mut value).cast::<Vector>();
        // SAFETY: a vector is 16 bytes, as the value is, which is written.
        let code = unsafe { (self.functions.hv_vcpu_get_simd_fp_reg)(self.id, register, place) };
        check("hv_vcpu_get_simd_fp_reg", code)?;
        Ok(value)
    }

    pub(crate) fn set_vector(&self, register: u32, value: u128) -> Result<(), HvError> {
        // SAFETY: a vector is any 16 bytes.
        let code = unsafe {
            let vector = (&raw const value).cast::<Vector>().read();
            (self.functions.hv_vcpu_set_simd_fp_reg)(self.id, register, vector)
        };
        check("hv_vcpu_set_simd_fp_reg", code)
    }

    pub(crate) fn get_system(&self, register: u16) -> Result<u64, HvError> {
        let mut value = 0;
        // SAFETY: the value is written.
        let code =
            unsafe { (self.functions.hv_vcpu_get_sys_reg)(self.id, register, &raw mut value) };
        check("hv_vcpu_get_sys_reg", code)?;
        Ok(value)
    }

    pub(crate) fn set_system(&self, register: u16, value: u64) -> Result<(), HvError> {
        // SAFETY: plain values.
        let code = unsafe { (self.functions.hv_vcpu_set_sys_reg)(self.id, register, value) };
        check("hv_vcpu_set_sys_reg", code)
    }

    /// A register of the interrupt controller's interface.
    pub(crate) fn get_interface(&self, register: u16) -> Result<u64, HvError> {
        let mut value = 0;
        // SAFETY: the value is written.
        let code =
            unsafe { (self.functions.hv_gic_get_icc_reg)(self.id, register, &raw mut value) };
        check("hv_gic_get_icc_reg", code)?;
        Ok(value)
    }

    pub(crate) fn set_interface(&self, register: u16, value: u64) -> Result<(), HvError> {
        // SAFETY: plain values.
        let code = unsafe { (self.functions.hv_gic_set_icc_reg)(self.id, register, value) };
        check("hv_gic_set_icc_reg", code)
    }

    /// What the virtual counter is behind the host's.
    pub(crate) fn set_timer_offset(&self, offset: u64) -> Result<(), HvError> {
        // SAFETY: plain values.
        let code = unsafe { (self.functions.hv_vcpu_set_vtimer_offset)(self.id, offset) };
        check("hv_vcpu_set_vtimer_offset", code)
    }

    /// Lets the virtual timer fire, after it has.
    pub(crate) fn unmask_timer(&self) -> Result<(), HvError> {
        // SAFETY: plain values.
        let code = unsafe { (self.functions.hv_vcpu_set_vtimer_mask)(self.id, false) };
        check("hv_vcpu_set_vtimer_mask", code)
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        // SAFETY: the pointer keeps this on its thread. There is nobody to tell of a failure.
        unsafe { (self.functions.hv_vcpu_destroy)(self.id) };
    }
}

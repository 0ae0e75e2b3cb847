//! The framework's vCPU: checked calls, registers in neutral words.

use std::sync::Arc;

use cabana_hv::HvError;
use cabana_hv::x86::{DescriptorTable, Regs, Segment};

use super::functions::{Framework, Functions};
use super::vmcs::{GENERAL, SegmentFields, UNUSABLE};
use crate::functions::check;

/// Room for its vector state: `XSAVE`'s area of any processor that Macs have.
pub(crate) const XSAVE: usize = 4096;
/// Where that area has XMM0, and its list of what it holds.
const XMM: usize = 160;
const HOLDS: usize = 512;

/// A vCPU of the framework, destroyed on drop. It belongs to the thread that made it.
#[derive(Debug)]
pub(crate) struct Cpu {
    framework: Arc<Framework>,
    pub(crate) id: u32,
}

impl Cpu {
    pub(crate) fn new(framework: Arc<Framework>) -> Result<Self, HvError> {
        let mut id = 0;
        // SAFETY: the number is written; there are no flags.
        let code = unsafe { (framework.functions.hv_vcpu_create)(&raw mut id, 0) };
        check("hv_vcpu_create", code)?;
        Ok(Self { framework, id })
    }

    fn functions(&self) -> &Functions {
        &self.framework.functions
    }

    /// Runs it until it exits, or until a time of `mach_absolute_time`.
    pub(crate) fn run(&self, until: u64) -> Result<(), HvError> {
        // SAFETY: this thread's own vCPU.
        check("hv_vcpu_run_until", unsafe { (self.functions().hv_vcpu_run_until)(self.id, until) })
    }

    pub(crate) fn get(&self, register: u32) -> Result<u64, HvError> {
        let mut value = 0;
        let read = self.functions().hv_vcpu_read_register;
        // SAFETY: the value is written.
        check("hv_vcpu_read_register", unsafe { read(self.id, register, &raw mut value) })?;
        Ok(value)
    }

    pub(crate) fn set(&self, register: u32, value: u64) -> Result<(), HvError> {
        let write = self.functions().hv_vcpu_write_register;
        // SAFETY: plain values.
        check("hv_vcpu_write_register", unsafe { write(self.id, register, value) })
    }

    pub(crate) fn field(&self, field: u32) -> Result<u64, HvError> {
        let mut value = 0;
        let read = self.functions().hv_vmx_vcpu_read_vmcs;
        // SAFETY: the value is written.
        check("hv_vmx_vcpu_read_vmcs", unsafe { read(self.id, field, &raw mut value) })?;
        Ok(value)
    }

    pub(crate) fn set_field(&self, field: u32, value: u64) -> Result<(), HvError> {
        let write = self.functions().hv_vmx_vcpu_write_vmcs;
        // SAFETY: plain values.
        check("hv_vmx_vcpu_write_vmcs", unsafe { write(self.id, field, value) })
    }

    /// Lets the guest use a model-specific register without exits.
    pub(crate) fn enable_msr(&self, msr: u32) -> Result<(), HvError> {
        let enable = self.functions().hv_vcpu_enable_native_msr;
        // SAFETY: plain values.
        check("hv_vcpu_enable_native_msr", unsafe { enable(self.id, msr, true) })
    }

    /// One of the registers of [`Cpu::enable_msr`].
    pub(crate) fn msr(&self, msr: u32) -> Result<u64, HvError> {
        let mut value = 0;
        let read = self.functions().hv_vcpu_read_msr;
        // SAFETY: the value is written.
        check("hv_vcpu_read_msr", unsafe { read(self.id, msr, &raw mut value) })?;
        Ok(value)
    }

    pub(crate) fn set_msr(&self, msr: u32, value: u64) -> Result<(), HvError> {
        let write = self.functions().hv_vcpu_write_msr;
        // SAFETY: plain values.
        check("hv_vcpu_write_msr", unsafe { write(self.id, msr, value) })
    }

    /// Lets the guest's time-stamp counter be the framework's clock and as much more.
    pub(crate) fn set_tsc_offset(&self, offset: i64) -> Result<(), HvError> {
        let set = self.functions().hv_vcpu_set_tsc_relative;
        // SAFETY: plain values.
        check("hv_vcpu_set_tsc_relative", unsafe { set(self.id, offset) })
    }

    pub(crate) fn vectors(&self) -> Result<Vec<u8>, HvError> {
        let mut area = vec![0u8; XSAVE];
        let read = self.functions().hv_vcpu_read_fpstate;
        // SAFETY: the buffer has the length that is said.
        let code = unsafe { read(self.id, area.as_mut_ptr().cast(), area.len()) };
        check("hv_vcpu_read_fpstate", code)?;
        Ok(area)
    }

    pub(crate) fn set_vectors(&self, area: &[u8]) -> Result<(), HvError> {
        let mut area = area.to_vec();
        let write = self.functions().hv_vcpu_write_fpstate;
        // SAFETY: the buffer has the length that is said.
        let code = unsafe { write(self.id, area.as_mut_ptr().cast(), area.len()) };
        check("hv_vcpu_write_fpstate", code)
    }

    pub(crate) fn xmm(&self, index: usize) -> Result<u128, HvError> {
        let area = self.vectors()?;
        let at = XMM + 16 * (index & 0xf);
        let bytes = area[at..at + 16].iter().rev();
        Ok(bytes.fold(0, |all, &byte| all << 8 | u128::from(byte)))
    }

    pub(crate) fn set_xmm(&self, index: usize, value: u128) -> Result<(), HvError> {
        let mut area = self.vectors()?;
        let at = XMM + 16 * (index & 0xf);
        area[at..at + 16].copy_from_slice(&value.to_le_bytes());
        // SSE's state is not the initial one any more.
        area[HOLDS] |= 2;
        self.set_vectors(&area)
    }

    pub(crate) fn regs(&self) -> Result<Regs, HvError> {
        let mut values = [0; GENERAL.len()];
        for (value, register) in values.iter_mut().zip(GENERAL) {
            *value = self.get(register)?;
        }
        Ok(Regs::of(values))
    }

    /// Sets those that differ from `before`.
    pub(crate) fn set_regs(&self, regs: &Regs, before: Option<&Regs>) -> Result<(), HvError> {
        let before = before.map(Regs::values);
        for (at, (register, value)) in GENERAL.into_iter().zip(regs.values()).enumerate() {
            if before.is_none_or(|before| before[at] != value) {
                self.set(register, value)?;
            }
        }
        Ok(())
    }

    pub(crate) fn segment(&self, fields: SegmentFields) -> Result<Segment, HvError> {
        let rights = self.field(fields.rights)?;
        let present = if rights & UNUSABLE == 0 { !0 } else { !(1 << 7) };
        Ok(Segment {
            selector: self.field(fields.selector)? as u16,
            base: self.field(fields.base)?,
            limit: self.field(fields.limit)? as u32,
            attributes: rights as u16 & 0xf0ff & present,
        })
    }

    pub(crate) fn set_segment(
        &self,
        fields: SegmentFields,
        segment: &Segment,
    ) -> Result<(), HvError> {
        let rights = u64::from(segment.attributes & 0xf0ff);
        let usable = rights & 1 << 7 != 0;
        self.set_field(fields.selector, segment.selector.into())?;
        self.set_field(fields.base, segment.base)?;
        self.set_field(fields.limit, segment.limit.into())?;
        self.set_field(fields.rights, if usable { rights } else { rights | UNUSABLE })
    }

    pub(crate) fn table(&self, base: u32, limit: u32) -> Result<DescriptorTable, HvError> {
        Ok(DescriptorTable { base: self.field(base)?, limit: self.field(limit)? as u16 })
    }

    pub(crate) fn set_table(
        &self,
        base: u32,
        limit: u32,
        table: DescriptorTable,
    ) -> Result<(), HvError> {
        self.set_field(base, table.base)?;
        self.set_field(limit, table.limit.into())
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        // SAFETY: this thread's own vCPU, which does not run. There is nobody to tell of a failure.
        unsafe { (self.functions().hv_vcpu_destroy)(self.id) };
    }
}

//! Partitions and virtual processors: owned handles with checked calls.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cabana_hv::HvError;
use cabana_hv::x86::CpuidLeaf;
use cabana_hv::x86::VcpuSetup;
use windows_sys::Win32::System::Hypervisor::{
    WHV_CPUID_OUTPUT, WHV_PARTITION_HANDLE, WHV_PARTITION_PROPERTY_CODE, WHV_REGISTER_NAME,
    WHV_RUN_VP_EXIT_CONTEXT, WHV_X64_CPUID_RESULT2, WHvPartitionPropertyCodeCpuidResultList2,
    WHvPartitionPropertyCodeExtendedVmExits, WHvPartitionPropertyCodeLocalApicEmulationMode,
    WHvPartitionPropertyCodeProcessorCount, WHvPartitionPropertyCodeX64MsrExitBitmap,
    WHvX64CpuidResult2FlagSubleafSpecific, WHvX64CpuidResult2FlagVpSpecific,
    WHvX64LocalApicEmulationModeX2Apic,
};

use crate::System;
use crate::functions::{Functions, check};
use crate::registers::Value;

/// `WHV_EXTENDED_VM_EXITS.X64MsrExit`.
const MSR_EXIT: u64 = 1 << 1;
/// `WHV_X64_MSR_EXIT_BITMAP.UnhandledMsrs`.
const UNHANDLED_MSRS: u64 = 1;

/// A partition, deleted on drop.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) system: Arc<System>,
    pub(crate) handle: WHV_PARTITION_HANDLE,
}

impl Partition {
    pub(crate) fn new(system: Arc<System>) -> Result<Self, HvError> {
        let mut handle = 0;
        // SAFETY: the handle is written.
        let result = unsafe { (system.functions.create_partition)(&raw mut handle) };
        check("WHvCreatePartition", result)?;
        Ok(Self { system, handle })
    }

    pub(crate) fn functions(&self) -> &Functions {
        &self.system.functions
    }

    /// Sets all properties, and sets the partition up: after that they stay. `leaves` are what its processors
    /// answer to CPUID.
    pub(crate) fn set_up(
        &self,
        count: u32,
        leaves: &[WHV_X64_CPUID_RESULT2],
    ) -> Result<(), HvError> {
        self.set(WHvPartitionPropertyCodeProcessorCount, &count)?;
        let apic = WHvX64LocalApicEmulationModeX2Apic;
        self.set(WHvPartitionPropertyCodeLocalApicEmulationMode, &apic)?;
        self.set(WHvPartitionPropertyCodeExtendedVmExits, &MSR_EXIT)?;
        self.set(WHvPartitionPropertyCodeX64MsrExitBitmap, &UNHANDLED_MSRS)?;
        if !leaves.is_empty() {
            let (buffer, len) = (leaves.as_ptr().cast(), size_of_val(leaves));
            self.set_raw(WHvPartitionPropertyCodeCpuidResultList2, buffer, len)?;
        }
        // SAFETY: the handle is a partition's.
        check("WHvSetupPartition", unsafe { (self.functions().setup_partition)(self.handle) })
    }

    fn set<T>(&self, code: WHV_PARTITION_PROPERTY_CODE, value: &T) -> Result<(), HvError> {
        self.set_raw(code, ptr::from_ref(value).cast(), size_of::<T>())
    }

    fn set_raw(
        &self,
        code: WHV_PARTITION_PROPERTY_CODE,
        buffer: *const c_void,
        len: usize,
    ) -> Result<(), HvError> {
        // SAFETY: the callers pass a buffer of that length.
        let result = unsafe {
            (self.functions().set_partition_property)(self.handle, code, buffer, len as u32)
        };
        check("WHvSetPartitionProperty", result)
    }

    /// Makes virtual processor `index`.
    pub(crate) fn processor(self: &Arc<Self>, index: u32) -> Result<Processor, HvError> {
        // SAFETY: the handle is a partition's; there are no flags.
        let result = unsafe { (self.functions().create_virtual_processor)(self.handle, index, 0) };
        check("WHvCreateVirtualProcessor", result)?;
        Ok(Processor { partition: Arc::clone(self), index })
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        // SAFETY: nobody has the handle any more.
        unsafe { (self.functions().delete_partition)(self.handle) };
    }
}

/// A virtual processor, deleted on drop.
#[derive(Debug)]
pub(crate) struct Processor {
    pub(crate) partition: Arc<Partition>,
    pub(crate) index: u32,
}

impl Processor {
    /// What it answers to CPUID.
    pub(crate) fn cpuid(&self, function: u32, index: u32) -> Result<CpuidLeaf, HvError> {
        let mut output = WHV_CPUID_OUTPUT::default();
        let call = self.functions().get_virtual_processor_cpuid_output;
        // SAFETY: the handle is a partition's; the answer is written.
        let result =
            unsafe { call(self.partition.handle, self.index, function, index, &raw mut output) };
        check("WHvGetVirtualProcessorCpuidOutput", result)?;
        let WHV_CPUID_OUTPUT { Eax: eax, Ebx: ebx, Ecx: ecx, Edx: edx } = output;
        let index = (crate::subleaves(function) > 1).then_some(index);
        Ok(CpuidLeaf { function, index, eax, ebx, ecx, edx })
    }

    pub(crate) fn functions(&self) -> &Functions {
        self.partition.functions()
    }

    /// Runs it until it exits.
    pub(crate) fn run(&self) -> Result<WHV_RUN_VP_EXIT_CONTEXT, HvError> {
        // SAFETY: all-zero is a valid context.
        let mut context: WHV_RUN_VP_EXIT_CONTEXT = unsafe { std::mem::zeroed() };
        let len = size_of::<WHV_RUN_VP_EXIT_CONTEXT>() as u32;
        let run = self.functions().run_virtual_processor;
        // SAFETY: the buffer has the length that is said.
        let result =
            unsafe { run(self.partition.handle, self.index, (&raw mut context).cast(), len) };
        check("WHvRunVirtualProcessor", result)?;
        Ok(context)
    }

    /// The registers of these names.
    pub(crate) fn get<const N: usize>(
        &self,
        names: [WHV_REGISTER_NAME; N],
    ) -> Result<[Value; N], HvError> {
        let mut values = [Value::default(); N];
        let get = self.functions().get_virtual_processor_registers;
        let buffer = values.as_mut_ptr().cast();
        // SAFETY: as many values are written as there are names, each as large and as aligned as the vendor
        // declares it.
        let result =
            unsafe { get(self.partition.handle, self.index, names.as_ptr(), N as u32, buffer) };
        check("WHvGetVirtualProcessorRegisters", result)?;
        Ok(values)
    }

    /// Sets registers by their names.
    pub(crate) fn set(&self, registers: &[(WHV_REGISTER_NAME, Value)]) -> Result<(), HvError> {
        let (names, values): (Vec<_>, Vec<Value>) = registers.iter().copied().unzip();
        let set = self.functions().set_virtual_processor_registers;
        let buffer = values.as_ptr().cast();
        // SAFETY: there are as many values as names, each as large and as aligned as the vendor declares it.
        let result = unsafe {
            set(self.partition.handle, self.index, names.as_ptr(), names.len() as u32, buffer)
        };
        check("WHvSetVirtualProcessorRegisters", result)
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        let delete = self.functions().delete_virtual_processor;
        // SAFETY: nobody runs the processor any more.
        unsafe { delete(self.partition.handle, self.index) };
    }
}

/// The answers of all processors, so that each answers what its set-up says, and zeroes where the hypervisor
/// by itself (`supported`) would answer something that the set-up leaves out.
pub(crate) fn cpuid_results(
    vcpus: &[VcpuSetup],
    supported: &[CpuidLeaf],
) -> Vec<WHV_X64_CPUID_RESULT2> {
    let mut results = Vec::new();
    for (vp, vcpu) in (0..).zip(vcpus) {
        let same = |a: &CpuidLeaf, b: &CpuidLeaf| {
            (a.function, a.index.unwrap_or(0)) == (b.function, b.index.unwrap_or(0))
        };
        let hidden = supported.iter().filter(|leaf| !vcpu.cpuid.iter().any(|own| same(own, leaf)));
        let hidden = hidden.map(|leaf| CpuidLeaf {
            function: leaf.function,
            index: leaf.index,
            ..CpuidLeaf::default()
        });
        results.extend(vcpu.cpuid.iter().copied().chain(hidden).map(|leaf| cpuid_result(vp, leaf)));
    }
    results
}

fn cpuid_result(vp: u32, leaf: CpuidLeaf) -> WHV_X64_CPUID_RESULT2 {
    let by_index = leaf.index.map_or(0, |_| WHvX64CpuidResult2FlagSubleafSpecific);
    WHV_X64_CPUID_RESULT2 {
        Function: leaf.function,
        Index: leaf.index.unwrap_or(0),
        VpIndex: vp,
        Flags: WHvX64CpuidResult2FlagVpSpecific | by_index,
        Output: WHV_CPUID_OUTPUT { Eax: leaf.eax, Ebx: leaf.ebx, Ecx: leaf.ecx, Edx: leaf.edx },
        // Nothing of the hypervisor's own answer stays.
        Mask: WHV_CPUID_OUTPUT { Eax: !0, Ebx: !0, Ecx: !0, Edx: !0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_shall_not_see_is_answered_with_zeroes() {
        let leaf = |function| CpuidLeaf { function, eax: 7, ..CpuidLeaf::default() };
        let vcpu = VcpuSetup { cpuid: vec![leaf(1)], msrs: Vec::new() };
        let results = cpuid_results(&[vcpu.clone(), vcpu], &[leaf(1), leaf(0x8000_000a)]);
        let seen: Vec<_> = results.iter().map(|r| (r.VpIndex, r.Function, r.Output.Eax)).collect();
        assert_eq!(seen, [(0, 1, 7), (0, 0x8000_000a, 0), (1, 1, 7), (1, 0x8000_000a, 0)]);
    }
}

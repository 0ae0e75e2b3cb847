//! The Windows Hypervisor Platform (learn.microsoft.com/virtualization/api/hypervisor-platform), x86-64.
//!
//! Local APICs are the hypervisor's, the I/O APIC is ours. Device memory is what is not mapped: an access to it
//! hands over the instruction, which `cabana-hv-x86` carries out. Needed are Windows 11 or Server 2022: each
//! vCPU gets its own CPUID answers (`WHvPartitionPropertyCodeCpuidResultList2`), and the hypervisor is asked
//! for its own (`WHvGetVirtualProcessorCpuidOutput`).
//!
//! [`Functions`] is the part of `WinHvPlatform.dll` that is used. On Windows it is loaded when it is first
//! needed, so that a program starts, and can say what is missing, where the feature is off. Everything else is
//! the same source on every operating system, and runs on Linux over other functions that keep the vendor's word
//! (`tests/shims/whp-on-kvm`).

#![cfg(target_arch = "x86_64")]
// The hypervisor is called through pointers to C functions, which fill and read unions.
#![allow(unsafe_code)]
#![allow(non_upper_case_globals, reason = "the vendor's constants are patterns")]

mod exits;
mod functions;
mod partition;
mod probe;
mod registers;
mod state;
mod surroundings;
mod vcpu;
mod vm;

use std::sync::{Arc, OnceLock};

use cabana_hv::x86::CpuidLeaf;
use cabana_hv::{HvError, Hypervisor, Probe, X86Vm};
use windows_sys::Win32::System::Hypervisor::{
    WHvCapabilityCodeInterruptClockFrequency, WHvCapabilityCodeProcessorClockFrequency,
};

pub use functions::Functions;
use partition::Partition;
use vm::WhpVm;

/// The Windows Hypervisor Platform of this host.
#[derive(Debug)]
pub struct Whp {
    load: fn() -> Result<Functions, HvError>,
    system: OnceLock<Arc<System>>,
}

impl Whp {
    /// The platform of this Windows. Nothing is loaded yet.
    #[cfg(windows)]
    pub fn new() -> Self {
        Self::over(Functions::load)
    }

    /// The platform behind other functions.
    pub fn over(load: fn() -> Result<Functions, HvError>) -> Self {
        Self { load, system: OnceLock::new() }
    }

    /// The functions, loaded, and what they said once.
    fn system(&self) -> Result<&Arc<System>, HvError> {
        if let Some(system) = self.system.get() {
            return Ok(system);
        }
        let system = Arc::new(System::new((self.load)()?)?);
        Ok(self.system.get_or_init(|| system))
    }
}

#[cfg(windows)]
impl Default for Whp {
    fn default() -> Self {
        Self::new()
    }
}

impl Hypervisor for Whp {
    fn name(&self) -> &'static str {
        "Windows Hypervisor Platform"
    }

    fn probe(&self) -> Probe {
        probe::probe(self)
    }

    fn create_x86_vm(&self) -> Result<Box<dyn X86Vm>, HvError> {
        Ok(Box::new(WhpVm::new(Arc::clone(self.system()?))?))
    }
}

/// What is the same for all partitions.
#[derive(Debug)]
struct System {
    functions: Functions,
    tsc_khz: u32,
    apic_khz: u32,
    cpuid: OnceLock<Vec<CpuidLeaf>>,
}

impl System {
    fn new(functions: Functions) -> Result<Self, HvError> {
        let khz = |hertz: u64| u32::try_from(hertz / 1000).unwrap_or(u32::MAX);
        let tsc_khz = khz(functions.capability(WHvCapabilityCodeProcessorClockFrequency)?);
        let apic_khz = khz(functions.capability(WHvCapabilityCodeInterruptClockFrequency)?);
        Ok(Self { functions, tsc_khz, apic_khz, cpuid: OnceLock::new() })
    }

    /// What the hypervisor shows a guest by itself: asked of a processor that never runs.
    fn supported_cpuid(self: &Arc<Self>) -> Result<&[CpuidLeaf], HvError> {
        if let Some(leaves) = self.cpuid.get() {
            return Ok(leaves);
        }
        let partition = Arc::new(Partition::new(Arc::clone(self))?);
        partition.set_up(1, &[])?;
        let processor = partition.processor(0)?;
        let mut leaves = Vec::new();
        for first in [0, 0x8000_0000] {
            let last = processor.cpuid(first, 0)?.eax.min(first + 0x40);
            for function in first..=last {
                for index in 0..subleaves(function) {
                    let leaf = processor.cpuid(function, index)?;
                    if index == 0 || [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx] != [0; 4] {
                        leaves.push(leaf);
                    }
                }
            }
        }
        Ok(self.cpuid.get_or_init(|| leaves))
    }
}

/// How many answers a function of CPUID may have, by ECX (Intel SDM 2A, AMD APM 3 appendix E).
fn subleaves(function: u32) -> u32 {
    match function {
        4 | 7 | 0xb | 0xf | 0x10 | 0x12 | 0x14 | 0x1f | 0x8000_001d => 8,
        0xd => 63,
        _ => 1,
    }
}

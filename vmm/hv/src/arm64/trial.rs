//! A payload that shows whether guests run, and how fast: what every backend's probe does.

use std::time::Duration;

use cabana_os::Mapping;

use super::{BootState, VcpuSetup};
use crate::trial::{rate, watched};
use crate::{Arm64Vm, HvError, MemorySlot, Probe, Verdict, VmExit};

/// Where the payload stands: the only RAM.
const CODE: u64 = 0x4000_0000;
/// 64 KiB are whole pages on every host.
const MEMORY: usize = 0x1_0000;
/// Nothing is mapped there; the payload reads it.
const ASK: u64 = 0x1000_0000;

/// Counts down from what a read of [`ASK`] says, again and again.
const PAYLOAD: [u32; 5] = [
    0xd2a2_0001, //    mov  x1, #0x10000000
    0xf940_0020, // 0: ldr  x0, [x1]
    0xf100_0400, // 1: subs x0, x0, #1
    0x54ff_ffe1, //    b.ne 1b
    0x17ff_fffd, //    b    0b
];

/// Runs the payload on a new VM's only vCPU. `time` is a clock of the calling thread; what is found besides
/// the verdict is put into `found`.
pub fn run(
    vm: &dyn Arm64Vm,
    time: impl Fn() -> Duration,
    found: &mut Probe,
) -> Result<Verdict, HvError> {
    let memory =
        Mapping::anonymous(MEMORY).map_err(|source| HvError::Call { call: "mmap", source })?;
    let code = PAYLOAD.map(u32::to_le_bytes);
    #[allow(unsafe_code, reason = "guest memory is written through a pointer")]
    // SAFETY: it fits into the mapping, which nobody else knows yet.
    unsafe {
        memory.as_ptr().copy_from_nonoverlapping(code.as_ptr().cast(), size_of_val(&code));
    }
    found.max_vcpus = Some(vm.max_vcpus());
    vm.set_vcpus(vec![VcpuSetup::default()])?;
    #[allow(unsafe_code, reason = "the payload's memory is mapped")]
    // SAFETY: `memory` is unmapped before it goes, and is only accessed through pointers.
    unsafe {
        vm.map(&MemorySlot {
            guest: CODE,
            host: memory.as_ptr(),
            len: memory.len(),
            read_only: false,
            track_dirty: false,
        })
    }?;
    let verdict = watched(vm.vcpu_seat(0)?, |vcpu| {
        vcpu.set_boot_state(&BootState { pc: CODE, x0: 0 })?;
        rate(vcpu, VmExit::MmioRead { addr: ASK, size: 8 }, time, found)
    });
    vm.unmap(CODE)?;
    Ok(verdict?.unwrap_or(Verdict::Works))
}

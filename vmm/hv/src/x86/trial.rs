//! A payload that shows whether guests run, and how fast: what every backend's probe does.

use std::time::Duration;

use cabana_os::Mapping;

use super::{BootState, Regs, Segment, SystemRegs, VcpuSetup, X86};
use crate::trial::{rate, too_slow, watched};
use crate::{HvError, MemorySlot, Probe, Vcpu, Verdict, VmEntry, VmExit, X86Vm};

const ASK: u16 = 0x10;
const DONE: u16 = 0x11;
const PAGE_TABLES: usize = 0x1000;
const CODE: usize = 0x4000;
const OPERAND: usize = 0x5000;
const MEMORY: usize = 0x6000;

/// Counts down from what port [`ASK`] says, again and again; at 0 tries the instruction that
/// emulators lack and says so on port [`DONE`].
#[rustfmt::skip]
const PAYLOAD: [u8; 24] = [
    0xe5, 0x10,                                                 // 0: in eax, ASK
    0x85, 0xc0,                                                 //    test eax, eax
    0x74, 0x06,                                                 //    jz 2
    0xff, 0xc8,                                                 // 1: dec eax
    0x75, 0xfc,                                                 //    jnz 1
    0xeb, 0xf4,                                                 //    jmp 0
    0xf0, 0x48, 0x0f, 0xc7, 0x0c, 0x25, 0x00, 0x50, 0x00, 0x00, // 2: lock cmpxchg16b [OPERAND]
    0xe6, 0x11,                                                 //    out DONE, al
];

/// Runs the payload on a new VM's only vCPU. `time` is a clock of the calling thread; what is found besides
/// the verdict is put into `found`.
pub fn run(
    vm: &dyn X86Vm,
    time: impl Fn() -> Duration,
    found: &mut Probe,
) -> Result<Verdict, HvError> {
    let memory = payload_memory()?;
    found.max_vcpus = Some(vm.max_vcpus());
    vm.set_vcpus(vec![VcpuSetup { cpuid: vm.supported_cpuid()?, ..VcpuSetup::default() }])?;
    #[allow(unsafe_code, reason = "the payload's memory is mapped")]
    // SAFETY: `memory` is unmapped before it goes, and is only accessed through pointers.
    unsafe {
        vm.map(&MemorySlot {
            guest: 0,
            host: memory.as_ptr(),
            len: memory.len(),
            read_only: false,
            track_dirty: false,
        })
    }?;
    let verdict = watched(vm.vcpu_seat(0)?, |vcpu| {
        vcpu.set_boot_state(&boot_state())?;
        measure(vcpu, &memory, time, found)
    });
    vm.unmap(0)?;
    verdict
}

fn measure(
    vcpu: &mut dyn Vcpu<X86>,
    memory: &Mapping,
    time: impl Fn() -> Duration,
    found: &mut Probe,
) -> Result<Verdict, HvError> {
    let ask = VmExit::PioRead { port: ASK, size: 4 };
    if let Some(verdict) = rate(vcpu, ask, time, found)? {
        return Ok(verdict);
    }
    let without = |why: &str| Verdict::Emulated {
        why: format!("guest instructions run in an emulator that has no cmpxchg16b: {why}"),
    };
    match vcpu.run(VmEntry::Data(0)) {
        Ok(VmExit::PioWrite { port: DONE, .. }) => {
            #[allow(unsafe_code, reason = "guest memory is read through a pointer")]
            // SAFETY: inside the mapping; the vCPU does not run.
            let low = unsafe { memory.as_ptr().add(OPERAND).read_volatile() };
            Ok(if low == 1 { Verdict::Works } else { without("it left memory as it was") })
        }
        Ok(VmExit::Kicked) => Ok(too_slow()),
        Ok(exit) => Ok(without(&format!("{exit:?}"))),
        Err(HvError::Guest(why)) => Ok(without(&why)),
        Err(error) => Err(error),
    }
}

/// Page tables that map the first 2 MiB as they are, and the payload.
fn payload_memory() -> Result<Mapping, HvError> {
    let memory =
        Mapping::anonymous(MEMORY).map_err(|source| HvError::Call { call: "mmap", source })?;
    let put = |at: usize, bytes: &[u8]| {
        #[allow(unsafe_code, reason = "guest memory is written through a pointer")]
        // SAFETY: every `at` here leaves room for its bytes in `MEMORY`, and nobody else knows the
        // mapping yet.
        unsafe {
            memory.as_ptr().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    };
    // Present, writable; the last level is a 2 MiB page.
    for (level, next) in [(0, 0x2000 | 3u64), (1, 0x3000 | 3), (2, 0x83)] {
        put(PAGE_TABLES + level * 0x1000, &next.to_le_bytes());
    }
    put(CODE, &PAYLOAD);
    Ok(memory)
}

/// 64-bit mode, flat, at the payload (Intel SDM 3A §10.8.5).
fn boot_state() -> BootState {
    let data = Segment { selector: 0x18, base: 0, limit: u32::MAX, attributes: 0xc093 };
    BootState {
        regs: Regs { rip: CODE as u64, rbx: 1, rflags: 2, ..Regs::default() },
        system: SystemRegs {
            cs: Segment { selector: 0x10, attributes: 0xa09b, ..data },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: Segment { selector: 0x20, base: 0, limit: 0x67, attributes: 0x8b },
            // Protection, write protection, paging; PAE; long mode enabled and active.
            cr0: 1 | 1 << 4 | 1 << 16 | 1 << 31,
            cr3: PAGE_TABLES as u64,
            cr4: 1 << 5,
            efer: 1 << 8 | 1 << 10,
            ..SystemRegs::default()
        },
    }
}

//! A payload that shows whether guests run, and how fast: what every backend's probe does.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cabana_os::Mapping;

use super::{BootState, Regs, Segment, SystemRegs};
use crate::{HvError, MemorySlot, Probe, Vcpu, VcpuSetup, Verdict, VmEntry, VmExit, X86Vm};

/// A processor, even one that QEMU translates, runs some hundred millions of plain instructions a
/// second; an instruction emulator a few millions.
pub const REAL: u64 = 50_000_000;
/// Below this a long measurement would only take long.
const CRAWLING: u64 = REAL / 10;
/// Turns of the loop in a short and in a long measurement, two instructions each.
const SHORT: u64 = 10_000;
const LONG: u64 = 1_000_000;
/// Each measurement is repeated this often before it is believed that the host is slow.
const TRIES: u32 = 3;
/// The payload is stopped after this time, whatever happens. Only a host that is far slower than an
/// instruction emulator, or stalls, ever comes to that.
const TIME_LIMIT: Duration = Duration::from_millis(400);

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
    let seat = vm.vcpu_seat(0)?;
    let kicker = seat.kicker();
    let (finished, watch) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        if watch.recv_timeout(TIME_LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            kicker.kick();
        }
    });
    let verdict = seat.bind().and_then(|mut vcpu| {
        vcpu.set_boot_state(&boot_state())?;
        measure(&mut *vcpu, &memory, time, found)
    });
    drop(finished);
    // The watchdog cannot panic; there is nothing to learn from its end.
    let _ = watchdog.join();
    vm.unmap(0)?;
    verdict
}

fn measure(
    vcpu: &mut dyn Vcpu,
    memory: &Mapping,
    time: impl Fn() -> Duration,
    found: &mut Probe,
) -> Result<Verdict, HvError> {
    let too_slow = || Verdict::Emulated {
        why: format!("a loop of {} instructions was not done in {TIME_LIMIT:?}", 2 * SHORT),
    };
    let mut exit = vcpu.run(VmEntry::Resume)?;
    let (mut best, mut turns, mut tries) = (0, SHORT, TRIES);
    while tries > 0 {
        if exit != (VmExit::PioRead { port: ASK, size: 4 }) {
            let why = format!("the test payload ended with {exit:?}");
            return Ok(Verdict::Broken { why });
        }
        let before = time();
        exit = vcpu.run(VmEntry::Data(turns))?;
        if exit == VmExit::Kicked {
            break;
        }
        let spent = time().saturating_sub(before).as_nanos().max(1);
        let rate = u64::try_from(2 * u128::from(turns) * 1_000_000_000 / spent).unwrap_or(u64::MAX);
        best = best.max(rate);
        if turns == SHORT && rate >= CRAWLING {
            (turns, tries) = (LONG, TRIES);
        } else if turns == LONG && best >= REAL {
            break;
        } else {
            tries -= 1;
        }
    }
    if best == 0 {
        return Ok(too_slow());
    }
    found.instructions_per_second = Some(best);
    if best < REAL {
        return Ok(Verdict::Emulated {
            why: format!(
                "guest instructions run in an emulator: {:.1} million a second, where a processor \
                 runs hundreds of millions",
                best as f64 / 1e6
            ),
        });
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

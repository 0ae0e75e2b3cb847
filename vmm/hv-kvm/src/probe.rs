//! What this host's KVM can do, found out by running a vCPU.

use std::arch::x86_64::__cpuid;
use std::io::ErrorKind;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cabana_hv::x86::{BootState, Regs, Segment, SystemRegs};
use cabana_hv::{
    HvError, Hypervisor, MemorySlot, Probe, Vcpu, VcpuSetup, Verdict, VmEntry, VmExit,
};
use cabana_os::Mapping;
use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_IOEVENTFD, KVM_CAP_IRQ_ROUTING, KVM_CAP_IRQFD,
    KVM_CAP_READONLY_MEM, KVM_CAP_SIGNAL_MSI, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_TSC_DEADLINE_TIMER,
    KVM_CAP_XCRS, KVM_CAP_XSAVE,
};

use crate::{Kvm, System, quirks};

/// What Cabana needs, and the Linux that has it first.
const NEEDED: [(u32, &str, &str); 10] = [
    (KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP", "4.4"),
    (KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT", "4.11"),
    (KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD", "2.6.32"),
    (KVM_CAP_IRQFD, "KVM_CAP_IRQFD", "2.6.32"),
    (KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING", "2.6.30"),
    (KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI", "3.5"),
    (KVM_CAP_READONLY_MEM, "KVM_CAP_READONLY_MEM", "3.7"),
    (KVM_CAP_TSC_DEADLINE_TIMER, "KVM_CAP_TSC_DEADLINE_TIMER", "3.2"),
    (KVM_CAP_XSAVE, "KVM_CAP_XSAVE", "2.6.36"),
    (KVM_CAP_XCRS, "KVM_CAP_XCRS", "2.6.36"),
];

/// A processor, even one that QEMU translates, runs some hundred millions of plain instructions a
/// second; an instruction emulator a few millions.
const REAL: u64 = 50_000_000;
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

pub(crate) fn probe(kvm: &Kvm) -> Probe {
    let mut found = Probe {
        hypervisor: kvm.name(),
        verdict: Verdict::Works,
        instructions_per_second: None,
        max_vcpus: None,
        quirks: quirks::xsave_is_broken().into_iter().map(str::to_owned).collect(),
    };
    found.verdict = match kvm.system() {
        Err(error) => cannot_open(kvm, &error),
        Ok(system) => match missing(kvm, system) {
            Some(why) => Verdict::TooOld { why },
            None => run(kvm, &mut found)
                .unwrap_or_else(|error| Verdict::Broken { why: error.to_string() }),
        },
    };
    found
}

fn cannot_open(kvm: &Kvm, error: &HvError) -> Verdict {
    let device = kvm.device.display();
    let HvError::Call { source, .. } = error else {
        return Verdict::Broken { why: error.to_string() };
    };
    match source.kind() {
        ErrorKind::PermissionDenied => Verdict::NoPermission {
            why: format!(
                "this user may not open {device}: join its group (sudo usermod -aG kvm $USER) and \
                 log in again"
            ),
        },
        ErrorKind::NotFound => {
            Verdict::NoDevice { why: format!("there is no {device}: {}", what_to_do()) }
        }
        _ if matches!(source.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => {
            Verdict::NoDevice { why: format!("nothing is behind {device}: {}", what_to_do()) }
        }
        _ => Verdict::Broken { why: format!("cannot open {device}: {source}") },
    }
}

/// What the processor says of itself decides what would help.
fn what_to_do() -> &'static str {
    const VMX: u32 = 1 << 5;
    const HYPERVISOR: u32 = 1 << 31;
    const SVM: u32 = 1 << 2;
    let features = __cpuid(1).ecx;
    if features & VMX != 0 {
        "load KVM (sudo modprobe kvm-intel); if that fails, enable virtualization (VT-x) in the \
         firmware"
    } else if __cpuid(0x8000_0001).ecx & SVM != 0 {
        "load KVM (sudo modprobe kvm-amd); if that fails, enable virtualization (SVM) in the \
         firmware"
    } else if features & HYPERVISOR != 0 {
        "this is a virtual machine, and its host offers it no nested virtualization: turn that on \
         there, or use a real machine"
    } else {
        "the processor offers no virtualization: enable it in the firmware (VT-x, SVM)"
    }
}

/// The first thing that Cabana needs and this KVM lacks.
fn missing(kvm: &Kvm, system: &System) -> Option<String> {
    let version = system.kvm.get_api_version();
    if version < 0 {
        let device = kvm.device.display();
        return Some(format!("{device} is not KVM: something else stands in its place"));
    }
    if version != KVM_API_VERSION as i32 {
        return Some(format!("its API has version {version}, not {KVM_API_VERSION}"));
    }
    NEEDED
        .iter()
        .find(|need| system.kvm.check_extension_raw(u64::from(need.0)) <= 0)
        .map(|(_, name, since)| format!("it has no {name}, which Linux {since} or later provides"))
}

fn run(kvm: &Kvm, found: &mut Probe) -> Result<Verdict, HvError> {
    let memory = payload_memory()?;
    let vm = kvm.create_x86_vm()?;
    found.max_vcpus = Some(vm.max_vcpus());
    vm.set_vcpus(vec![VcpuSetup { cpuid: vm.supported_cpuid()?, ..VcpuSetup::default() }])?;
    // SAFETY: `memory` outlives the VM and its vCPU, and is only accessed through pointers.
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
        measure(&mut *vcpu, &memory, found)
    });
    drop(finished);
    // The watchdog cannot panic; there is nothing to learn from its end.
    let _ = watchdog.join();
    verdict
}

fn measure(vcpu: &mut dyn Vcpu, memory: &Mapping, found: &mut Probe) -> Result<Verdict, HvError> {
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
        let before = thread_time();
        exit = vcpu.run(VmEntry::Data(turns))?;
        if exit == VmExit::Kicked {
            break;
        }
        let spent = thread_time().saturating_sub(before).as_nanos().max(1);
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

/// Time that this thread has had on a processor, guests included: a busy host does not disturb it.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills the structure.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Page tables that map the first 2 MiB as they are, and the payload.
fn payload_memory() -> Result<Mapping, HvError> {
    let memory =
        Mapping::anonymous(MEMORY).map_err(|source| HvError::Call { call: "mmap", source })?;
    let put = |at: usize, bytes: &[u8]| {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_named_with_what_to_do() {
        let found = Kvm::at("/nonexistent/kvm").probe();
        let Verdict::NoDevice { why } = &found.verdict else { panic!("{found:?}") };
        assert!(why.contains("/nonexistent/kvm: "), "{why}");
        assert!(!found.verdict.runs_payloads());
    }

    #[test]
    fn something_else_than_kvm_is_broken_or_old_and_no_panic() {
        let found = Kvm::at("/dev/null").probe();
        assert!(matches!(found.verdict, Verdict::TooOld { .. }), "{found:?}");
    }

    #[test]
    fn the_probe_is_quick_and_tells_its_reason() {
        let before = std::time::Instant::now();
        let found = Kvm::new().probe();
        let spent = before.elapsed();
        println!("{found:?} after {spent:?}");
        assert!(spent < Duration::from_secs(2), "{spent:?}");
        match &found.verdict {
            Verdict::Works => assert!(found.instructions_per_second >= Some(REAL)),
            other => assert!(other.why().is_some_and(|why| why.len() > 20), "{other:?}"),
        }
    }
}

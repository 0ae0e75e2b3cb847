//! A vCPU over functions that play a script: what the shim's KVM never comes back for.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_void;
use std::time::{Duration, Instant};

use cabana_hv::x86::{BootState, CpuidLeaf, Msi, Regs, SystemRegs, VcpuSetup, X86};
use cabana_hv::{HvError, Hypervisor, Vcpu, VcpuKicker, Verdict, VmEntry, VmExit, X86Vm};

use super::functions::{Framework, Functions, Host};
use super::{Hvf, vmcs};
use crate::functions::{HV_SUCCESS, Timebase};

const ENTRY: u64 = 0x1000;
/// Valid; hardware exception, with an error code, NMI.
const VALID: u64 = 1 << 31;
const EXCEPTION: u64 = VALID | 3 << 8;
const WITH_ERROR: u64 = 1 << 11;
/// A general-protection fault.
const FAULT: u64 = EXCEPTION | WITH_ERROR | 0xd;
const NMI: u64 = VALID | 2 << 8 | 2;
/// `CR0`: protection, extension type, numeric errors, caches off, paging.
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;

/// An exit to come: its fields, and registers that the guest has changed before.
#[derive(Clone, Debug, Default)]
struct Exit {
    fields: Vec<(u32, u64)>,
    registers: Vec<(u32, u64)>,
}

/// A thread's VM.
#[derive(Default)]
struct Play {
    registers: BTreeMap<u32, u64>,
    fields: BTreeMap<u32, u64>,
    exits: VecDeque<Exit>,
    /// What each entry has injected, and the controls then.
    entries: Vec<(u64, u64)>,
}

thread_local! {
    static PLAY: RefCell<Play> = RefCell::default();
}

fn play<T>(use_it: impl FnOnce(&mut Play) -> T) -> T {
    PLAY.with_borrow_mut(use_it)
}

fn field(name: u32) -> u64 {
    play(|play| play.fields.get(&name).copied().unwrap_or(0))
}

fn register(name: u32) -> u64 {
    play(|play| play.registers.get(&name).copied().unwrap_or(0))
}

/// What the last entries have injected.
fn injected() -> Vec<u64> {
    play(|play| std::mem::take(&mut play.entries)).into_iter().map(|(event, _)| event).collect()
}

/// Functions that do nothing and are content.
macro_rules! content {
    ($($argument:ty),*) => {{
        unsafe extern "C" fn content($(_: $argument),*) -> i32 {
            HV_SUCCESS
        }
        content
    }};
}

/// Functions that answer with a value.
macro_rules! tells {
    (($($argument:ty),*) -> $answer:ty, $value:expr) => {{
        unsafe extern "C" fn tells($(_: $argument,)* answer: *mut $answer) -> i32 {
            // SAFETY: the backend's own place for it.
            unsafe { answer.write($value) };
            HV_SUCCESS
        }
        tells
    }};
}

unsafe extern "C" fn run(_: u32, _: u64) -> i32 {
    let exit = play(|play| {
        let event = play.fields.insert(vmcs::ENTRY_EVENT, 0).unwrap_or(0);
        let controls = play.fields.get(&vmcs::CONTROLS).copied().unwrap_or(0);
        play.entries.push((event, controls));
        play.exits.pop_front()
    });
    let Some(exit) = exit else {
        // It spins until somebody wants it back.
        std::thread::sleep(Duration::from_millis(1));
        play(|play| play.fields.insert(vmcs::REASON, vmcs::EXTERNAL));
        return HV_SUCCESS;
    };
    play(|play| {
        for told in [vmcs::VECTORING, vmcs::QUALIFICATION] {
            play.fields.insert(told, 0);
        }
        play.fields.insert(vmcs::LENGTH, 2);
        play.fields.extend(exit.fields);
        play.registers.extend(exit.registers);
    });
    HV_SUCCESS
}

unsafe extern "C" fn read_register(_: u32, name: u32, value: *mut u64) -> i32 {
    // SAFETY: the backend's own place.
    unsafe { value.write(register(name)) };
    HV_SUCCESS
}

unsafe extern "C" fn write_register(_: u32, name: u32, value: u64) -> i32 {
    play(|play| play.registers.insert(name, value));
    HV_SUCCESS
}

unsafe extern "C" fn read_field(_: u32, name: u32, value: *mut u64) -> i32 {
    // SAFETY: the backend's own place.
    unsafe { value.write(field(name)) };
    HV_SUCCESS
}

unsafe extern "C" fn write_field(_: u32, name: u32, value: u64) -> i32 {
    play(|play| play.fields.insert(name, value));
    HV_SUCCESS
}

unsafe extern "C" fn now() -> u64 {
    use std::sync::OnceLock;
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    1_000_000 + BEGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

fn framework() -> Framework {
    let functions = Functions {
        hv_capability: tells!((u64) -> u64, 8),
        hv_vm_create: content!(u64),
        hv_vm_destroy: content!(),
        hv_vm_map: content!(*mut c_void, u64, usize, u64),
        hv_vm_unmap: content!(u64, usize),
        hv_vm_protect: content!(u64, usize, u64),
        hv_vcpu_create: {
            unsafe extern "C" fn create(id: *mut u32, _: u64) -> i32 {
                // SAFETY: the backend's own place.
                unsafe { id.write(1) };
                HV_SUCCESS
            }
            create
        },
        hv_vcpu_destroy: content!(u32),
        hv_vcpu_run_until: run,
        hv_vcpu_interrupt: content!(*mut u32, u32),
        hv_vcpu_read_register: read_register,
        hv_vcpu_write_register: write_register,
        hv_vcpu_read_fpstate: content!(u32, *mut c_void, usize),
        hv_vcpu_write_fpstate: content!(u32, *mut c_void, usize),
        hv_vcpu_enable_native_msr: content!(u32, u32, bool),
        hv_vcpu_read_msr: tells!((u32, u32) -> u64, 0),
        hv_vcpu_write_msr: content!(u32, u32, u64),
        hv_tsc_clock: now,
        hv_vcpu_set_tsc_relative: content!(u32, i64),
        // Nothing must be set, and everything may.
        hv_vmx_read_capability: tells!((u32) -> u64, 0xffff_ffff_0000_0000),
        hv_vmx_vcpu_read_vmcs: read_field,
        hv_vmx_vcpu_write_vmcs: write_field,
        mach_absolute_time: now,
        mach_timebase_info: tells!(() -> Timebase, Timebase { numer: 1, denom: 1 }),
    };
    // A tick of the time-stamp counter is a nanosecond.
    let host = Host { cpuid: |_, _| [0; 4], tsc_hertz: || 1_000_000_000 };
    Framework { functions, host }
}

type Started = (Box<dyn X86Vm>, Box<dyn Vcpu<X86>>, Box<dyn VcpuKicker>);

/// One vCPU in long mode at [`ENTRY`], whose processor has AVX.
fn start() -> Started {
    play(|play| *play = Play::default());
    let vm = Hvf::over(|| Ok(framework())).create_x86_vm().unwrap();
    let leaf = |function, index, eax| CpuidLeaf { function, index, eax, ..CpuidLeaf::default() };
    let cpuid = vec![leaf(1, None, 0x806f8), leaf(0xd, Some(0), 7)];
    vm.set_vcpus(vec![VcpuSetup { cpuid, msrs: vec![(0x2ff, 0x806)] }]).unwrap();
    let seat = vm.vcpu_seat(0).unwrap();
    let kicker = seat.kicker();
    let mut vcpu = seat.bind().unwrap();
    let regs = Regs { rip: ENTRY, rflags: 2, ..Regs::default() };
    let system = SystemRegs {
        cr0: CR0_PE | CR0_ET | CR0_NE | CR0_PG,
        cr4: 1 << 5,
        efer: 1 << 8 | 1 << 10,
        ..SystemRegs::default()
    };
    vcpu.set_boot_state(&BootState { regs, system }).unwrap();
    (vm, vcpu, kicker)
}

fn exit(reason: u64, registers: &[(u32, u64)]) -> Exit {
    Exit { fields: vec![(vmcs::REASON, reason)], registers: registers.to_vec() }
}

/// Lets the guest make these exits, and then give up.
fn act(vcpu: &mut dyn Vcpu<X86>, exits: impl IntoIterator<Item = Exit>) {
    play(|play| {
        play.exits.extend(exits);
        play.exits.push_back(exit(vmcs::TRIPLE_FAULT, &[]));
    });
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Shutdown);
}

/// A move to a control register out of RAX, or from it.
fn control(register: u64, to: bool, value: u64) -> Exit {
    let mut exit = exit(vmcs::CR_ACCESS, &[(vmcs::RAX, value)]);
    exit.fields.push((vmcs::QUALIFICATION, register | u64::from(!to) << 4));
    exit
}

fn msr(write: bool, msr: u32, value: u64) -> Exit {
    let reason = if write { vmcs::WRMSR } else { vmcs::RDMSR };
    let registers =
        [(vmcs::RCX, msr.into()), (vmcs::RAX, value & 0xffff_ffff), (vmcs::RDX, value >> 32)];
    exit(reason, &registers)
}

#[test]
fn what_cannot_be_loaded_says_what_is_missing() {
    let probe = Hvf::over(|| Err(HvError::Unsupported("hv_vcpu_set_tsc_relative"))).probe();
    let Verdict::TooOld { why } = &probe.verdict else { panic!("{probe:?}") };
    assert_eq!(why, "this macOS has no hv_vcpu_set_tsc_relative: macOS 11 or later has it");
}

#[test]
fn caches_are_the_hosts_and_the_guest_does_not_see_that() {
    let (_vm, mut vcpu, _) = start();
    let off = CR0_PE | CR0_ET | CR0_NE | CR0_CD | CR0_PG;
    act(&mut *vcpu, [control(0, true, off)]);
    assert_eq!(field(vmcs::CR0), off & !CR0_CD);
    assert_eq!((field(vmcs::CR0_SHADOW), register(vmcs::RIP)), (off, ENTRY + 2));
    assert_eq!(vcpu.state().unwrap().system.cr0, off);
    // Paging off: long mode ends with it, and begins again.
    act(&mut *vcpu, [control(0, true, CR0_PE | CR0_ET)]);
    assert_eq!((field(vmcs::EFER), field(vmcs::ENTRY_CONTROLS) >> 9 & 1), (1 << 8, 0));
    assert_eq!(field(vmcs::CR0), CR0_PE | CR0_ET | CR0_NE, "it stays set");
    act(&mut *vcpu, [control(0, true, CR0_PE | CR0_ET | CR0_NE | CR0_PG)]);
    assert_eq!((field(vmcs::EFER), field(vmcs::ENTRY_CONTROLS) >> 9 & 1), (0x500, 1));
    // No protection with paging, no write-through without caches off, VMXE, more than 32 bits.
    injected();
    let wrong = [
        control(0, true, CR0_PG),
        control(0, true, CR0_PE | 1 << 29),
        control(0, true, 1 << 32 | CR0_PE),
        control(4, true, 1 << 13),
    ];
    act(&mut *vcpu, wrong);
    assert_eq!(injected()[1..], [FAULT; 4]);
}

#[test]
fn the_task_priority_is_cr8() {
    let (vm, mut vcpu, _) = start();
    let interrupts = (vmcs::RFLAGS, 2 | vmcs::INTERRUPTS);
    // The APIC is switched on in x2APIC mode.
    let mut exits = vec![msr(true, 0x1b, 0xfee0_0d00), msr(true, 0x80f, 0x1ff)];
    exits.extend([control(8, true, 5), control(8, false, 0)]);
    exits[3].registers.push(interrupts);
    act(&mut *vcpu, exits);
    assert_eq!(register(vmcs::RAX), 5, "read back");
    vm.signal_msi(Msi { address: 0xfee0_0000, data: 0x51 }).unwrap();
    injected();
    act(&mut *vcpu, [control(8, true, 4), msr(true, 0x80b, 0), control(8, true, 0x10)]);
    assert_eq!(injected(), [0, VALID | 0x51, 0, FAULT]);
    assert_eq!(vcpu.state().unwrap().system.cr8, 4);
}

#[test]
fn an_interrupt_waits_for_its_window_and_comes_again_if_it_was_interrupted() {
    let (vm, mut vcpu, _) = start();
    act(&mut *vcpu, [msr(true, 0x1b, 0xfee0_0d00), msr(true, 0x80f, 0x1ff)]);
    vm.signal_msi(Msi { address: 0xfee0_0000, data: 0x51 }).unwrap();
    injected();
    let window = exit(vmcs::INTERRUPT_WINDOW, &[(vmcs::RFLAGS, 2 | vmcs::INTERRUPTS)]);
    let mut interrupted = exit(vmcs::EXTERNAL, &[]);
    interrupted.fields.push((vmcs::VECTORING, VALID | 0x51));
    play(|play| play.exits.extend([window, interrupted]));
    play(|play| play.exits.push_back(exit(vmcs::TRIPLE_FAULT, &[])));
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Shutdown);
    let entries = play(|play| std::mem::take(&mut play.entries));
    let waited: Vec<_> =
        entries.iter().map(|(event, controls)| (*event, controls >> 2 & 1)).collect();
    assert_eq!(waited, [(0, 1), (VALID | 0x51, 0), (VALID | 0x51, 0)]);
}

#[test]
fn an_nmi_waits_for_the_one_before() {
    let (vm, mut vcpu, _) = start();
    vm.signal_msi(Msi { address: 0xfee0_0000, data: 4 << 8 }).unwrap();
    let mut first = exit(vmcs::EXTERNAL, &[]);
    first.fields.push((vmcs::SHADOW, vmcs::BY_NMI));
    act(&mut *vcpu, [first]);
    assert_eq!(injected(), [NMI, 0]);
    vm.signal_msi(Msi { address: 0xfee0_0000, data: 4 << 8 }).unwrap();
    let mut over = exit(vmcs::NMI_WINDOW, &[]);
    over.fields.push((vmcs::SHADOW, 0));
    act(&mut *vcpu, [over]);
    let entries = play(|play| std::mem::take(&mut play.entries));
    assert_eq!(entries[0].1 >> 22 & 1, 1, "it asks for the window");
    assert_eq!(entries[1].0, NMI);
}

#[test]
fn extended_states_are_those_that_cpuid_tells() {
    let (_vm, mut vcpu, _) = start();
    let set = |index, value: u64| {
        exit(vmcs::XSETBV, &[(vmcs::RCX, index), (vmcs::RAX, value), (vmcs::RDX, 0)])
    };
    act(&mut *vcpu, [set(0, 7)]);
    assert_eq!((register(vmcs::XCR0), register(vmcs::RIP)), (7, ENTRY + 2));
    injected();
    act(&mut *vcpu, [set(0, 0xe7), set(0, 6), set(1, 1)]);
    assert_eq!(injected()[1..], [FAULT; 3]);
}

#[test]
fn what_is_not_there_is_undefined() {
    let (_vm, mut vcpu, _) = start();
    let reasons = [vmcs::MWAIT, vmcs::MONITOR, vmcs::VMCALL, vmcs::VMXON, vmcs::INVEPT];
    act(&mut *vcpu, reasons.map(|reason| exit(reason, &[])));
    assert_eq!(injected()[1..], [EXCEPTION | 6; 5]);
    assert_eq!(register(vmcs::RIP), ENTRY);
    act(&mut *vcpu, [exit(vmcs::RDPMC, &[]), msr(false, 0xdead_beef, 0)]);
    assert_eq!(injected()[1..], [FAULT; 2]);
    act(&mut *vcpu, [exit(vmcs::WBINVD, &[])]);
    assert_eq!(register(vmcs::RIP), ENTRY + 2, "nothing to do");
    play(|play| play.exits.push_back(exit(9, &[])));
    let HvError::Guest(why) = vcpu.run(VmEntry::Resume).unwrap_err() else { panic!() };
    assert!(why.contains("unexpected exit reason 9, at RIP 0x1002"), "{why}");
    play(|play| play.exits.push_back(exit(0x21 | vmcs::NOT_ENTERED, &[])));
    assert!(matches!(vcpu.run(VmEntry::Resume), Err(HvError::Guest(_))));
}

#[test]
fn a_halted_guest_goes_on_when_its_timer_fires_or_it_is_kicked() {
    let (_vm, mut vcpu, kicker) = start();
    // The timer counts 20 ms down, undivided, to vector 0x51.
    let timer =
        [(0x1b, 0xfee0_0d00), (0x80f, 0x1ff), (0x83e, 0b1011), (0x832, 0x51), (0x838, 20_000_000)];
    let mut exits: Vec<_> = timer.map(|(number, value)| msr(true, number, value)).into();
    exits.push(exit(vmcs::HLT, &[(vmcs::RFLAGS, 2 | vmcs::INTERRUPTS)]));
    let begin = Instant::now();
    act(&mut *vcpu, exits);
    assert!(begin.elapsed() >= Duration::from_millis(19), "{:?}", begin.elapsed());
    assert_eq!(injected().last(), Some(&(VALID | 0x51)));
    play(|play| play.exits.push_back(exit(vmcs::HLT, &[])));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(10));
            kicker.kick();
        });
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Kicked);
    });
}

#[test]
fn a_kick_reaches_a_guest_whose_hypervisor_forgets_it() {
    let (_vm, mut vcpu, kicker) = start();
    // `hv_vcpu_interrupt` does nothing here.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(10));
            kicker.kick();
        });
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Kicked);
    });
}

#[test]
fn registers_that_nobody_has_written_keep_what_firmware_left() {
    let (_vm, mut vcpu, _) = start();
    act(&mut *vcpu, [msr(false, 0x2ff, 0)]);
    assert_eq!((register(vmcs::RAX), register(vmcs::RDX)), (0x806, 0));
    act(&mut *vcpu, [msr(true, 0xc000_0080, 0xd01), msr(false, 0xc000_0080, 0)]);
    assert_eq!(register(vmcs::RAX), 0xd01, "long mode stays active");
    injected();
    // Long mode cannot end while it pages.
    act(&mut *vcpu, [msr(true, 0xc000_0080, 0), msr(true, 0xc000_0080, 1 << 1)]);
    assert_eq!(injected()[1..], [FAULT; 2]);
}

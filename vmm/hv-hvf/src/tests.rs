//! A vCPU over functions that play a script: what the shim's KVM never comes back for, and signs that the lab's
//! software processor does not tell.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_void;
use std::ptr;
use std::time::{Duration, Instant};

use cabana_hv::arm64::{Arm64, BootState, Gic, VcpuSetup};
use cabana_hv::{Arm64Vm, HvError, Hypervisor, Vcpu, VcpuKicker, VmEntry, VmExit};

use crate::functions::{Exit, Functions, HV_SUCCESS, Timebase, Vector};
use crate::processor::{
    CNTV_CTL_EL0, CNTV_CVAL_EL0, CPSR, ELR_EL1, ESR_EL1, ID_AA64DFR0_EL1, ID_AA64PFR1_EL1, PC,
    SPSR_EL1, VBAR_EL1,
};
use crate::{Hvf, syndrome};

const GIC: Gic = Gic { distributor: 0x800_0000, redistributors: 0x80a_0000, lines: 32 };
const ENTRY: u64 = 0x4000_0000;
/// `hv_exit_reason_t`.
const EXCEPTION: u32 = 1;
const TIMER: u32 = 2;

/// A thread's VM: registers, and exits to come.
#[derive(Default)]
struct Play {
    registers: BTreeMap<u32, u64>,
    system: BTreeMap<u16, u64>,
    exits: VecDeque<Exit>,
    exit: Box<Exit>,
    unmasked: u32,
}

thread_local! {
    static PLAY: RefCell<Play> = RefCell::default();
}

fn play<T>(use_it: impl FnOnce(&mut Play) -> T) -> T {
    PLAY.with_borrow_mut(use_it)
}

fn register(name: u32) -> u64 {
    play(|play| play.registers.get(&name).copied().unwrap_or(0))
}

fn system(name: u16) -> u64 {
    play(|play| play.system.get(&name).copied().unwrap_or(0))
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

unsafe extern "C" fn object() -> *mut c_void {
    ptr::without_provenance_mut(16)
}

unsafe extern "C" fn create(id: *mut u64, exit: *mut *const Exit, _: *mut c_void) -> i32 {
    // SAFETY: the backend's own places.
    unsafe {
        id.write(1);
        exit.write(play(|play| &raw const *play.exit));
    }
    HV_SUCCESS
}

unsafe extern "C" fn run(_: u64) -> i32 {
    play(|play| *play.exit = play.exits.pop_front().expect("an exit"));
    HV_SUCCESS
}

unsafe extern "C" fn get_register(_: u64, name: u32, value: *mut u64) -> i32 {
    // SAFETY: the backend's own place.
    unsafe { value.write(register(name)) };
    HV_SUCCESS
}

unsafe extern "C" fn set_register(_: u64, name: u32, value: u64) -> i32 {
    play(|play| play.registers.insert(name, value));
    HV_SUCCESS
}

unsafe extern "C" fn get_system(_: u64, name: u16, value: *mut u64) -> i32 {
    // SAFETY: the backend's own place.
    unsafe { value.write(system(name)) };
    HV_SUCCESS
}

unsafe extern "C" fn set_system(_: u64, name: u16, value: u64) -> i32 {
    play(|play| play.system.insert(name, value));
    HV_SUCCESS
}

unsafe extern "C" fn unmask(_: u64, masked: bool) -> i32 {
    assert!(!masked);
    play(|play| play.unmasked += 1);
    HV_SUCCESS
}

unsafe extern "C" fn spi_range(first: *mut u32, count: *mut u32) -> i32 {
    // SAFETY: the backend's own places.
    unsafe {
        first.write(32);
        count.write(988);
    }
    HV_SUCCESS
}

unsafe extern "C" fn now() -> u64 {
    use std::sync::OnceLock;
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    // A tick is a microsecond.
    1_000_000 + BEGIN.get_or_init(Instant::now).elapsed().as_micros() as u64
}

unsafe extern "C" fn release(_: *mut c_void) {}

fn functions() -> Functions {
    Functions {
        hv_vm_config_create: object,
        hv_vm_config_get_max_ipa_size: tells!(() -> u32, 40),
        hv_vm_config_set_ipa_size: content!(*mut c_void, u32),
        hv_vm_create: content!(*mut c_void),
        hv_vm_destroy: content!(),
        hv_vm_get_max_vcpu_count: tells!(() -> u32, 64),
        hv_vm_map: content!(*mut c_void, u64, usize, u64),
        hv_vm_unmap: content!(u64, usize),
        hv_vm_protect: content!(u64, usize, u64),
        hv_vcpu_create: create,
        hv_vcpu_destroy: content!(u64),
        hv_vcpu_run: run,
        hv_vcpus_exit: content!(*const u64, u32),
        hv_vcpu_get_reg: get_register,
        hv_vcpu_set_reg: set_register,
        hv_vcpu_get_simd_fp_reg: content!(u64, u32, *mut Vector),
        hv_vcpu_set_simd_fp_reg: {
            #[allow(improper_ctypes_definitions, reason = "vectors are passed as C passes them")]
            unsafe extern "C" fn content(_: u64, _: u32, _: Vector) -> i32 {
                HV_SUCCESS
            }
            content
        },
        hv_vcpu_get_sys_reg: get_system,
        hv_vcpu_set_sys_reg: set_system,
        hv_vcpu_set_vtimer_mask: unmask,
        hv_vcpu_set_vtimer_offset: content!(u64, u64),
        hv_gic_config_create: object,
        hv_gic_config_set_distributor_base: content!(*mut c_void, u64),
        hv_gic_config_set_redistributor_base: content!(*mut c_void, u64),
        hv_gic_create: content!(*mut c_void),
        hv_gic_get_spi_interrupt_range: spi_range,
        hv_gic_set_spi: content!(u32, bool),
        hv_gic_get_icc_reg: get_system,
        hv_gic_set_icc_reg: set_system,
        hv_gic_state_create: object,
        hv_gic_state_get_size: tells!((*mut c_void) -> usize, 0),
        hv_gic_state_get_data: content!(*mut c_void, *mut c_void),
        hv_gic_set_state: content!(*const c_void, usize),
        os_release: release,
        mach_absolute_time: now,
        mach_timebase_info: tells!(() -> Timebase, Timebase { numer: 1000, denom: 1 }),
    }
}

type Started = (Box<dyn Arm64Vm>, Box<dyn Vcpu<Arm64>>, Box<dyn VcpuKicker>);

/// One vCPU, at [`ENTRY`].
fn start() -> Started {
    // What says that the processor has everything.
    play(|play| {
        *play = Play::default();
        play.system.extend([(ID_AA64PFR1_EL1, u64::MAX), (ID_AA64DFR0_EL1, u64::MAX)]);
    });
    let vm = Hvf::over(|| Ok(functions())).create_arm64_vm(GIC).unwrap();
    vm.set_vcpus(vec![VcpuSetup::default()]).unwrap();
    let seat = vm.vcpu_seat(0).unwrap();
    let kicker = seat.kicker();
    let mut vcpu = seat.bind().unwrap();
    vcpu.set_boot_state(&BootState { pc: ENTRY, x0: 0 }).unwrap();
    (vm, vcpu, kicker)
}

fn exception(class: u64, details: u64) -> Exit {
    Exit { reason: EXCEPTION, syndrome: class << 26 | details, ..Exit::default() }
}

/// The last exit: `SYSTEM_OFF`.
fn off() -> Exit {
    play(|play| play.registers.insert(0, 0x8400_0008));
    exception(syndrome::HVC, 0)
}

fn script(exits: impl IntoIterator<Item = Exit>) {
    play(|play| play.exits.extend(exits));
}

#[test]
fn a_guest_that_waits_goes_on_when_its_timer_fires() {
    let (_vm, mut vcpu, _) = start();
    // An event is not waited for, an interrupt is: 20,000 ticks from now.
    let deadline = vcpu.counter().unwrap() + 20_000;
    play(|play| play.system.extend([(CNTV_CTL_EL0, 1), (CNTV_CVAL_EL0, deadline)]));
    script([exception(syndrome::WAIT, 1), exception(syndrome::WAIT, 0), off()]);
    let begin = Instant::now();
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::PowerOff);
    assert!(begin.elapsed() >= Duration::from_millis(15), "{:?}", begin.elapsed());
    assert_eq!(register(PC), ENTRY + 8, "past both");
}

#[test]
fn a_guest_that_waits_for_nothing_goes_on_at_an_interrupt_or_a_kick() {
    let (vm, mut vcpu, kicker) = start();
    script([exception(syndrome::WAIT, 0), off()]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(10));
            vm.irq_line(3, true).unwrap();
        });
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::PowerOff);
    });
    script([exception(syndrome::WAIT, 0)]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(10));
            kicker.kick();
        });
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Kicked);
    });
}

#[test]
fn loads_are_extended_into_their_register() {
    let (_vm, mut vcpu, _) = start();
    // LDRSB X3: valid, one byte, signed, 64 bits.
    let load = 1 << 25 | 1 << 24 | 1 << 21 | 3 << 16 | 1 << 15 | 7;
    let load = Exit { physical_address: 0x1000, ..exception(syndrome::DATA_ABORT, load) };
    script([load, off()]);
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::MmioRead { addr: 0x1000, size: 1 });
    assert_eq!(register(PC), ENTRY, "it stands at the instruction");
    assert_eq!(vcpu.run(VmEntry::Data(0x181)).unwrap(), VmExit::PowerOff);
    assert_eq!((register(3), register(PC)), (0xffff_ffff_ffff_ff81, ENTRY + 4));
}

#[test]
fn system_registers_read_as_zero_or_are_undefined() {
    let (_vm, mut vcpu, _) = start();
    play(|play| {
        play.registers.insert(9, 7);
        play.system.insert(VBAR_EL1, 0x9000);
    });
    // MRS X9, ID_AA64ISAR2_EL1; then MSR to a register that is not there.
    let identity = 3 << 20 | 2 << 17 | 9 << 5 | 6 << 1 | 1;
    let unknown = 3 << 20 | 7 << 14 | 15 << 10;
    let trap = |details| exception(syndrome::SYSTEM_REGISTER, details);
    script([trap(identity), trap(unknown), off()]);
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::PowerOff);
    assert_eq!(register(9), 0);
    assert_eq!((register(PC), system(ELR_EL1)), (0x9200, ENTRY + 4), "EL1's own vector");
    assert_eq!((system(ESR_EL1), system(SPSR_EL1)), (1 << 25, register(CPSR)));
}

#[test]
fn the_timers_exit_is_no_exit_and_other_calls_come_back_past_smc() {
    let (_vm, mut vcpu, _) = start();
    let before = play(|play| play.unmasked);
    play(|play| play.registers.insert(0, 0x8400_0000));
    // `PSCI_VERSION`, whose answer no call is; then whatever nobody knows.
    script([
        Exit { reason: TIMER, ..Exit::default() },
        exception(syndrome::SMC, 0),
        exception(0x3f, 0),
    ]);
    let HvError::Guest(why) = vcpu.run(VmEntry::Resume).unwrap_err() else { panic!() };
    assert!(why.contains("unexpected exception (0xfc000000), at PC 0x40000004"), "{why}");
    assert_eq!((register(0), play(|play| play.unmasked)), (0x1_0001, before + 1));
}

#[test]
fn guests_see_no_features_whose_registers_nobody_keeps() {
    let (_vm, _vcpu, _) = start();
    assert_eq!(system(ID_AA64PFR1_EL1) >> 24 & 0xf, 0, "SME");
    assert_eq!(system(ID_AA64DFR0_EL1) >> 8 & 0xf, 0, "PMUVer");
    assert_ne!(system(ID_AA64DFR0_EL1) & 0xf, 0, "breakpoints");
}

#[test]
fn the_saved_state_of_nothing_is_refused() {
    let (vm, mut vcpu, _) = start();
    let state = vcpu.state().unwrap();
    vcpu.set_state(&state).unwrap();
    let mut short = state;
    short.system.pop();
    assert!(matches!(vcpu.set_state(&short), Err(HvError::Invalid(_))));
    assert!(matches!(vm.set_gic_state(&[0; 24]), Err(HvError::Invalid(_))));
}

//! The shim of Hypervisor.framework refuses what the vendor refuses, and the backend says so with the vendor's code.

#![cfg(all(target_os = "linux", target_arch = "aarch64"))]
// The vendor's functions are C's.
#![allow(unsafe_code)]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{ptr, thread};

use cabana_hv::{HvError, Hypervisor};
use cabana_hv_hvf::{HV_BAD_ARGUMENT, HV_BUSY, HV_ERROR, HV_NO_DEVICE, HV_SUCCESS};
use cabana_shim_hvf::FUNCTIONS as HVF;
use cabana_test_hv::{Backend, Guest, Runner, backends, lacks, payload};

payload!(payload_nothing: "b .");

const PLACE: u64 = 0x5000_0000;
const PAGE: usize = 16 << 10;

/// The shim's backend, alone with it, or nothing where KVM does not run guests on a processor.
fn shim() -> Option<(Backend, MutexGuard<'static, ()>)> {
    static ONE_VM: Mutex<()> = Mutex::new(());
    let alone = ONE_VM.lock().unwrap_or_else(PoisonError::into_inner);
    let backend = backends().into_iter().find(|backend| backend.name.starts_with("HVF")).unwrap();
    if let Some(why) = backend.probe().verdict.why() {
        println!("skipped: {why}");
        lacks("processor");
        return None;
    }
    Some((backend, alone))
}

/// The vendor's code of a refusal.
fn code<T>(result: Result<T, HvError>) -> i32 {
    match result {
        Err(HvError::Refused { code, .. }) => code.cast_signed(),
        Err(other) => panic!("{other}"),
        Ok(_) => HV_SUCCESS,
    }
}

#[test]
fn a_process_has_one_vm_and_a_thread_one_vcpu() {
    let Some((backend, _alone)) = shim() else { return };
    let guest = Guest::with_cpus(&backend, payload_nothing(), &[true; 2]);
    let gic = cabana_hv::arm64::Gic { distributor: 0, redistributors: 0x10_0000, lines: 1 };
    let second = cabana_shim_hvf::framework().create_arm64_vm(gic);
    assert_eq!(code(second), HV_BUSY);
    let first = Runner::bind(guest.seat(0));
    assert_eq!(code(guest.seat(1).bind()), HV_BUSY);
    drop(first);
    // It is gone with all that has it.
    drop(guest);
    Guest::new(&backend, payload_nothing());
}

#[test]
fn a_vcpu_is_its_threads_alone() {
    let Some((backend, _alone)) = shim() else { return };
    let guest = Guest::new(&backend, payload_nothing());
    let _runner = Runner::bind(guest.seat(0));
    for id in 0..1000 {
        // SAFETY: plain values, and a place for the answer.
        let answers = thread::spawn(move || unsafe {
            let mut value = 0;
            [
                (HVF.hv_vcpu_get_reg)(id, 0, &raw mut value),
                (HVF.hv_vcpu_run)(id),
                (HVF.hv_vcpu_destroy)(id),
            ]
        });
        assert_eq!(answers.join().unwrap(), [HV_BAD_ARGUMENT; 3]);
    }
    // SAFETY: plain values.
    assert_eq!(unsafe { (HVF.hv_vm_destroy)() }, HV_BUSY, "there is a vCPU");
}

#[test]
fn memory_comes_in_pages_of_sixteen_kibibytes() {
    let Some((backend, _alone)) = shim() else { return };
    let _guest = Guest::new(&backend, payload_nothing());
    let memory = cabana_os::Mapping::anonymous(8 * PAGE).unwrap();
    let host = memory.as_ptr().cast();
    // SAFETY: the memory outlives its place in the guest, and has no references.
    unsafe {
        for (at, len) in [(PLACE + 4096, PAGE), (PLACE, 4096), (PLACE, 0), (1 << 50, PAGE)] {
            assert_eq!((HVF.hv_vm_map)(host, at, len, 7), HV_BAD_ARGUMENT, "{at:#x} {len:#x}");
        }
        assert_eq!((HVF.hv_vm_map)(host, PLACE, PAGE, 8), HV_BAD_ARGUMENT, "no such right");
        assert_eq!((HVF.hv_vm_map)(ptr::null_mut(), PLACE, PAGE, 7), HV_BAD_ARGUMENT);
        assert_eq!((HVF.hv_vm_map)(host, PLACE, 8 * PAGE, 7), HV_SUCCESS);
        assert_eq!((HVF.hv_vm_map)(host, PLACE + PAGE as u64, PAGE, 7), HV_BAD_ARGUMENT);
        assert_eq!((HVF.hv_vm_protect)(PLACE, 9 * PAGE, 1), HV_BAD_ARGUMENT, "not all is there");
        // A part, and the rest on both sides of it.
        assert_eq!((HVF.hv_vm_protect)(PLACE + PAGE as u64, PAGE, 1), HV_SUCCESS);
        assert_eq!((HVF.hv_vm_unmap)(PLACE + 2 * PAGE as u64, PAGE), HV_SUCCESS);
        assert_eq!((HVF.hv_vm_unmap)(PLACE, 8 * PAGE), HV_BAD_ARGUMENT);
        assert_eq!((HVF.hv_vm_unmap)(PLACE, 2 * PAGE), HV_SUCCESS);
        assert_eq!((HVF.hv_vm_unmap)(PLACE + 3 * PAGE as u64, 5 * PAGE), HV_SUCCESS);
    }
}

#[test]
fn the_order_of_calls_is_the_vendors() {
    let Some((backend, _alone)) = shim() else { return };
    // SAFETY: plain values, places for answers, and objects of the shim's own.
    unsafe {
        let (mut id, mut exit) = (0, ptr::null());
        let none = ptr::null_mut();
        assert_eq!((HVF.hv_vcpu_create)(&raw mut id, &raw mut exit, none), HV_NO_DEVICE);
        assert_eq!((HVF.hv_vm_destroy)(), HV_NO_DEVICE);
        assert_eq!((HVF.hv_gic_set_spi)(32, true), HV_NO_DEVICE);
        assert_eq!((HVF.hv_vm_create)(none), HV_SUCCESS);
        assert_eq!((HVF.hv_gic_set_spi)(32, true), HV_NO_DEVICE, "no interrupt controller");
        assert!((HVF.hv_gic_state_create)().is_null());
        assert_eq!((HVF.hv_vcpu_create)(&raw mut id, &raw mut exit, none), HV_SUCCESS);
        let config = (HVF.hv_gic_config_create)();
        assert_eq!((HVF.hv_gic_create)(config), HV_BAD_ARGUMENT, "it is nowhere");
        (HVF.hv_gic_config_set_distributor_base)(config, 0x800_0000);
        (HVF.hv_gic_config_set_redistributor_base)(config, 0x80a_0000);
        assert_eq!((HVF.hv_gic_create)(config), HV_ERROR, "after a vCPU");
        assert_eq!((HVF.hv_vcpu_destroy)(id), HV_SUCCESS);
        assert_eq!((HVF.hv_gic_create)(config), HV_SUCCESS);
        for outside in [0, 31, 1020, u32::MAX] {
            assert_eq!((HVF.hv_gic_set_spi)(outside, true), HV_BAD_ARGUMENT, "{outside}");
        }
        (HVF.os_release)(config);
        assert_eq!((HVF.hv_gic_create)(config), HV_BAD_ARGUMENT, "it is released");
        assert_eq!((HVF.hv_vm_destroy)(), HV_SUCCESS);
    }
    Guest::new(&backend, payload_nothing());
}

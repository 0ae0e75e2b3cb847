//! What Hypervisor.framework of Intel Macs refuses, its shim refuses.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
// The functions take pointers.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use cabana_hv::HvError;
use cabana_hv_hvf::{HV_BAD_ARGUMENT, HV_BUSY, HV_NO_DEVICE, HV_SUCCESS};
use cabana_shim_hvf_x86::FUNCTIONS as HVF;
use cabana_test_hv::{Backend, Guest, Runner, backends, lacks, payload};

payload!(payload_nothing: "2: jmp 2b");

const PLACE: u64 = 0x5000_0000;
const PAGE: usize = 4 << 10;
/// Fields: controls, an exit's reason, CS's rights.
const CONTROLS: u32 = 0x4002;
const REASON: u32 = 0x4402;
const CS_RIGHTS: u32 = 0x4816;

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
    let guest = Guest::with_cpus(&backend, payload_nothing(), 2);
    assert_eq!(code(backend.hypervisor().create_x86_vm()), HV_BUSY);
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
                (HVF.hv_vcpu_read_register)(id, 0, &raw mut value),
                (HVF.hv_vmx_vcpu_read_vmcs)(id, REASON, &raw mut value),
                (HVF.hv_vcpu_run_until)(id, 0),
                (HVF.hv_vcpu_destroy)(id),
            ]
        });
        assert_eq!(answers.join().unwrap(), [HV_BAD_ARGUMENT; 4]);
    }
    // SAFETY: plain values.
    assert_eq!(unsafe { (HVF.hv_vm_destroy)() }, HV_BUSY, "there is a vCPU");
}

#[test]
fn memory_comes_in_whole_pages_and_parts_of_it_have_rights() {
    let Some((backend, _alone)) = shim() else { return };
    let _guest = Guest::new(&backend, payload_nothing());
    let memory = cabana_os::Mapping::anonymous(8 * PAGE).unwrap();
    let host = memory.as_ptr().cast();
    // SAFETY: the memory outlives its place in the guest, and has no references.
    unsafe {
        for (at, len) in [(PLACE + 512, PAGE), (PLACE, 512), (PLACE, 0), (1 << 50, PAGE)] {
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
fn a_vmcs_has_its_fields_and_its_controls_their_bounds() {
    let Some((_backend, _alone)) = shim() else { return };
    // SAFETY: plain values, and places for answers.
    unsafe {
        let (mut id, mut value) = (0, 0);
        assert_eq!((HVF.hv_vcpu_create)(&raw mut id, 0), HV_NO_DEVICE);
        assert_eq!((HVF.hv_vm_destroy)(), HV_NO_DEVICE);
        assert_eq!((HVF.hv_vm_create)(1), HV_BAD_ARGUMENT);
        assert_eq!((HVF.hv_vm_create)(0), HV_SUCCESS);
        assert_eq!((HVF.hv_vcpu_create)(&raw mut id, 0), HV_SUCCESS);
        let write = |field, value| (HVF.hv_vmx_vcpu_write_vmcs)(id, field, value);
        let mut read = |field| (HVF.hv_vmx_vcpu_read_vmcs)(id, field, &raw mut value);
        assert_eq!(write(REASON, 0), HV_BAD_ARGUMENT, "it may only be read");
        for none in [0x801, 0x2fff, 0x4817, 0x7000, u32::MAX] {
            assert_eq!([read(none), write(none, 0)], [HV_BAD_ARGUMENT; 2], "{none:#x}");
        }
        assert_eq!([read(REASON), write(CS_RIGHTS, 0xa09b), read(CS_RIGHTS)], [HV_SUCCESS; 3]);
        assert_eq!(value, 0xa09b);
        let mut bounds = 0;
        assert_eq!((HVF.hv_vmx_read_capability)(1, &raw mut bounds), HV_SUCCESS);
        let (must, may) = (bounds & 0xffff_ffff, bounds >> 32);
        assert_eq!([write(CONTROLS, 0), write(CONTROLS, must | !may)], [HV_BAD_ARGUMENT; 2]);
        assert_eq!(write(CONTROLS, must), HV_SUCCESS);
        assert_eq!((HVF.hv_vmx_read_capability)(99, &raw mut bounds), HV_BAD_ARGUMENT);
        for (msr, answer) in [(0xc000_0082, HV_SUCCESS), (0xc000_0080, HV_BAD_ARGUMENT)] {
            assert_eq!((HVF.hv_vcpu_enable_native_msr)(id, msr, true), answer, "{msr:#x}");
        }
        let mut area = [0u8; 512];
        let buffer = area.as_mut_ptr().cast();
        assert_eq!((HVF.hv_vcpu_read_fpstate)(id, buffer, area.len()), HV_BAD_ARGUMENT);
        assert_eq!((HVF.hv_vcpu_destroy)(id), HV_SUCCESS);
        assert_eq!((HVF.hv_vm_destroy)(), HV_SUCCESS);
    }
}

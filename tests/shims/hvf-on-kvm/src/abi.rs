//! The functions as C has them.

use std::ffi::c_void;
use std::{ptr, slice};

use cabana_hv_hvf::{Exit, Functions, HV_BAD_ARGUMENT, HV_SUCCESS, Timebase, Vector};

use crate::objects::{self, Object};
use crate::{Answer, code, gic, machine, registers, vcpu};

/// The functions, by Apple's names.
pub const FUNCTIONS: Functions = Functions {
    hv_vm_config_create,
    hv_vm_config_get_max_ipa_size,
    hv_vm_config_set_ipa_size,
    hv_vm_create,
    hv_vm_destroy,
    hv_vm_get_max_vcpu_count,
    hv_vm_map,
    hv_vm_unmap,
    hv_vm_protect,
    hv_vcpu_create,
    hv_vcpu_destroy,
    hv_vcpu_run,
    hv_vcpus_exit,
    hv_vcpu_get_reg,
    hv_vcpu_set_reg,
    hv_vcpu_get_simd_fp_reg,
    hv_vcpu_set_simd_fp_reg,
    hv_vcpu_get_sys_reg,
    hv_vcpu_set_sys_reg,
    hv_vcpu_set_vtimer_mask,
    hv_vcpu_set_vtimer_offset,
    hv_gic_config_create,
    hv_gic_config_set_distributor_base,
    hv_gic_config_set_redistributor_base,
    hv_gic_create,
    hv_gic_get_spi_interrupt_range,
    hv_gic_set_spi,
    hv_gic_get_icc_reg,
    hv_gic_set_icc_reg,
    hv_gic_state_create,
    hv_gic_state_get_size,
    hv_gic_state_get_data,
    hv_gic_set_state,
    os_release,
    mach_absolute_time,
    mach_timebase_info,
};

/// Writes an answer where the caller wants it.
///
/// # Safety
/// `place` is null, which is refused, or may be written.
unsafe fn answer<T>(place: *mut T, value: Answer<T>) -> i32 {
    if place.is_null() {
        return HV_BAD_ARGUMENT;
    }
    match value {
        Ok(value) => {
            // SAFETY: the caller's word.
            unsafe { place.write(value) };
            HV_SUCCESS
        }
        Err(code) => code,
    }
}

unsafe extern "C" fn hv_vm_config_create() -> *mut c_void {
    objects::keep(Object::Vm { address_bits: machine::ADDRESS_BITS })
}

unsafe extern "C" fn hv_vm_config_get_max_ipa_size(bits: *mut u32) -> i32 {
    // SAFETY: the vendor's rule.
    unsafe { answer(bits, machine::max_address_bits()) }
}

unsafe extern "C" fn hv_vm_config_set_ipa_size(config: *mut c_void, bits: u32) -> i32 {
    code(machine::max_address_bits().and_then(|most| {
        objects::with(config, |config| match config {
            Object::Vm { address_bits } if (32..=most).contains(&bits) => {
                *address_bits = bits;
                Ok(())
            }
            _ => Err(HV_BAD_ARGUMENT),
        })
    }))
}

unsafe extern "C" fn hv_vm_create(config: *mut c_void) -> i32 {
    let bits = if config.is_null() {
        Ok(machine::ADDRESS_BITS)
    } else {
        objects::with(config, |config| match config {
            Object::Vm { address_bits } => Ok(*address_bits),
            _ => Err(HV_BAD_ARGUMENT),
        })
    };
    code(bits.and_then(machine::create))
}

unsafe extern "C" fn hv_vm_destroy() -> i32 {
    code(machine::destroy())
}

unsafe extern "C" fn hv_vm_get_max_vcpu_count(count: *mut u32) -> i32 {
    // SAFETY: the vendor's rule.
    unsafe { answer(count, Ok(machine::MAX_VCPUS)) }
}

unsafe extern "C" fn hv_vm_map(host: *mut c_void, guest: u64, len: usize, flags: u64) -> i32 {
    let machine = machine::machine();
    code(machine.and_then(|machine| {
        machine.change(|memory, vm| memory.map(vm, host.addr() as u64, guest, len as u64, flags))
    }))
}

unsafe extern "C" fn hv_vm_unmap(guest: u64, len: usize) -> i32 {
    let machine = machine::machine();
    code(
        machine
            .and_then(|machine| machine.change(|memory, vm| memory.unmap(vm, guest, len as u64))),
    )
}

unsafe extern "C" fn hv_vm_protect(guest: u64, len: usize, flags: u64) -> i32 {
    let machine = machine::machine();
    code(machine.and_then(|machine| {
        machine.change(|memory, vm| memory.protect(vm, guest, len as u64, flags))
    }))
}

unsafe extern "C" fn hv_vcpu_create(
    id: *mut u64,
    exit: *mut *const Exit,
    config: *mut c_void,
) -> i32 {
    // There are no configurations here.
    if id.is_null() || exit.is_null() || !config.is_null() {
        return HV_BAD_ARGUMENT;
    }
    code(vcpu::create().map(|(number, place)| {
        // SAFETY: the vendor's rule.
        unsafe {
            id.write(number);
            exit.write(place);
        }
    }))
}

unsafe extern "C" fn hv_vcpu_destroy(id: u64) -> i32 {
    code(vcpu::destroy(id))
}

unsafe extern "C" fn hv_vcpu_run(id: u64) -> i32 {
    code(vcpu::with(id, vcpu::Vcpu::run))
}

unsafe extern "C" fn hv_vcpus_exit(ids: *const u64, count: u32) -> i32 {
    if ids.is_null() {
        return HV_BAD_ARGUMENT;
    }
    // SAFETY: the vendor's rule.
    let ids = unsafe { slice::from_raw_parts(ids, count as usize) };
    code(machine::machine().and_then(|machine| {
        let handles = machine::lock(&machine.handles);
        for id in ids {
            handles.get(id).ok_or(HV_BAD_ARGUMENT)?.cancel();
        }
        Ok(())
    }))
}

unsafe extern "C" fn hv_vcpu_get_reg(id: u64, name: u32, value: *mut u64) -> i32 {
    // SAFETY: the vendor's rule.
    unsafe { answer(value, vcpu::with(id, |vcpu| registers::get(vcpu.fd()?, name))) }
}

unsafe extern "C" fn hv_vcpu_set_reg(id: u64, name: u32, value: u64) -> i32 {
    code(vcpu::with(id, |vcpu| registers::set(vcpu.fd()?, name, value)))
}

unsafe extern "C" fn hv_vcpu_get_simd_fp_reg(id: u64, name: u32, value: *mut Vector) -> i32 {
    // SAFETY: the vendor's rule; a vector is any 16 bytes.
    unsafe {
        answer(value.cast::<u128>(), vcpu::with(id, |vcpu| registers::get_vector(vcpu.fd()?, name)))
    }
}

#[allow(improper_ctypes_definitions, reason = "vectors are passed as C passes them")]
unsafe extern "C" fn hv_vcpu_set_simd_fp_reg(id: u64, name: u32, value: Vector) -> i32 {
    // SAFETY: a vector is 16 bytes.
    let value = unsafe { (&raw const value).cast::<u128>().read() };
    code(vcpu::with(id, |vcpu| registers::set_vector(vcpu.fd()?, name, value)))
}

unsafe extern "C" fn hv_vcpu_get_sys_reg(id: u64, name: u16, value: *mut u64) -> i32 {
    // SAFETY: the vendor's rule.
    unsafe { answer(value, vcpu::with(id, |vcpu| vcpu.get_system(name))) }
}

unsafe extern "C" fn hv_vcpu_set_sys_reg(id: u64, name: u16, value: u64) -> i32 {
    code(vcpu::with(id, |vcpu| vcpu.set_system(name, value)))
}

unsafe extern "C" fn hv_vcpu_set_vtimer_mask(id: u64, _masked: bool) -> i32 {
    // The interrupt controller sees the timer itself, so that it never comes back for it.
    code(vcpu::with(id, |_| Ok(())))
}

unsafe extern "C" fn hv_vcpu_set_vtimer_offset(id: u64, offset: u64) -> i32 {
    code(vcpu::with(id, |vcpu| vcpu.machine().set_offset(offset)))
}

unsafe extern "C" fn hv_gic_config_create() -> *mut c_void {
    objects::keep(Object::Gic { distributor: None, redistributors: None })
}

unsafe extern "C" fn hv_gic_config_set_distributor_base(config: *mut c_void, at: u64) -> i32 {
    code(objects::with(config, |config| match config {
        Object::Gic { distributor, .. } => {
            *distributor = Some(at);
            Ok(())
        }
        _ => Err(HV_BAD_ARGUMENT),
    }))
}

unsafe extern "C" fn hv_gic_config_set_redistributor_base(config: *mut c_void, at: u64) -> i32 {
    code(objects::with(config, |config| match config {
        Object::Gic { redistributors, .. } => {
            *redistributors = Some(at);
            Ok(())
        }
        _ => Err(HV_BAD_ARGUMENT),
    }))
}

unsafe extern "C" fn hv_gic_create(config: *mut c_void) -> i32 {
    let places = objects::with(config, |config| match config {
        Object::Gic { distributor: Some(distributor), redistributors: Some(redistributors) } => {
            Ok((*distributor, *redistributors))
        }
        _ => Err(HV_BAD_ARGUMENT),
    });
    code(places.and_then(|(distributor, redistributors)| {
        machine::machine()?.create_gic(distributor, redistributors)
    }))
}

unsafe extern "C" fn hv_gic_get_spi_interrupt_range(first: *mut u32, count: *mut u32) -> i32 {
    // SAFETY: the vendor's rule.
    match unsafe { answer(first, Ok(gic::FIRST)) } {
        // SAFETY: the vendor's rule.
        HV_SUCCESS => unsafe { answer(count, Ok(gic::COUNT)) },
        refused => refused,
    }
}

unsafe extern "C" fn hv_gic_set_spi(interrupt: u32, level: bool) -> i32 {
    code(machine::machine().and_then(|machine| machine.set_spi(interrupt, level)))
}

unsafe extern "C" fn hv_gic_get_icc_reg(id: u64, name: u16, value: *mut u64) -> i32 {
    let read = vcpu::with(id, |vcpu| {
        let index = vcpu.index()?;
        vcpu.machine().gic()?.interface(index, name)
    });
    // SAFETY: the vendor's rule.
    unsafe { answer(value, read) }
}

unsafe extern "C" fn hv_gic_set_icc_reg(id: u64, name: u16, value: u64) -> i32 {
    code(vcpu::with(id, |vcpu| {
        let index = vcpu.index()?;
        vcpu.machine().gic()?.set_interface(index, name, value)
    }))
}

unsafe extern "C" fn hv_gic_state_create() -> *mut c_void {
    let state = machine::machine().and_then(|machine| machine.gic_state());
    state.map_or(ptr::null_mut(), |state| objects::keep(Object::State(state)))
}

/// What `use_it` makes of a state.
fn with_state<T>(state: *mut c_void, use_it: impl FnOnce(&[u8]) -> T) -> Answer<T> {
    objects::with(state, |state| match state {
        Object::State(state) => Ok(use_it(state)),
        _ => Err(HV_BAD_ARGUMENT),
    })
}

unsafe extern "C" fn hv_gic_state_get_size(state: *mut c_void, size: *mut usize) -> i32 {
    // SAFETY: the vendor's rule.
    unsafe { answer(size, with_state(state, <[u8]>::len)) }
}

unsafe extern "C" fn hv_gic_state_get_data(state: *mut c_void, data: *mut c_void) -> i32 {
    if data.is_null() {
        return HV_BAD_ARGUMENT;
    }
    // SAFETY: there is room for as much as `hv_gic_state_get_size` says, by the vendor's rule.
    code(with_state(state, |state| unsafe {
        data.cast::<u8>().copy_from_nonoverlapping(state.as_ptr(), state.len());
    }))
}

unsafe extern "C" fn hv_gic_set_state(data: *const c_void, size: usize) -> i32 {
    if data.is_null() {
        return HV_BAD_ARGUMENT;
    }
    // SAFETY: the vendor's rule.
    let state = unsafe { slice::from_raw_parts(data.cast::<u8>(), size) };
    code(machine::machine().and_then(|machine| machine.set_gic_state(state)))
}

unsafe extern "C" fn os_release(object: *mut c_void) {
    objects::release(object);
}

unsafe extern "C" fn mach_absolute_time() -> u64 {
    let counter: u64;
    // SAFETY: Linux lets programs read the counter, to which the guest's is relative.
    unsafe { std::arch::asm!("isb", "mrs {}, cntvct_el0", out(reg) counter, options(nostack)) };
    counter
}

unsafe extern "C" fn mach_timebase_info(base: *mut Timebase) -> i32 {
    let hertz: u64;
    // SAFETY: Linux lets programs read it.
    unsafe { std::arch::asm!("mrs {}, cntfrq_el0", out(reg) hertz, options(nomem, nostack)) };
    // SAFETY: the vendor's rule.
    unsafe { answer(base, Ok(Timebase { numer: 1_000_000_000, denom: hertz as u32 })) }
}

//! The functions as C has them.

use std::arch::x86_64::_rdtsc;
use std::ffi::c_void;
use std::slice;

use cabana_hv_hvf::intel::Functions;
use cabana_hv_hvf::{HV_BAD_ARGUMENT, HV_SUCCESS, Timebase};

use crate::{Answer, code, fields, host, machine, vcpu};

/// The functions, by Apple's names.
pub const FUNCTIONS: Functions = Functions {
    hv_capability,
    hv_vm_create,
    hv_vm_destroy,
    hv_vm_map,
    hv_vm_unmap,
    hv_vm_protect,
    hv_vcpu_create,
    hv_vcpu_destroy,
    hv_vcpu_run_until,
    hv_vcpu_interrupt,
    hv_vcpu_read_register,
    hv_vcpu_write_register,
    hv_vcpu_read_fpstate,
    hv_vcpu_write_fpstate,
    hv_vcpu_enable_native_msr,
    hv_vcpu_read_msr,
    hv_vcpu_write_msr,
    hv_tsc_clock,
    hv_vcpu_set_tsc_relative,
    hv_vmx_read_capability,
    hv_vmx_vcpu_read_vmcs,
    hv_vmx_vcpu_write_vmcs,
    mach_absolute_time,
    mach_timebase_info,
};

/// Bytes of the vector registers' area.
const AREA: usize = 4096;

/// Model-specific registers that may be native.
fn may_be_native(msr: u32) -> bool {
    matches!(msr, 0x10 | 0x174..=0x176 | 0xc000_0081..=0xc000_0084 | 0xc000_0100..=0xc000_0103)
}

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

unsafe extern "C" fn hv_capability(capability: u64, value: *mut u64) -> i32 {
    // `HV_CAP_VCPUMAX` and `HV_CAP_ADDRSPACEMAX`.
    let known = match capability {
        0 => Ok(machine::MAX_VCPUS.into()),
        1 => Ok(1),
        _ => Err(HV_BAD_ARGUMENT),
    };
    // SAFETY: the vendor's rule.
    unsafe { answer(value, known) }
}

unsafe extern "C" fn hv_vm_create(flags: u64) -> i32 {
    if flags != 0 {
        return HV_BAD_ARGUMENT;
    }
    code(machine::create())
}

unsafe extern "C" fn hv_vm_destroy() -> i32 {
    code(machine::destroy())
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

unsafe extern "C" fn hv_vcpu_create(id: *mut u32, flags: u64) -> i32 {
    if id.is_null() || flags != 0 {
        return HV_BAD_ARGUMENT;
    }
    // SAFETY: the vendor's rule.
    unsafe { answer(id, vcpu::create()) }
}

unsafe extern "C" fn hv_vcpu_destroy(id: u32) -> i32 {
    code(vcpu::destroy(id))
}

unsafe extern "C" fn hv_vcpu_run_until(id: u32, deadline: u64) -> i32 {
    code(vcpu::with(id, |vcpu| vcpu.run(deadline)))
}

unsafe extern "C" fn hv_vcpu_interrupt(ids: *mut u32, count: u32) -> i32 {
    if ids.is_null() {
        return HV_BAD_ARGUMENT;
    }
    // SAFETY: the vendor's rule.
    let ids = unsafe { slice::from_raw_parts(ids, count as usize) };
    code(machine::machine().and_then(|machine| {
        let handles = machine::lock(&machine.handles);
        for id in ids {
            handles.get(id).ok_or(HV_BAD_ARGUMENT)?.force_exit();
        }
        Ok(())
    }))
}

unsafe extern "C" fn hv_vcpu_read_register(id: u32, register: u32, value: *mut u64) -> i32 {
    // SAFETY: the vendor's rule.
    unsafe { answer(value, vcpu::with(id, |vcpu| vcpu.state.register(register))) }
}

unsafe extern "C" fn hv_vcpu_write_register(id: u32, register: u32, value: u64) -> i32 {
    code(vcpu::with(id, |vcpu| vcpu.state.set_register(register, value)))
}

unsafe extern "C" fn hv_vcpu_read_fpstate(id: u32, buffer: *mut c_void, size: usize) -> i32 {
    if buffer.is_null() || size != AREA {
        return HV_BAD_ARGUMENT;
    }
    // SAFETY: the buffer has that size, by the vendor's rule.
    code(vcpu::with(id, |vcpu| vcpu.vectors()).map(|area| unsafe {
        buffer.cast::<u8>().copy_from_nonoverlapping(area.as_ptr().cast(), AREA);
    }))
}

unsafe extern "C" fn hv_vcpu_write_fpstate(id: u32, buffer: *mut c_void, size: usize) -> i32 {
    if buffer.is_null() || size != AREA {
        return HV_BAD_ARGUMENT;
    }
    // SAFETY: the vendor's rule.
    let area = unsafe { slice::from_raw_parts(buffer.cast::<u8>(), size) };
    code(vcpu::with(id, |vcpu| vcpu.set_vectors(area)))
}

unsafe extern "C" fn hv_vcpu_enable_native_msr(id: u32, msr: u32, enable: bool) -> i32 {
    code(vcpu::with(id, |vcpu| {
        if may_be_native(msr) {
            vcpu.machine().set_native(msr, enable)
        } else {
            Err(HV_BAD_ARGUMENT)
        }
    }))
}

unsafe extern "C" fn hv_vcpu_read_msr(id: u32, msr: u32, value: *mut u64) -> i32 {
    let read =
        vcpu::with(
            id,
            |vcpu| {
                if may_be_native(msr) { vcpu.state.msr(msr) } else { Err(HV_BAD_ARGUMENT) }
            },
        );
    // SAFETY: the vendor's rule.
    unsafe { answer(value, read) }
}

unsafe extern "C" fn hv_vcpu_write_msr(id: u32, msr: u32, value: u64) -> i32 {
    code(vcpu::with(id, |vcpu| {
        if may_be_native(msr) { vcpu.state.set_msr(msr, value) } else { Err(HV_BAD_ARGUMENT) }
    }))
}

unsafe extern "C" fn hv_tsc_clock() -> u64 {
    // SAFETY: Linux lets programs read it.
    unsafe { _rdtsc() }
}

unsafe extern "C" fn hv_vcpu_set_tsc_relative(id: u32, offset: i64) -> i32 {
    code(vcpu::with(id, |vcpu| vcpu.set_tsc_offset(offset)))
}

unsafe extern "C" fn hv_vmx_read_capability(capability: u32, value: *mut u64) -> i32 {
    let found = fields::capability(capability).map(|(must, may)| must | may << 32);
    // SAFETY: the vendor's rule.
    unsafe { answer(value, found) }
}

unsafe extern "C" fn hv_vmx_vcpu_read_vmcs(id: u32, field: u32, value: *mut u64) -> i32 {
    // SAFETY: the vendor's rule.
    unsafe { answer(value, vcpu::with(id, |vcpu| vcpu.state.field(field))) }
}

unsafe extern "C" fn hv_vmx_vcpu_write_vmcs(id: u32, field: u32, value: u64) -> i32 {
    code(vcpu::with(id, |vcpu| vcpu.state.set_field(field, value)))
}

unsafe extern "C" fn mach_absolute_time() -> u64 {
    host::now()
}

unsafe extern "C" fn mach_timebase_info(base: *mut Timebase) -> i32 {
    // SAFETY: the vendor's rule.
    unsafe { answer(base, Ok(Timebase { numer: 1, denom: 1 })) }
}

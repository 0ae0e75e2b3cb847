//! The functions themselves: pointers in, `HRESULT` out; arguments are checked here.

use std::ffi::c_void;
use std::sync::Arc;

use cabana_hv_whp::Functions;
use windows_sys::Win32::Foundation::{
    E_INVALIDARG, E_POINTER, HANDLE, S_OK, WHV_E_INSUFFICIENT_BUFFER,
};
use windows_sys::Win32::System::Hypervisor::*;
use windows_sys::core::HRESULT;

use crate::partition::{self, Partition};
use crate::processor::Processor;
use crate::{Answer, cpuid};

/// The interrupt controller's state is one page.
const APIC_PAGE: usize = 4096;

pub(crate) const FUNCTIONS: Functions = Functions {
    get_capability,
    create_partition,
    delete_partition,
    set_partition_property,
    setup_partition,
    map_gpa_range,
    unmap_gpa_range,
    query_gpa_range_dirty_bitmap,
    translate_gva,
    register_partition_doorbell_event,
    request_interrupt,
    create_virtual_processor,
    delete_virtual_processor,
    run_virtual_processor,
    cancel_run_virtual_processor,
    get_virtual_processor_registers,
    set_virtual_processor_registers,
    get_virtual_processor_cpuid_output,
    get_virtual_processor_xsave_state,
    set_virtual_processor_xsave_state,
    get_virtual_processor_interrupt_controller_state2,
    set_virtual_processor_interrupt_controller_state2,
};

fn result(answer: Answer<()>) -> HRESULT {
    answer.err().unwrap_or(S_OK)
}

/// Writes `value` into a buffer of `room` bytes.
///
/// # Safety
/// `buffer` is null or has that room.
unsafe fn put<T>(buffer: *mut c_void, room: u32, value: T) -> Answer<()> {
    if (room as usize) < size_of::<T>() {
        return Err(WHV_E_INSUFFICIENT_BUFFER);
    }
    // SAFETY: the caller's word, and the check above.
    unsafe { store(buffer.cast(), value) }
}

/// # Safety
/// `place` is null or may be written.
unsafe fn store<T>(place: *mut T, value: T) -> Answer<()> {
    if place.is_null() {
        return Err(E_POINTER);
    }
    // SAFETY: the caller's word; nothing is assumed of its alignment.
    unsafe { place.write_unaligned(value) };
    Ok(())
}

/// # Safety
/// `list` is null or has `count` elements.
unsafe fn list<'a, T>(list: *const T, count: u32) -> Answer<&'a [T]> {
    if list.is_null() || !list.is_aligned() {
        return Err(E_INVALIDARG);
    }
    // SAFETY: the caller's word, and the check above.
    Ok(unsafe { std::slice::from_raw_parts(list, count as usize) })
}

fn find(handle: WHV_PARTITION_HANDLE) -> Answer<Arc<Partition>> {
    partition::find(handle)
}

fn processor(handle: WHV_PARTITION_HANDLE, index: u32) -> Answer<Arc<Processor>> {
    find(handle)?.processor(index)
}

unsafe extern "system" fn get_capability(
    code: WHV_CAPABILITY_CODE,
    buffer: *mut c_void,
    room: u32,
    written: *mut u32,
) -> HRESULT {
    result(partition::capability(code).and_then(|value| {
        // SAFETY: the caller's buffers.
        unsafe {
            put(buffer, room, value)?;
            if written.is_null() { Ok(()) } else { store(written, size_of_val(&value) as u32) }
        }
    }))
}

unsafe extern "system" fn create_partition(handle: *mut WHV_PARTITION_HANDLE) -> HRESULT {
    // SAFETY: the caller's pointer.
    result(unsafe { store(handle, partition::create()) })
}

unsafe extern "system" fn delete_partition(handle: WHV_PARTITION_HANDLE) -> HRESULT {
    result(partition::delete(handle))
}

unsafe extern "system" fn set_partition_property(
    handle: WHV_PARTITION_HANDLE,
    code: WHV_PARTITION_PROPERTY_CODE,
    buffer: *const c_void,
    len: u32,
) -> HRESULT {
    let set = || {
        // SAFETY: the caller's buffer.
        let bytes = unsafe { list(buffer.cast::<u8>(), len) }?;
        find(handle)?.set_property(code, bytes)
    };
    result(set())
}

unsafe extern "system" fn setup_partition(handle: WHV_PARTITION_HANDLE) -> HRESULT {
    result(find(handle).and_then(|partition| partition.set_up()))
}

unsafe extern "system" fn map_gpa_range(
    handle: WHV_PARTITION_HANDLE,
    source: *const c_void,
    guest: u64,
    len: u64,
    flags: WHV_MAP_GPA_RANGE_FLAGS,
) -> HRESULT {
    result(find(handle).and_then(|partition| partition.map(source as usize, guest, len, flags)))
}

unsafe extern "system" fn unmap_gpa_range(
    handle: WHV_PARTITION_HANDLE,
    guest: u64,
    len: u64,
) -> HRESULT {
    result(find(handle).and_then(|partition| partition.unmap(guest, len)))
}

unsafe extern "system" fn query_gpa_range_dirty_bitmap(
    handle: WHV_PARTITION_HANDLE,
    guest: u64,
    len: u64,
    bitmap: *mut u64,
    room: u32,
) -> HRESULT {
    let query = || {
        let dirty = find(handle)?.dirty(guest, len)?;
        if (room as usize) < size_of_val(dirty.as_slice()) {
            return Err(WHV_E_INSUFFICIENT_BUFFER);
        }
        for (at, word) in dirty.into_iter().enumerate() {
            // SAFETY: the caller's buffer has the room, by the check above.
            unsafe { store(bitmap.wrapping_add(at), word) }?;
        }
        Ok(())
    };
    result(query())
}

unsafe extern "system" fn translate_gva(
    handle: WHV_PARTITION_HANDLE,
    index: u32,
    gva: u64,
    flags: WHV_TRANSLATE_GVA_FLAGS,
    translated: *mut WHV_TRANSLATE_GVA_RESULT,
    gpa: *mut u64,
) -> HRESULT {
    let translate = || {
        let (code, guest) = processor(handle, index)?.translate(gva, flags)?;
        // SAFETY: the caller's pointers.
        unsafe {
            store(translated, WHV_TRANSLATE_GVA_RESULT { ResultCode: code, Reserved: 0 })?;
            store(gpa, guest)
        }
    };
    result(translate())
}

unsafe extern "system" fn register_partition_doorbell_event(
    handle: WHV_PARTITION_HANDLE,
    data: *const WHV_DOORBELL_MATCH_DATA,
    event: HANDLE,
) -> HRESULT {
    let register = || {
        // SAFETY: the caller's structure.
        let [data] = unsafe { list(data, 1) }? else { return Err(E_INVALIDARG) };
        find(handle)?.doorbell(data, event as usize as i32)
    };
    result(register())
}

unsafe extern "system" fn request_interrupt(
    handle: WHV_PARTITION_HANDLE,
    interrupt: *const WHV_INTERRUPT_CONTROL,
    len: u32,
) -> HRESULT {
    let request = || {
        if len as usize != size_of::<WHV_INTERRUPT_CONTROL>() {
            return Err(E_INVALIDARG);
        }
        // SAFETY: the caller's structure.
        let [interrupt] = unsafe { list(interrupt, 1) }? else { return Err(E_INVALIDARG) };
        find(handle)?.interrupt(interrupt)
    };
    result(request())
}

unsafe extern "system" fn create_virtual_processor(
    handle: WHV_PARTITION_HANDLE,
    index: u32,
    flags: u32,
) -> HRESULT {
    if flags != 0 {
        return E_INVALIDARG;
    }
    result(find(handle).and_then(|partition| partition.create_processor(index)))
}

unsafe extern "system" fn delete_virtual_processor(
    handle: WHV_PARTITION_HANDLE,
    index: u32,
) -> HRESULT {
    result(find(handle).and_then(|partition| partition.delete_processor(index)))
}

unsafe extern "system" fn run_virtual_processor(
    handle: WHV_PARTITION_HANDLE,
    index: u32,
    context: *mut c_void,
    room: u32,
) -> HRESULT {
    let run = || {
        if (room as usize) < size_of::<WHV_RUN_VP_EXIT_CONTEXT>() {
            return Err(WHV_E_INSUFFICIENT_BUFFER);
        }
        let exit = processor(handle, index)?.run()?;
        // SAFETY: the caller's buffer.
        unsafe { put(context, room, exit) }
    };
    result(run())
}

unsafe extern "system" fn cancel_run_virtual_processor(
    handle: WHV_PARTITION_HANDLE,
    index: u32,
    flags: u32,
) -> HRESULT {
    if flags != 0 {
        return E_INVALIDARG;
    }
    result(processor(handle, index).map(|processor| processor.cancel()))
}

/// The vendor's header aligns values to 16 bytes.
fn check_values(values: *const WHV_REGISTER_VALUE) -> Answer<()> {
    if wide(values).is_aligned() { Ok(()) } else { Err(E_INVALIDARG) }
}

/// Values as numbers of 128 bits.
#[allow(clippy::cast_ptr_alignment, reason = "who uses it checks it")]
fn wide(values: *const WHV_REGISTER_VALUE) -> *const u128 {
    values.cast()
}

unsafe extern "system" fn get_virtual_processor_registers(
    handle: WHV_PARTITION_HANDLE,
    index: u32,
    names: *const WHV_REGISTER_NAME,
    count: u32,
    values: *mut WHV_REGISTER_VALUE,
) -> HRESULT {
    let get = || {
        check_values(values)?;
        // SAFETY: the caller's lists.
        let names = unsafe { list(names, count) }?;
        for (at, value) in processor(handle, index)?.get(names)?.into_iter().enumerate() {
            // SAFETY: as many values as names.
            unsafe { store(wide(values).cast_mut().wrapping_add(at), value) }?;
        }
        Ok(())
    };
    result(get())
}

unsafe extern "system" fn set_virtual_processor_registers(
    handle: WHV_PARTITION_HANDLE,
    index: u32,
    names: *const WHV_REGISTER_NAME,
    count: u32,
    values: *const WHV_REGISTER_VALUE,
) -> HRESULT {
    let set = || {
        check_values(values)?;
        // SAFETY: the caller's lists.
        let (names, values) = unsafe { (list(names, count)?, list(wide(values), count)?) };
        processor(handle, index)?.set(names, values)
    };
    result(set())
}

unsafe extern "system" fn get_virtual_processor_cpuid_output(
    handle: WHV_PARTITION_HANDLE,
    index: u32,
    eax: u32,
    ecx: u32,
    output: *mut WHV_CPUID_OUTPUT,
) -> HRESULT {
    let get = || {
        let answer = cpuid::answer(&processor(handle, index)?.cpuid, eax, ecx);
        // SAFETY: the caller's pointer.
        unsafe { store(output, answer) }
    };
    result(get())
}

unsafe extern "system" fn get_virtual_processor_xsave_state(
    handle: WHV_PARTITION_HANDLE,
    index: u32,
    buffer: *mut c_void,
    room: u32,
    written: *mut u32,
) -> HRESULT {
    let get = || {
        let area = processor(handle, index)?.xsave()?;
        // SAFETY: the caller's buffers.
        unsafe {
            store(written, size_of_val(&area) as u32)?;
            put(buffer, room, area)
        }
    };
    result(get())
}

unsafe extern "system" fn set_virtual_processor_xsave_state(
    handle: WHV_PARTITION_HANDLE,
    index: u32,
    buffer: *const c_void,
    len: u32,
) -> HRESULT {
    let set = || {
        // SAFETY: the caller's buffer.
        let bytes = unsafe { list(buffer.cast::<u8>(), len) }?;
        processor(handle, index)?.set_xsave(bytes)
    };
    result(set())
}

unsafe extern "system" fn get_virtual_processor_interrupt_controller_state2(
    handle: WHV_PARTITION_HANDLE,
    index: u32,
    buffer: *mut c_void,
    room: u32,
    written: *mut u32,
) -> HRESULT {
    let get = || {
        let mut page = [0u8; APIC_PAGE];
        let registers = processor(handle, index)?.apic()?;
        page[..registers.len()].copy_from_slice(&registers);
        // SAFETY: the caller's buffers.
        unsafe {
            put(buffer, room, page)?;
            if written.is_null() { Ok(()) } else { store(written, APIC_PAGE as u32) }
        }
    };
    result(get())
}

unsafe extern "system" fn set_virtual_processor_interrupt_controller_state2(
    handle: WHV_PARTITION_HANDLE,
    index: u32,
    buffer: *const c_void,
    len: u32,
) -> HRESULT {
    let set = || {
        if len as usize != APIC_PAGE {
            return Err(E_INVALIDARG);
        }
        // SAFETY: the caller's buffer.
        let page = unsafe { list(buffer.cast::<u8>(), len) }?;
        processor(handle, index)?.set_apic(page)
    };
    result(set())
}

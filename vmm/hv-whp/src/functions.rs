//! The functions of `WinHvPlatform.dll` that are used, and their errors.

use std::ffi::c_void;

use cabana_hv::HvError;
use windows_sys::Win32::Foundation::{
    E_ACCESSDENIED, E_INVALIDARG, E_OUTOFMEMORY, ERROR_HV_NOT_PRESENT, HANDLE,
    WHV_E_GPA_RANGE_NOT_FOUND, WHV_E_INSUFFICIENT_BUFFER, WHV_E_INVALID_PARTITION_CONFIG,
    WHV_E_INVALID_VP_REGISTER_NAME, WHV_E_INVALID_VP_STATE, WHV_E_UNKNOWN_CAPABILITY,
    WHV_E_UNKNOWN_PROPERTY,
};
use windows_sys::Win32::System::Hypervisor::{
    WHV_CAPABILITY_CODE, WHV_CPUID_OUTPUT, WHV_DOORBELL_MATCH_DATA, WHV_INTERRUPT_CONTROL,
    WHV_MAP_GPA_RANGE_FLAGS, WHV_PARTITION_HANDLE, WHV_PARTITION_PROPERTY_CODE, WHV_REGISTER_NAME,
    WHV_REGISTER_VALUE, WHV_TRANSLATE_GVA_FLAGS, WHV_TRANSLATE_GVA_RESULT,
};
use windows_sys::core::HRESULT;

/// Declares the table, and how it is filled from a library.
macro_rules! functions {
    ($($field:ident: $name:ident($($argument:ty),*);)*) => {
        /// The functions of the Windows Hypervisor Platform that Cabana calls, by Microsoft's names.
        #[derive(Clone, Copy, Debug)]
        #[allow(missing_docs, reason = "documented by their vendor")]
        pub struct Functions {
            $(pub $field: unsafe extern "system" fn($($argument),*) -> HRESULT,)*
        }

        impl Functions {
            /// Finds each function by its name; the name of the first that is missing.
            #[cfg(windows)]
            fn find(
                find: impl Fn(*const u8) -> windows_sys::Win32::Foundation::FARPROC,
            ) -> Result<Self, &'static str> {
                Ok(Self {
                    $($field: {
                        let name = concat!(stringify!($name), "\0");
                        let found = find(name.as_ptr()).ok_or(stringify!($name))?;
                        // SAFETY: the vendor's function of this name has these arguments.
                        unsafe {
                            std::mem::transmute::<
                                unsafe extern "system" fn() -> isize,
                                unsafe extern "system" fn($($argument),*) -> HRESULT,
                            >(found)
                        }
                    },)*
                })
            }
        }
    };
}

functions! {
    get_capability: WHvGetCapability(WHV_CAPABILITY_CODE, *mut c_void, u32, *mut u32);
    create_partition: WHvCreatePartition(*mut WHV_PARTITION_HANDLE);
    delete_partition: WHvDeletePartition(WHV_PARTITION_HANDLE);
    set_partition_property: WHvSetPartitionProperty(WHV_PARTITION_HANDLE, WHV_PARTITION_PROPERTY_CODE, *const c_void, u32);
    setup_partition: WHvSetupPartition(WHV_PARTITION_HANDLE);
    map_gpa_range: WHvMapGpaRange(WHV_PARTITION_HANDLE, *const c_void, u64, u64, WHV_MAP_GPA_RANGE_FLAGS);
    unmap_gpa_range: WHvUnmapGpaRange(WHV_PARTITION_HANDLE, u64, u64);
    query_gpa_range_dirty_bitmap: WHvQueryGpaRangeDirtyBitmap(WHV_PARTITION_HANDLE, u64, u64, *mut u64, u32);
    translate_gva: WHvTranslateGva(WHV_PARTITION_HANDLE, u32, u64, WHV_TRANSLATE_GVA_FLAGS, *mut WHV_TRANSLATE_GVA_RESULT, *mut u64);
    register_partition_doorbell_event: WHvRegisterPartitionDoorbellEvent(WHV_PARTITION_HANDLE, *const WHV_DOORBELL_MATCH_DATA, HANDLE);
    request_interrupt: WHvRequestInterrupt(WHV_PARTITION_HANDLE, *const WHV_INTERRUPT_CONTROL, u32);
    create_virtual_processor: WHvCreateVirtualProcessor(WHV_PARTITION_HANDLE, u32, u32);
    delete_virtual_processor: WHvDeleteVirtualProcessor(WHV_PARTITION_HANDLE, u32);
    run_virtual_processor: WHvRunVirtualProcessor(WHV_PARTITION_HANDLE, u32, *mut c_void, u32);
    cancel_run_virtual_processor: WHvCancelRunVirtualProcessor(WHV_PARTITION_HANDLE, u32, u32);
    get_virtual_processor_registers: WHvGetVirtualProcessorRegisters(WHV_PARTITION_HANDLE, u32, *const WHV_REGISTER_NAME, u32, *mut WHV_REGISTER_VALUE);
    set_virtual_processor_registers: WHvSetVirtualProcessorRegisters(WHV_PARTITION_HANDLE, u32, *const WHV_REGISTER_NAME, u32, *const WHV_REGISTER_VALUE);
    get_virtual_processor_cpuid_output: WHvGetVirtualProcessorCpuidOutput(WHV_PARTITION_HANDLE, u32, u32, u32, *mut WHV_CPUID_OUTPUT);
    get_virtual_processor_xsave_state: WHvGetVirtualProcessorXsaveState(WHV_PARTITION_HANDLE, u32, *mut c_void, u32, *mut u32);
    set_virtual_processor_xsave_state: WHvSetVirtualProcessorXsaveState(WHV_PARTITION_HANDLE, u32, *const c_void, u32);
    get_virtual_processor_interrupt_controller_state2: WHvGetVirtualProcessorInterruptControllerState2(WHV_PARTITION_HANDLE, u32, *mut c_void, u32, *mut u32);
    set_virtual_processor_interrupt_controller_state2: WHvSetVirtualProcessorInterruptControllerState2(WHV_PARTITION_HANDLE, u32, *const c_void, u32);
}

impl Functions {
    /// Those of this Windows, out of a library that it has only where the feature is on.
    #[cfg(windows)]
    pub fn load() -> Result<Self, HvError> {
        use windows_sys::Win32::Foundation::GetLastError;
        use windows_sys::Win32::System::LibraryLoader::{
            GetProcAddress, LOAD_LIBRARY_SEARCH_SYSTEM32, LoadLibraryExW,
        };

        let name: Vec<u16> = "WinHvPlatform.dll\0".encode_utf16().collect();
        // SAFETY: the name ends with a zero; the system's own folder alone is searched. The library stays
        // loaded for as long as the process lives.
        let library = unsafe {
            LoadLibraryExW(name.as_ptr(), std::ptr::null_mut(), LOAD_LIBRARY_SEARCH_SYSTEM32)
        };
        if library.is_null() {
            // SAFETY: no arguments.
            let code = unsafe { GetLastError() };
            return Err(HvError::Refused {
                call: "LoadLibrary(WinHvPlatform.dll)",
                code,
                meaning: "the library is not there",
            });
        }
        // SAFETY: each name ends with a zero.
        Self::find(|name| unsafe { GetProcAddress(library, name) }).map_err(HvError::Unsupported)
    }

    /// One of the capabilities that are 64 bits wide, or fewer.
    pub(crate) fn capability(&self, code: WHV_CAPABILITY_CODE) -> Result<u64, HvError> {
        let (mut value, mut written) = (0u64, 0);
        let room = size_of::<u64>() as u32;
        // SAFETY: the buffer has the length that is said.
        let result =
            unsafe { (self.get_capability)(code, (&raw mut value).cast(), room, &raw mut written) };
        check("WHvGetCapability", result)?;
        Ok(value)
    }
}

/// Makes a failed call an error with the vendor's code and what it means.
pub(crate) fn check(call: &'static str, result: HRESULT) -> Result<(), HvError> {
    if result >= 0 {
        return Ok(());
    }
    let meaning = match result {
        E_INVALIDARG => "an argument is not valid",
        E_ACCESSDENIED => "access is denied",
        E_OUTOFMEMORY => "out of memory",
        WHV_E_UNKNOWN_CAPABILITY => "this Windows does not know the capability",
        WHV_E_INSUFFICIENT_BUFFER => "the buffer is too small",
        WHV_E_UNKNOWN_PROPERTY => "this Windows does not know the property",
        WHV_E_INVALID_PARTITION_CONFIG => "the partition's properties do not fit together",
        WHV_E_GPA_RANGE_NOT_FOUND => "no such memory is mapped",
        WHV_E_INVALID_VP_STATE => "the virtual processor is in a state that does not allow this",
        WHV_E_INVALID_VP_REGISTER_NAME => "this processor has no such register",
        HV_NOT_PRESENT => "no hypervisor runs",
        _ => "see the vendor's list of HRESULT values",
    };
    Err(HvError::Refused { call, code: result as u32, meaning })
}

/// `ERROR_HV_NOT_PRESENT`, which is declared as an error of another type.
const HV_NOT_PRESENT: HRESULT = ERROR_HV_NOT_PRESENT as HRESULT;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_says_its_code_and_what_it_means() {
        assert!(check("WHvMapGpaRange", 0).is_ok());
        let error = check("WHvUnmapGpaRange", WHV_E_GPA_RANGE_NOT_FOUND).unwrap_err();
        let said = "WHvUnmapGpaRange failed with 0x80370305: no such memory is mapped";
        assert_eq!(error.to_string(), said);
    }
}

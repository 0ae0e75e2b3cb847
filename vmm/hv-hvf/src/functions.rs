//! The functions of Hypervisor.framework that are used, and their errors (`Hypervisor/hv_*.h`).

use std::ffi::c_void;

use cabana_hv::HvError;

/// A vector register, which C passes in one (`hv_simd_fp_uchar16_t`).
#[cfg(target_arch = "aarch64")]
pub type Vector = std::arch::aarch64::uint8x16_t;
/// Stands for a vector register where there are none of this kind.
#[cfg(not(target_arch = "aarch64"))]
pub type Vector = u128;

/// Why a vCPU came back (`hv_vcpu_exit_t`).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Exit {
    /// `hv_exit_reason_t`: 0 cancelled, 1 an exception, 2 the virtual timer, 3 unknown.
    pub reason: u32,
    /// The exception's syndrome, as `ESR_EL2` has it.
    pub syndrome: u64,
    /// The virtual address of an abort.
    pub virtual_address: u64,
    /// The guest-physical address of an abort.
    pub physical_address: u64,
}

/// What a tick of [`Functions::mach_absolute_time`] is: `numer / denom` nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "the vendor's names")]
pub struct Timebase {
    pub numer: u32,
    pub denom: u32,
}

/// Declares the table of a processor's framework, and how it is filled.
macro_rules! functions {
    ($arch:literal; $($name:ident($($argument:ty),*) -> $answer:ty;)*) => {
        /// The functions of Hypervisor.framework that Cabana calls, and those of the system that belong to them, by
        /// Apple's names.
        #[derive(Clone, Copy, Debug)]
        #[allow(missing_docs, reason = "documented by their vendor")]
        #[allow(improper_ctypes_definitions, reason = "vectors are passed as C passes them")]
        pub struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> $answer,)*
        }

        impl Functions {
            /// Finds each function by its name; the name of the first that is missing.
            #[cfg(all(target_os = "macos", target_arch = $arch))]
            #[allow(improper_ctypes_definitions, reason = "vectors are passed as C passes them")]
            fn find(find: impl Fn(*const std::ffi::c_char) -> *mut c_void) -> Result<Self, &'static str> {
                Ok(Self {
                    $($name: {
                        let found = find(concat!(stringify!($name), "\0").as_ptr().cast());
                        if found.is_null() {
                            return Err(stringify!($name));
                        }
                        // SAFETY: the vendor's function of this name has these arguments and this answer.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($argument),*) -> $answer,
                            >(found)
                        }
                    },)*
                })
            }
        }
    };
}

functions! {
    "aarch64";
    hv_vm_config_create() -> *mut c_void;
    hv_vm_config_get_max_ipa_size(*mut u32) -> i32;
    hv_vm_config_set_ipa_size(*mut c_void, u32) -> i32;
    hv_vm_create(*mut c_void) -> i32;
    hv_vm_destroy() -> i32;
    hv_vm_get_max_vcpu_count(*mut u32) -> i32;
    hv_vm_map(*mut c_void, u64, usize, u64) -> i32;
    hv_vm_unmap(u64, usize) -> i32;
    hv_vm_protect(u64, usize, u64) -> i32;
    hv_vcpu_create(*mut u64, *mut *const Exit, *mut c_void) -> i32;
    hv_vcpu_destroy(u64) -> i32;
    hv_vcpu_run(u64) -> i32;
    hv_vcpus_exit(*const u64, u32) -> i32;
    hv_vcpu_get_reg(u64, u32, *mut u64) -> i32;
    hv_vcpu_set_reg(u64, u32, u64) -> i32;
    hv_vcpu_get_simd_fp_reg(u64, u32, *mut Vector) -> i32;
    hv_vcpu_set_simd_fp_reg(u64, u32, Vector) -> i32;
    hv_vcpu_get_sys_reg(u64, u16, *mut u64) -> i32;
    hv_vcpu_set_sys_reg(u64, u16, u64) -> i32;
    hv_vcpu_set_vtimer_mask(u64, bool) -> i32;
    hv_vcpu_set_vtimer_offset(u64, u64) -> i32;
    hv_gic_config_create() -> *mut c_void;
    hv_gic_config_set_distributor_base(*mut c_void, u64) -> i32;
    hv_gic_config_set_redistributor_base(*mut c_void, u64) -> i32;
    hv_gic_create(*mut c_void) -> i32;
    hv_gic_get_spi_interrupt_range(*mut u32, *mut u32) -> i32;
    hv_gic_set_spi(u32, bool) -> i32;
    hv_gic_get_icc_reg(u64, u16, *mut u64) -> i32;
    hv_gic_set_icc_reg(u64, u16, u64) -> i32;
    hv_gic_state_create() -> *mut c_void;
    hv_gic_state_get_size(*mut c_void, *mut usize) -> i32;
    hv_gic_state_get_data(*mut c_void, *mut c_void) -> i32;
    hv_gic_set_state(*const c_void, usize) -> i32;
    os_release(*mut c_void) -> ();
    mach_absolute_time() -> u64;
    mach_timebase_info(*mut Timebase) -> i32;
}

/// Where the framework is. It may be in no file, but in the system's shared cache.
#[cfg(target_os = "macos")]
const FRAMEWORK: &std::ffi::CStr = c"/System/Library/Frameworks/Hypervisor.framework/Hypervisor";

/// The framework's library.
#[cfg(target_os = "macos")]
pub(crate) fn library() -> Result<*mut c_void, HvError> {
    // SAFETY: a system library, which stays loaded for as long as the process lives.
    let library = unsafe { libc::dlopen(FRAMEWORK.as_ptr(), libc::RTLD_LAZY) };
    if library.is_null() {
        return Err(HvError::Refused {
            call: "dlopen(Hypervisor.framework)",
            code: 0,
            meaning: "the framework is not there",
        });
    }
    Ok(library)
}

impl Functions {
    /// Those of this macOS.
    #[cfg(all(target_os = "macos", target_arch = "aarch64"))]
    pub fn load() -> Result<Self, HvError> {
        let library = library()?;
        // SAFETY: each name ends with a zero. What is not the framework's own is loaded with it.
        Self::find(|name| unsafe { libc::dlsym(library, name) }).map_err(HvError::Unsupported)
    }
}

/// `hv_return_t`.
macro_rules! codes {
    ($($name:ident = $code:literal, $meaning:literal;)*) => {
        $(
            #[doc = concat!("`hv_return_t`: ", $meaning, ".")]
            pub const $name: i32 = $code as i32;
        )*

        fn meaning(code: i32) -> &'static str {
            match code {
                $($name => $meaning,)*
                _ => "see the vendor's list of hv_return_t values",
            }
        }
    };
}

codes! {
    HV_SUCCESS = 0u32, "success";
    HV_ERROR = 0xfae9_4001u32, "the operation was unsuccessful";
    HV_BUSY = 0xfae9_4002u32, "what it belongs to is busy, or there already";
    HV_BAD_ARGUMENT = 0xfae9_4003u32, "an argument is not valid";
    HV_ILLEGAL_GUEST_STATE = 0xfae9_4004u32, "the guest is in an illegal state";
    HV_NO_RESOURCES = 0xfae9_4005u32, "the host has no resources for it";
    HV_NO_DEVICE = 0xfae9_4006u32, "there is no such VM, vCPU or device";
    HV_DENIED = 0xfae9_4007u32, "the system did not allow it";
    HV_FAULT = 0xfae9_4008u32, "an address is not accessible";
    HV_UNSUPPORTED = 0xfae9_400fu32, "this host does not support it";
}

/// Makes a failed call an error with the vendor's code and what it means.
pub(crate) fn check(call: &'static str, code: i32) -> Result<(), HvError> {
    if code == HV_SUCCESS {
        return Ok(());
    }
    Err(HvError::Refused { call, code: code as u32, meaning: meaning(code) })
}

/// An object of the framework, released on drop.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    functions: &'a Functions,
    at: *mut c_void,
}

impl<'a> Object<'a> {
    /// Of what a function has made.
    pub(crate) fn new(
        functions: &'a Functions,
        call: &'static str,
        at: *mut c_void,
    ) -> Result<Self, HvError> {
        if at.is_null() {
            return Err(HvError::Refused {
                call,
                code: HV_ERROR as u32,
                meaning: "it made no object",
            });
        }
        Ok(Self { functions, at })
    }

    pub(crate) fn as_ptr(&self) -> *mut c_void {
        self.at
    }
}

impl Drop for Object<'_> {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nobody has it any more.
        unsafe { (self.functions.os_release)(self.at) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_says_its_code_and_what_it_means() {
        assert!(check("hv_vm_map", HV_SUCCESS).is_ok());
        let error = check("hv_vm_create", HV_DENIED).unwrap_err();
        let said = "hv_vm_create failed with 0xfae94007: the system did not allow it";
        assert_eq!(error.to_string(), said);
        assert!(check("hv_vm_map", 5).unwrap_err().to_string().contains("0x00000005"));
    }

    #[test]
    fn an_exit_is_laid_out_as_the_vendor_says() {
        assert_eq!((size_of::<Exit>(), std::mem::offset_of!(Exit, syndrome)), (32, 8));
    }
}

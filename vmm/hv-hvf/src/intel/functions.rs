//! The functions of Hypervisor.framework that are used on Intel Macs (`Hypervisor/hv.h`, `hv_vmx.h`), and what a Mac is
//! asked beside them.

use std::ffi::c_void;

#[cfg(all(target_os = "macos", target_arch = "x86_64"))]
use cabana_hv::HvError;

use crate::functions::Timebase;

functions! {
    "x86_64";
    hv_capability(u64, *mut u64) -> i32;
    hv_vm_create(u64) -> i32;
    hv_vm_destroy() -> i32;
    hv_vm_map(*mut c_void, u64, usize, u64) -> i32;
    hv_vm_unmap(u64, usize) -> i32;
    hv_vm_protect(u64, usize, u64) -> i32;
    hv_vcpu_create(*mut u32, u64) -> i32;
    hv_vcpu_destroy(u32) -> i32;
    hv_vcpu_run_until(u32, u64) -> i32;
    hv_vcpu_interrupt(*mut u32, u32) -> i32;
    hv_vcpu_read_register(u32, u32, *mut u64) -> i32;
    hv_vcpu_write_register(u32, u32, u64) -> i32;
    hv_vcpu_read_fpstate(u32, *mut c_void, usize) -> i32;
    hv_vcpu_write_fpstate(u32, *mut c_void, usize) -> i32;
    hv_vcpu_enable_native_msr(u32, u32, bool) -> i32;
    hv_vcpu_read_msr(u32, u32, *mut u64) -> i32;
    hv_vcpu_write_msr(u32, u32, u64) -> i32;
    hv_tsc_clock() -> u64;
    hv_vcpu_set_tsc_relative(u32, i64) -> i32;
    hv_vmx_read_capability(u32, *mut u64) -> i32;
    hv_vmx_vcpu_read_vmcs(u32, u32, *mut u64) -> i32;
    hv_vmx_vcpu_write_vmcs(u32, u32, u64) -> i32;
    mach_absolute_time() -> u64;
    mach_timebase_info(*mut Timebase) -> i32;
}

/// What else is asked of a Mac.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// The processor's CPUID instruction: EAX and ECX in; EAX, EBX, ECX and EDX out.
    pub cpuid: fn(u32, u32) -> [u32; 4],
    /// Ticks of its time-stamp counter a second; zero where nobody knows.
    pub tsc_hertz: fn() -> u64,
}

/// Both.
#[derive(Clone, Copy, Debug)]
pub struct Framework {
    /// The framework's functions.
    pub functions: Functions,
    /// The Mac.
    pub host: Host,
}

impl Framework {
    /// Those of this macOS.
    #[cfg(all(target_os = "macos", target_arch = "x86_64"))]
    pub(super) fn load() -> Result<Self, HvError> {
        let library = crate::functions::library()?;
        // SAFETY: each name ends with a zero. What is not the framework's own is loaded with it.
        let found = Functions::find(|name| unsafe { libc::dlsym(library, name) });
        let functions = found.map_err(HvError::Unsupported)?;
        Ok(Self { functions, host: Host { cpuid, tsc_hertz } })
    }
}

#[cfg(all(target_os = "macos", target_arch = "x86_64"))]
fn cpuid(function: u32, index: u32) -> [u32; 4] {
    let answer = std::arch::x86_64::__cpuid_count(function, index);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

#[cfg(all(target_os = "macos", target_arch = "x86_64"))]
fn tsc_hertz() -> u64 {
    let (mut hertz, mut len) = (0u64, size_of::<u64>());
    let name = c"machdep.tsc.frequency";
    // SAFETY: the name ends with a zero, and the number is as long as is said.
    let code = unsafe {
        libc::sysctlbyname(
            name.as_ptr(),
            (&raw mut hertz).cast(),
            &raw mut len,
            std::ptr::null_mut(),
            0,
        )
    };
    if code == 0 { hertz } else { 0 }
}

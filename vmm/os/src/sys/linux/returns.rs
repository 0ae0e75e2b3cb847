//! Where the processor believes functions to return to, after a system call.
//!
//! A processor guesses where a function returns to from a stack of the latest calls. On AMD's of families 17h and 19h Linux
//! spoils that stack on purpose ("Safe RET", against Inception, CVE-2023-20569), so that the first function that returns after a
//! system call is taken to return into the kernel. That costs some 300 ns, a third of a short system call. Calls that never
//! return, made before it, cover the kernel's addresses with harmless ones; then a return costs a wrong guess, 7 ns.

#![allow(clippy::inline_always, reason = "a function here would return, too")]

/// Hands the result of a system call on, past what the kernel left behind. For system calls without a function around
/// them (rustix's): a function of the C library has returned already.
#[inline(always)]
pub(super) fn after<T>(result: T) -> T {
    #[cfg(target_arch = "x86_64")]
    if is_spoiled() {
        cover();
    }
    result
}

/// More functions than return between a system call and the next.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn cover() {
    // SAFETY: each call goes to what lies behind it and leaves eight bytes on the stack, which are taken off at the end. The
    // stack may be written to below its pointer: the compiler is not told otherwise. A shadow stack would notice; Linux gives
    // one only to programs that are marked for it, with all of their libraries, which Rust's are not.
    unsafe {
        std::arch::asm!(".rept 16", "call 2f", "int3", "2:", ".endr", "add rsp, 16 * 8",);
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn is_spoiled() -> bool {
    static SPOILED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *SPOILED.get_or_init(|| is_amd_of(&[0x17, 0x19]))
}

/// Vendor and family (AMD64 APM 3, CPUID functions 0 and 1).
#[cfg(target_arch = "x86_64")]
#[cold]
fn is_amd_of(families: &[u32]) -> bool {
    use std::arch::x86_64::__cpuid;
    let (vendor, version) = (__cpuid(0), __cpuid(1).eax);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat();
    let (base, extended) = (version >> 8 & 0xf, version >> 20 & 0xff);
    name == b"AuthenticAMD" && families.contains(&(base + extended))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn sum(of: u64) -> u64 {
        let below = if of == 0 { 0 } else { sum(of - 1) };
        #[cfg(target_arch = "x86_64")]
        cover();
        after(below + of)
    }

    #[test]
    fn functions_return_to_where_they_were_called() {
        assert_eq!(sum(1000), 500_500);
    }
}

//! Payloads, assembled by the compiler.

/// Position-independent machine code; see [`payload!`](crate::payload).
#[derive(Clone, Copy, Debug)]
pub struct Payload {
    /// Its bytes.
    pub code: &'static [u8],
}

/// Brings the assembler back to 64-bit code, whatever a payload has asked for.
#[cfg(target_arch = "x86_64")]
#[doc(hidden)]
#[macro_export]
macro_rules! after_payload {
    () => {
        ".code64"
    };
}

/// Nothing: a payload asks the assembler for nothing that lasts.
#[cfg(target_arch = "aarch64")]
#[doc(hidden)]
#[macro_export]
macro_rules! after_payload {
    () => {
        ""
    };
}

/// Begins the section of payloads, in each format of object files.
#[cfg(target_os = "linux")]
#[doc(hidden)]
#[macro_export]
macro_rules! payload_section {
    () => {
        ".pushsection .rodata.payloads, \"a\""
    };
}

#[cfg(windows)]
#[doc(hidden)]
#[macro_export]
macro_rules! payload_section {
    () => {
        ".pushsection .rdata, \"dr\""
    };
}

#[cfg(target_os = "macos")]
#[doc(hidden)]
#[macro_export]
macro_rules! payload_section {
    () => {
        ".pushsection __TEXT,__const"
    };
}

/// What stands before a symbol of C's, and before a name that the linker does not see.
#[cfg(not(target_os = "macos"))]
#[doc(hidden)]
#[macro_export]
macro_rules! payload_prefix {
    (symbol) => {
        ""
    };
    (local) => {
        ".L"
    };
}

#[cfg(target_os = "macos")]
#[doc(hidden)]
#[macro_export]
macro_rules! payload_prefix {
    (symbol) => {
        "_"
    };
    (local) => {
        "L"
    };
}

/// Assembles the lines (on x86-64 Intel syntax, 64-bit unless they say `.code16`) into a function of that
/// name, which returns the [`Payload`](crate::Payload). Names are symbols of the test binary: begin them with
/// `payload_`. Within a payload use labels that are numbers: what a symbol is called there depends on the format.
#[macro_export]
macro_rules! payload {
    ($(#[$doc:meta])* $name:ident: $($line:literal)+) => {
        core::arch::global_asm!(
            $crate::payload_section!(),
            ".balign 8",
            concat!(".globl ", $crate::payload_prefix!(symbol), stringify!($name)),
            concat!($crate::payload_prefix!(symbol), stringify!($name), ":"),
            // The length stands before the code.
            concat!(
                ".quad ",
                $crate::payload_prefix!(local),
                stringify!($name),
                "_end - ",
                $crate::payload_prefix!(local),
                stringify!($name),
                "_begin"
            ),
            concat!($crate::payload_prefix!(local), stringify!($name), "_begin:"),
            $($line,)+
            $crate::after_payload!(),
            concat!($crate::payload_prefix!(local), stringify!($name), "_end:"),
            ".popsection",
        );
        $(#[$doc])*
        fn $name() -> $crate::Payload {
            unsafe extern "C" {
                static $name: u64;
            }
            // SAFETY: the lines above lay out a length and as many bytes after it, never changed.
            unsafe {
                let length = &raw const $name;
                let code = std::slice::from_raw_parts(length.add(1).cast(), length.read() as usize);
                $crate::Payload { code }
            }
        }
    };
}

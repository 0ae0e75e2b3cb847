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

/// Begins the section of payloads.
#[cfg(not(target_vendor = "apple"))]
#[doc(hidden)]
#[macro_export]
macro_rules! payload_section {
    () => {
        ".pushsection .rodata.payloads, \"a\""
    };
}

/// Begins the section of payloads.
#[cfg(target_vendor = "apple")]
#[doc(hidden)]
#[macro_export]
macro_rules! payload_section {
    () => {
        ".pushsection __TEXT,__payloads"
    };
}

/// What stands before the name of a label that the assembler forgets, and before that of a symbol.
#[cfg(not(target_vendor = "apple"))]
#[doc(hidden)]
#[macro_export]
macro_rules! payload_prefix {
    (label) => {
        ".L"
    };
    (symbol) => {
        ""
    };
}

/// What stands before the name of a label that the assembler forgets, and before that of a symbol.
#[cfg(target_vendor = "apple")]
#[doc(hidden)]
#[macro_export]
macro_rules! payload_prefix {
    (label) => {
        "L"
    };
    (symbol) => {
        "_"
    };
}

/// Assembles the lines (on x86-64 Intel syntax, 64-bit unless they say `.code16`) into a function of that
/// name, which returns the [`Payload`](crate::Payload). Names are symbols of the test binary: begin them with
/// `payload_`.
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
                ".quad ", $crate::payload_prefix!(label), stringify!($name), "_end - ",
                $crate::payload_prefix!(label), stringify!($name), "_begin"
            ),
            concat!($crate::payload_prefix!(label), stringify!($name), "_begin:"),
            $($line,)+
            $crate::after_payload!(),
            concat!($crate::payload_prefix!(label), stringify!($name), "_end:"),
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

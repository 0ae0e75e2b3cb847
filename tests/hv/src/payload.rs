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

/// Assembles the lines (on x86-64 Intel syntax, 64-bit unless they say `.code16`) into a function of that
/// name, which returns the [`Payload`](crate::Payload). Names are symbols of the test binary: begin them with
/// `payload_`.
#[macro_export]
macro_rules! payload {
    ($(#[$doc:meta])* $name:ident: $($line:literal)+) => {
        core::arch::global_asm!(
            ".pushsection .rodata.payloads, \"a\"",
            ".balign 8",
            concat!(".globl ", stringify!($name)),
            concat!(stringify!($name), ":"),
            // The length stands before the code.
            concat!(".quad .L", stringify!($name), "_end - .L", stringify!($name), "_begin"),
            concat!(".L", stringify!($name), "_begin:"),
            $($line,)+
            $crate::after_payload!(),
            concat!(".L", stringify!($name), "_end:"),
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

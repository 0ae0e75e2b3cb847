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

/// Where payloads stand, and how their symbols are written, in each format of object files.
#[cfg(target_os = "linux")]
#[doc(hidden)]
#[macro_export]
macro_rules! payload_format {
    (section) => {
        ".pushsection .rodata.payloads, \"a\""
    };
    (symbol $name:ident) => {
        stringify!($name)
    };
    (local $name:ident $part:literal) => {
        concat!(".L", stringify!($name), $part)
    };
}

#[cfg(windows)]
#[doc(hidden)]
#[macro_export]
macro_rules! payload_format {
    (section) => {
        ".pushsection .rdata, \"dr\""
    };
    (symbol $name:ident) => {
        stringify!($name)
    };
    (local $name:ident $part:literal) => {
        concat!(".L", stringify!($name), $part)
    };
}

/// Mach-O: C's names begin with an underscore, names that the linker does not see with an `L`.
#[cfg(target_os = "macos")]
#[doc(hidden)]
#[macro_export]
macro_rules! payload_format {
    (section) => {
        ".pushsection __TEXT,__const"
    };
    (symbol $name:ident) => {
        concat!("_", stringify!($name))
    };
    (local $name:ident $part:literal) => {
        concat!("L", stringify!($name), $part)
    };
}

/// Assembles the lines (on x86-64 Intel syntax, 64-bit unless they say `.code16`) into a function of that
/// name, which returns the [`Payload`](crate::Payload). Names are symbols of the test binary: begin them with
/// `payload_`. Within a payload use labels that are numbers: what a symbol is called there depends on the format.
#[macro_export]
macro_rules! payload {
    ($(#[$doc:meta])* $name:ident: $($line:literal)+) => {
        core::arch::global_asm!(
            $crate::payload_format!(section),
            ".balign 8",
            concat!(".globl ", $crate::payload_format!(symbol $name)),
            concat!($crate::payload_format!(symbol $name), ":"),
            // The length stands before the code.
            concat!(
                ".quad ",
                $crate::payload_format!(local $name "_end"),
                " - ",
                $crate::payload_format!(local $name "_begin")
            ),
            concat!($crate::payload_format!(local $name "_begin"), ":"),
            $($line,)+
            $crate::after_payload!(),
            concat!($crate::payload_format!(local $name "_end"), ":"),
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

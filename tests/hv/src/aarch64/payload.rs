//! Payloads, assembled by the compiler.

/// Assembles the lines into a function of that name, which returns the [`Payload`](crate::Payload). Names are
/// symbols of the test binary: begin them with `payload_`.
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

//! What differs between the processors that a kernel is built for.

use std::process::Command;

/// The processor of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// The kernel is an uncompressed ELF file, which the VMM maps.
    X86_64,
    /// The kernel is an `Image`, which the VMM copies.
    Aarch64,
}

impl Architecture {
    /// The one that this program was built for.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// Its name in Rust's and GNU's targets.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The kernel's file in the output folder.
    pub fn file(self) -> &'static str {
        match self {
            Self::X86_64 => "vmlinux",
            Self::Aarch64 => "Image",
        }
    }

    /// Where the kernel's build leaves that file.
    pub(crate) fn built(self) -> &'static str {
        match self {
            Self::X86_64 => "vmlinux",
            Self::Aarch64 => "arch/arm64/boot/Image",
        }
    }

    /// An `int` function of the kernel that returns 0 and does nothing else (`arch/x86/kernel/x86_init.c`,
    /// `fs/libfs.c`).
    pub(crate) fn nothing(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_op_int_noop",
            Self::Aarch64 => "noop_fsync",
        }
    }

    /// Lines that `make` prints for the fragments of this crate, from a build of 6.12. Another revision or
    /// another fragment changes it by a few per cent, and the last per cent takes that up.
    pub(crate) fn expected_steps(self) -> usize {
        match self {
            Self::X86_64 => 1600,
            Self::Aarch64 => 1500,
        }
    }

    /// Does this program's own processor differ?
    pub(crate) fn is_foreign(self) -> bool {
        self != Self::HOST
    }

    /// What stands before the names of the compiler and its companions: nothing, if they are the host's own.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            _ if !self.is_foreign() => "",
            Self::X86_64 => "x86_64-linux-gnu-",
            Self::Aarch64 => "aarch64-linux-gnu-",
        }
    }

    /// Tells the kernel's build of a processor that is not the host's.
    pub(crate) fn choose(self, build: &mut Command) {
        let name = match self {
            _ if !self.is_foreign() => return,
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "arm64",
        };
        build.env("ARCH", name).env("CROSS_COMPILE", self.prefix());
    }
}

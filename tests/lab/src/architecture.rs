//! What differs between the processors that a lab's machine can have.

/// The processor of the outer machine, and of the programs that run in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Architecture {
    /// QEMU's software CPU with AMD's nested paging, and the kernel's kvm-amd.
    #[default]
    X86_64,
    /// QEMU's software CPU with EL2, and the kernel's KVM. The host's own programs do not run there:
    /// what does is built for [`Architecture::target`].
    Arm64,
}

impl Architecture {
    /// Rust's name of its static programs.
    pub fn target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-musl",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }

    /// QEMU's program, and Debian's package of it.
    pub(crate) fn qemu(self) -> (&'static str, &'static str) {
        match self {
            Self::X86_64 => ("qemu-system-x86_64", "qemu-system-x86"),
            Self::Arm64 => ("qemu-system-aarch64", "qemu-system-arm"),
        }
    }

    /// Debian's name.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The kernel's modules in the order in which they load; each needs only those before it.
    pub(crate) fn modules(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &[
                "virt/lib/irqbypass.ko",
                "arch/x86/kvm/kvm.ko",
                "arch/x86/kvm/kvm-amd.ko",
                "fs/overlayfs/overlay.ko",
                "net/sched/sch_netem.ko",
            ],
            // KVM is built in.
            Self::Arm64 => &["fs/overlayfs/overlay.ko"],
        }
    }

    /// More modules that are kept beside the kernel: what guests of the same kernel need in place of a kernel of
    /// our own.
    pub(crate) fn guest_modules(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &[],
            Self::Arm64 => &[
                "drivers/virtio/virtio_mmio.ko",
                "drivers/char/hw_random/virtio-rng.ko",
                "net/vmw_vsock/vsock.ko",
                "net/vmw_vsock/vmw_vsock_virtio_transport_common.ko",
                "net/vmw_vsock/vmw_vsock_virtio_transport.ko",
                "drivers/nvdimm/libnvdimm.ko",
                "drivers/nvdimm/nd_btt.ko",
                "drivers/nvdimm/nd_pmem.ko",
                "drivers/nvdimm/nd_virtio.ko",
                "drivers/nvdimm/virtio_pmem.ko",
                "lib/libcrc32c.ko",
                "fs/erofs/erofs.ko",
            ],
        }
    }

    /// The folder of its kernel in the lab's folder.
    pub(crate) fn kernel_folder(self) -> &'static str {
        match self {
            Self::X86_64 => "outer-kernel",
            Self::Arm64 => "outer-kernel-arm64",
        }
    }
}

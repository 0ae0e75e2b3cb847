//! Why the guest stopped, and how it goes on.

/// What the machine gives a vCPU to go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmEntry {
    /// Go on; the last exit asked for nothing.
    Resume,
    /// The answer to [`VmExit::MmioRead`] or [`VmExit::PioRead`], in the low bytes.
    Data(u64),
}

/// Why a vCPU came back. Sizes are 1, 2, 4 or 8 bytes; accesses are decoded, string instructions
/// come one element at a time, and data stands in the low bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmExit {
    /// The guest reads device memory: answer with [`VmEntry::Data`].
    MmioRead {
        /// Guest-physical address.
        addr: u64,
        /// Bytes.
        size: u8,
    },
    /// The guest writes device memory, or memory mapped read-only.
    MmioWrite {
        /// Guest-physical address.
        addr: u64,
        /// Bytes.
        size: u8,
        /// The value.
        data: u64,
    },
    /// The guest reads a port (x86): answer with [`VmEntry::Data`].
    PioRead {
        /// The port.
        port: u16,
        /// Bytes: 1, 2 or 4.
        size: u8,
    },
    /// The guest writes a port (x86).
    PioWrite {
        /// The port.
        port: u16,
        /// Bytes: 1, 2 or 4.
        size: u8,
        /// The value.
        data: u32,
    },
    /// The guest acknowledged the level-triggered interrupt of this vector (x86, split irqchip).
    EndOfInterrupt {
        /// The local APIC's vector.
        vector: u8,
    },
    /// The guest halted with nothing that could wake it inside the hypervisor.
    Halt,
    /// The guest gave up: a triple fault on x86.
    Shutdown,
    /// The guest switched the machine off (arm64, PSCI's `SYSTEM_OFF`).
    PowerOff,
    /// The guest asked for a reset (arm64, PSCI's `SYSTEM_RESET`).
    Reset,
    /// [`crate::VcpuKicker::kick`] was called.
    Kicked,
}

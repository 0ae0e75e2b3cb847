//! How the guest ends its machine with a status: a byte written to I/O port [`PORT`] (x86).
//!
//! The machine stops at once and the byte is its status. `isa-debug-exit` of QEMU, put at the same
//! port, exits with `(byte << 1) | 1`.

/// The I/O port.
pub const PORT: u16 = 0xf4;

/// An orderly shutdown; all disks are flushed.
pub const POWER_OFF: u8 = 0;

/// The agent could not set the machine up and has said why on the control connection.
pub const SETUP_FAILED: u8 = 0x7e;

/// The agent failed where it could not tell the host over the control connection; the last line on
/// the console says why.
pub const AGENT_FAILED: u8 = 0x7f;

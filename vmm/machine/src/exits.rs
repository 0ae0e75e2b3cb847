//! How often the guest came out, by kind.

use std::sync::atomic::{AtomicU64, Ordering};

use cabana_hv::VmExit;

/// Exits of all vCPUs so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts {
    /// Reads of device memory that came to us.
    pub mmio_reads: u64,
    /// Writes of device memory that came to us.
    pub mmio_writes: u64,
    /// Port reads.
    pub pio_reads: u64,
    /// Port writes.
    pub pio_writes: u64,
    /// Everything else that came to us.
    pub other: u64,
    /// All exits, those that the hypervisor handled itself included; `None` if it does not count.
    pub total: Option<u64>,
}

impl ExitCounts {
    /// Exits that came to us.
    pub fn to_user_space(&self) -> u64 {
        self.mmio_reads + self.mmio_writes + self.pio_reads + self.pio_writes + self.other
    }
}

/// The counters behind [`ExitCounts`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    mmio_reads: AtomicU64,
    mmio_writes: AtomicU64,
    pio_reads: AtomicU64,
    pio_writes: AtomicU64,
    other: AtomicU64,
}

impl Counters {
    pub(crate) fn count(&self, exit: &VmExit) {
        let counter = match exit {
            VmExit::MmioRead { .. } => &self.mmio_reads,
            VmExit::MmioWrite { .. } => &self.mmio_writes,
            VmExit::PioRead { .. } => &self.pio_reads,
            VmExit::PioWrite { .. } => &self.pio_writes,
            _ => &self.other,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, total: Option<u64>) -> ExitCounts {
        ExitCounts {
            mmio_reads: self.mmio_reads.load(Ordering::Relaxed),
            mmio_writes: self.mmio_writes.load(Ordering::Relaxed),
            pio_reads: self.pio_reads.load(Ordering::Relaxed),
            pio_writes: self.pio_writes.load(Ordering::Relaxed),
            other: self.other.load(Ordering::Relaxed),
            total,
        }
    }
}

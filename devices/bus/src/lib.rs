//! The bus: which device answers at an address, for memory-mapped and for port I/O alike.
//!
//! Devices are called from any vCPU's thread, several at once, and lock for themselves.

mod state;

use std::ops::Range;
use std::sync::Arc;

pub use state::{Persist, SavedState, StateError};

/// A device's registers, in guest-physical memory or in port space.
pub trait BusDevice: Send + Sync {
    /// The guest reads `data.len()` (1, 2, 4 or 8) bytes at `offset` from the device's base. What
    /// the device leaves as it is reads as ones, like an empty bus.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` (1, 2, 4 or 8 bytes) at `offset` from the device's base.
    fn write(&self, offset: u64, data: &[u8]);
}

/// The line by which a device asks for the processor's attention.
pub trait Interrupt: Send + Sync {
    /// Raises an edge-triggered interrupt.
    fn pulse(&self);
}

/// An interrupt line that has a level: the interrupt controller or the guest decides what it makes of it.
pub trait Line: Send + Sync {
    /// Sets the level.
    fn set(&self, level: bool);
}

/// A range that cannot be given to a device.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("bus range {start:#x}..{end:#x} is empty or taken")]
pub struct RangeTaken {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
}

/// Address ranges and the devices behind them; built once, then only read.
#[derive(Clone, Default)]
pub struct Bus {
    /// Sorted by start, disjoint.
    ranges: Vec<(Range<u64>, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device at `range`.
    pub fn insert(
        &mut self,
        range: Range<u64>,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), RangeTaken> {
        let at = self.ranges.partition_point(|(other, _)| other.start < range.start);
        let before_ends = at.checked_sub(1).map_or(0, |before| self.ranges[before].0.end);
        let after_starts = self.ranges.get(at).map_or(u64::MAX, |(after, _)| after.start);
        if range.is_empty() || range.start < before_ends || range.end > after_starts {
            return Err(RangeTaken { start: range.start, end: range.end });
        }
        self.ranges.insert(at, (range, device));
        Ok(())
    }

    /// A read by the guest; false if nobody is there (`data` then reads as ones).
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let Some((offset, device)) = self.find(addr, data.len()) else { return false };
        device.read(offset, data);
        true
    }

    /// A write by the guest; false if nobody is there.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        let Some((offset, device)) = self.find(addr, data.len()) else { return false };
        device.write(offset, data);
        true
    }

    fn find(&self, addr: u64, len: usize) -> Option<(u64, &dyn BusDevice)> {
        let at = self.ranges.partition_point(|(range, _)| range.start <= addr).checked_sub(1)?;
        let (range, device) = self.ranges.get(at)?;
        let end = addr.checked_add(len as u64)?;
        (end <= range.end).then(|| (addr - range.start, &**device))
    }
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.ranges.iter().map(|(range, _)| range)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers every read with its own number.
    struct Number(u8);

    impl BusDevice for Number {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }

        fn write(&self, _offset: u64, _data: &[u8]) {}
    }

    fn bus() -> Bus {
        let mut bus = Bus::new();
        bus.insert(0x2000..0x3000, Arc::new(Number(20))).unwrap();
        bus.insert(0x1000..0x2000, Arc::new(Number(10))).unwrap();
        bus
    }

    #[test]
    fn an_access_reaches_the_device_at_its_address() {
        let mut data = [0; 2];
        assert!(bus().read(0x2004, &mut data));
        assert_eq!(data, [24, 24]);
        assert!(bus().write(0x1fff, &[0]));
    }

    #[test]
    fn nobody_answers_outside_and_across_the_end() {
        for addr in [0, 0xfff, 0x2fff, 0x3000, u64::MAX] {
            let mut data = [0; 2];
            assert!(!bus().read(addr, &mut data), "{addr:#x}");
            assert_eq!(data, [0xff; 2]);
        }
    }

    #[test]
    fn overlaps_are_refused() {
        let mut bus = bus();
        for range in [0x1800..0x1900, 0x0..0x1001, 0x2fff..0x4000, 0x5000..0x5000, 0x0..0x9000] {
            assert!(bus.insert(range, Arc::new(Number(0))).is_err());
        }
        bus.insert(0x3000..0x3001, Arc::new(Number(0))).unwrap();
    }
}

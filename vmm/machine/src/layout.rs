//! Where things stand in guest-physical memory and on the interrupt controller.

use cabana_boot::x86_64::{HIGH_RAM_START, IOAPIC_PINS, LOW_RAM_END};
use cabana_memory::GuestAddress;
use cabana_platform::COM1;

/// Register blocks of virtio devices, one page each, in the gap below 4 GiB.
pub const VIRTIO_BASE: u64 = 0xd000_0000;
/// Bytes between two of them.
pub const VIRTIO_STRIDE: u64 = 0x1000;
/// Device memory starts at a multiple of this: Linux adds it in sections of 128 MiB, and 1 GiB
/// leaves room for the largest pages.
const DEVICE_MEMORY_ALIGN: u64 = 1 << 30;
/// The first pins belong to legacy devices: timer, keyboard, cascade, COM2, COM1.
const FIRST_VIRTIO_PIN: u8 = COM1.1 + 1;

/// The most virtio devices that have a pin of their own.
pub const MAX_VIRTIO_DEVICES: usize = (IOAPIC_PINS - FIRST_VIRTIO_PIN) as usize;

/// The pieces of RAM for `memory` bytes: what does not fit below the gap goes on above 4 GiB.
pub fn ram_pieces(memory: u64) -> Vec<(GuestAddress, usize)> {
    let low = memory.min(LOW_RAM_END);
    let mut pieces = vec![(GuestAddress(0), low as usize)];
    if memory > low {
        pieces.push((GuestAddress(HIGH_RAM_START), (memory - low) as usize));
    }
    pieces
}

/// The first guest-physical address for memory that devices bring along, such as an image.
pub fn device_memory(memory: u64) -> u64 {
    let high_end = HIGH_RAM_START + memory.saturating_sub(LOW_RAM_END);
    high_end.next_multiple_of(DEVICE_MEMORY_ALIGN)
}

/// Register block and pin of the `index`-th virtio device.
pub(crate) fn virtio_slot(index: usize) -> (u64, u8) {
    (VIRTIO_BASE + index as u64 * VIRTIO_STRIDE, FIRST_VIRTIO_PIN + index as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_gap_free() {
        assert_eq!(ram_pieces(1 << 30), [(GuestAddress(0), 1 << 30)]);
        assert_eq!(
            ram_pieces(5 << 30),
            [(GuestAddress(0), 3 << 30), (GuestAddress(4 << 30), 2 << 30)]
        );
        assert_eq!(device_memory(1 << 30), 4 << 30);
        assert_eq!(device_memory((5 << 30) + 4096), 7 << 30);
    }

    #[test]
    fn every_device_has_a_pin() {
        assert_eq!(virtio_slot(0), (0xd000_0000, 5));
        assert_eq!(virtio_slot(MAX_VIRTIO_DEVICES - 1).1, IOAPIC_PINS - 1);
    }
}

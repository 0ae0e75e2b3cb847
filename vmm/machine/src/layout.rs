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
/// The first virtio pin of a machine with legacy devices: behind timer, keyboard, cascade and the
/// serial ports.
const FIRST_PIN_LEGACY: u8 = COM1.1 + 1;
/// And of one without: Linux takes interrupt 0 for none.
const FIRST_PIN: u8 = 1;

/// The most virtio devices that have a pin of their own in every machine.
pub const MAX_VIRTIO_DEVICES: usize = (IOAPIC_PINS - FIRST_PIN_LEGACY) as usize;

/// Which pins of the I/O APIC there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pins {
    first_virtio: u8,
    /// All pins, from 0.
    pub(crate) count: u8,
}

impl Pins {
    /// A machine with COM1 has all pins, as kernels expect of a PC; one without has just those that
    /// it uses, since each costs its set-up.
    pub(crate) fn new(com1: bool, virtio_devices: usize) -> Self {
        if com1 {
            return Self { first_virtio: FIRST_PIN_LEGACY, count: IOAPIC_PINS };
        }
        let devices = virtio_devices.min(MAX_VIRTIO_DEVICES) as u8;
        Self { first_virtio: FIRST_PIN, count: FIRST_PIN + devices }
    }

    /// Register block and pin of the `index`-th virtio device.
    pub(crate) fn virtio_slot(self, index: usize) -> (u64, u8) {
        (VIRTIO_BASE + index as u64 * VIRTIO_STRIDE, self.first_virtio + index as u8)
    }
}

/// The pieces of RAM for `memory` bytes: what does not fit below the gap goes on above 4 GiB.
pub fn ram_pieces(memory: u64) -> Vec<(GuestAddress, usize)> {
    let low = memory.min(LOW_RAM_END);
    let mut pieces = vec![(GuestAddress(0), low as usize)];
    if memory > low {
        pieces.push((GuestAddress(HIGH_RAM_START), (memory - low) as usize));
    }
    pieces
}

/// A page of x86-64's, and a large one.
const PAGE: u64 = 4096;
pub(crate) const LARGE: u64 = 2 << 20;
/// Where [`sparse`] RAM is in every machine: address and length.
const SPARSE: [(u64, usize); 4] = [
    // The boot protocol's tables, and the first of what may move later: files and programs.
    (0, 2 * LARGE as usize),
    // Inodes and what else can be had back. What can be neither has the two large pages before.
    (4 * LARGE, LARGE as usize),
    // What else the first programs take.
    (6 * LARGE, LARGE as usize),
    // What comes behind the kernel, into which the first programs hardly get.
    (14 * LARGE, LARGE as usize),
];

/// Touched pages of 4 KiB that cost less than the large page they are in, which is cleared whole.
const FEW: u64 = 170;
/// Pages at the end of RAM for a processor's variables, and tables of the kernel's (for names and inodes as large as in a
/// machine of 128 MiB).
const AT_END: u64 = 108;

/// Where the guest's kernel touches little of RAM during a start: there large pages cost time, and memory for what nobody
/// uses. Found by looking at machines of 128 MiB, 512 MiB and 4 GiB (docs/measurements.md); a kernel that places things
/// otherwise is only slower. `initrd` is the length of what lies at the end of RAM.
pub(crate) fn sparse(memory: u64, initrd: u64) -> Vec<(GuestAddress, usize)> {
    let mut sparse: Vec<_> = SPARSE.iter().map(|(at, len)| (GuestAddress(*at), *len)).collect();
    let pieces = ram_pieces(memory);
    let end = pieces.last().map_or(0, |(at, len)| at.0 + *len as u64);
    // Linux keeps 64 bytes for each page, before the last large page of RAM. At first it uses those of the first 32 MiB, and
    // of what lies at the end of RAM, below the gap and above.
    let structs = |bytes: u64| bytes.next_multiple_of(128 << 20) / 64;
    let first = end.saturating_sub(LARGE + structs(memory)) / LARGE * LARGE;
    let last_of = |bytes: u64| first + structs(bytes) - LARGE;
    let at_end = end.saturating_sub(LARGE) / LARGE * LARGE;
    // The initramfs is the last thing below the gap.
    let beside_it = if memory <= LOW_RAM_END { initrd } else { 0 };
    let few = AT_END + beside_it / PAGE < FEW;
    let places = [first, last_of(memory.min(LOW_RAM_END)), last_of(memory)];
    let places = places.into_iter().chain(few.then_some(at_end));
    sparse.extend(places.map(|at| (GuestAddress(at), LARGE as usize)));
    sparse.sort_unstable();
    sparse.dedup();
    sparse.retain(|(at, len)| pieces.iter().any(|piece| within(*at, *len, *piece)));
    sparse
}

fn within(at: GuestAddress, len: usize, (start, size): (GuestAddress, usize)) -> bool {
    at >= start && at.0 + len as u64 <= start.0 + size as u64
}

/// The first guest-physical address for memory that devices bring along, such as an image.
pub fn device_memory(memory: u64) -> u64 {
    let high_end = HIGH_RAM_START + memory.saturating_sub(LOW_RAM_END);
    high_end.next_multiple_of(DEVICE_MEMORY_ALIGN)
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
    fn sparse_ram_is_where_it_was_seen() {
        const MIB: u64 = 1 << 20;
        const AGENT: u64 = 784_384;
        let low = |last: &[u64]| {
            let at = |address: &u64| (GuestAddress(*address), 2 << 20);
            let fixed = [(0, 4), (8, 2), (12, 2), (28, 2)]
                .map(|(at, mib)| (GuestAddress(at * MIB), mib << 20));
            fixed.into_iter().chain(last.iter().map(at)).collect::<Vec<_>>()
        };
        assert_eq!(sparse(512 * MIB, AGENT), low(&[502 * MIB, 508 * MIB]));
        assert_eq!(
            sparse(4096 * MIB, AGENT),
            low(&[958, 1004, 1020, 1022].map(|at| (4096 + at) * MIB))
        );
        assert_eq!(sparse(128 * MIB, AGENT), low(&[124 * MIB]));
        assert_eq!(sparse(128 * MIB, 9216), low(&[124 * MIB, 126 * MIB]));
        assert_eq!(sparse(3 * MIB, 0), [(GuestAddress(0), 2 << 20)]);
        for mib in [1, 5, 6, 7, 255, 256, 257, 1000, 3071, 3072, 3073, 3100, 3200, 70_000] {
            for (at, len) in sparse(mib * MIB, AGENT) {
                let pieces = ram_pieces(mib * MIB);
                assert!(pieces.iter().any(|piece| within(at, len, *piece)), "{mib} MiB");
                assert!(at.0.is_multiple_of(2 * MIB), "{mib} MiB");
            }
        }
    }

    #[test]
    fn every_device_has_a_pin() {
        let pins = Pins::new(true, MAX_VIRTIO_DEVICES);
        assert_eq!(pins.virtio_slot(0), (0xd000_0000, 5));
        assert_eq!(pins.virtio_slot(MAX_VIRTIO_DEVICES - 1).1, pins.count - 1);
        let pins = Pins::new(false, 6);
        assert_eq!(pins.virtio_slot(1), (0xd000_1000, 2));
        assert_eq!(pins.virtio_slot(5).1, pins.count - 1);
    }
}

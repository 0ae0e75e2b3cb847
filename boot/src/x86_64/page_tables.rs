//! The identity map and the GDT of the 64-bit entry (Intel SDM 3A §4.5, §3.5.1).

use cabana_memory::{GuestAddress, GuestRam, MemoryError};

const PRESENT_WRITABLE: u64 = 0x3;
const LARGE: u64 = 0x80;
const PAGE: u64 = 0x1000;

/// Flat 64-bit code: present, DPL 0, execute/read, L, G.
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
/// Flat data: present, DPL 0, read/write, D/B, G.
const DATA: u64 = 0x00cf_9300_0000_ffff;

/// Maps the first GiB to itself with 2-MiB pages at `at` (three pages); writes the GDT at `gdt`.
pub(super) fn write(ram: &GuestRam, at: u64, gdt: u64) -> Result<(), MemoryError> {
    let (pml4, pdpt, directory) = (at, at + PAGE, at + 2 * PAGE);
    ram.write(GuestAddress(pml4), pdpt | PRESENT_WRITABLE)?;
    ram.write(GuestAddress(pdpt), directory | PRESENT_WRITABLE)?;
    let entries: Vec<u8> = (0..512_u64)
        .flat_map(|page| (page << 21 | LARGE | PRESENT_WRITABLE).to_le_bytes())
        .collect();
    ram.write_bytes(GuestAddress(directory), &entries)?;
    for (selector, descriptor) in [(0x10, CODE_64), (0x18, DATA)] {
        ram.write(GuestAddress(gdt + selector), descriptor)?;
    }
    Ok(())
}

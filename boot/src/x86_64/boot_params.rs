//! `struct boot_params`, the zero page (`Documentation/arch/x86/zero-page.rst`).

use cabana_memory::{GuestAddress, GuestRam, MemoryError};

use super::Usable;
use crate::initrd::Placed;

const LEN: usize = 4096;
const ACPI_RSDP_ADDR: usize = 0x70;
const E820_ENTRIES: usize = 0x1e8;
const SETUP_HEADER: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const TYPE_OF_LOADER: usize = 0x210;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const KERNEL_ALIGNMENT: usize = 0x230;
const E820_TABLE: usize = 0x2d0;
const E820_RAM: u32 = 1;
/// A loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// What it points to.
#[derive(Clone, Copy)]
pub(super) struct Pointers {
    pub(super) command_line: u64,
    /// ACPI's root pointer, or 0.
    pub(super) root_pointer: u64,
}

/// Writes it at `at`. `setup_header` is a bzImage's own; an ELF kernel has none.
pub(super) fn write(
    ram: &GuestRam,
    at: u64,
    pointers: Pointers,
    setup_header: Option<&[u8]>,
    initrd: Option<Placed>,
    map: &[Usable],
) -> Result<(), MemoryError> {
    let mut params = [0; LEN];
    let mut put = |at: usize, bytes: &[u8]| params[at..at + bytes.len()].copy_from_slice(bytes);
    if let Some(header) = setup_header {
        put(SETUP_HEADER, header);
    } else {
        put(BOOT_FLAG, &0xaa55_u16.to_le_bytes());
        put(HEADER, b"HdrS");
        put(KERNEL_ALIGNMENT, &0x100_0000_u32.to_le_bytes());
    }
    put(TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(ACPI_RSDP_ADDR, &pointers.root_pointer.to_le_bytes());
    put(CMD_LINE_PTR, &(pointers.command_line as u32).to_le_bytes());
    if let Some(initrd) = initrd {
        put(RAMDISK_IMAGE, &(initrd.start as u32).to_le_bytes());
        put(RAMDISK_SIZE, &(initrd.len as u32).to_le_bytes());
    }
    put(E820_ENTRIES, &[map.len() as u8]);
    for (index, usable) in map.iter().enumerate() {
        let entry = E820_TABLE + 20 * index;
        put(entry, &usable.start.to_le_bytes());
        put(entry + 8, &(usable.end - usable.start).to_le_bytes());
        put(entry + 16, &E820_RAM.to_le_bytes());
    }
    ram.write_bytes(GuestAddress(at), &params)
}

//! PVH's start info (Xen's `public/arch-x86/hvm/start_info.h`): magic, command line, modules and
//! the memory map, for a 32-bit entry that needs neither page tables nor a zero page.

use cabana_memory::{GuestAddress, GuestRam, MemoryError};

use super::Usable;
use crate::initrd::Placed;

/// `XEN_HVM_START_MAGIC_VALUE`.
pub const MAGIC: u32 = 0x336e_c578;
/// The version with a memory map.
const VERSION: u32 = 1;
const INFO_LEN: u64 = 56;
const MODULE_LEN: u64 = 32;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const RAM: u32 = 1;

/// Writes the info at `at`, its module list and memory map right behind. `root_pointer` is ACPI's, or 0.
pub(super) fn write(
    ram: &GuestRam,
    at: u64,
    command_line: u64,
    root_pointer: u64,
    initrd: Option<Placed>,
    map: &[Usable],
) -> Result<(), MemoryError> {
    let modules = u64::from(initrd.is_some());
    let module_list = at + INFO_LEN;
    let memory_map = module_list + modules * MODULE_LEN;
    let mut bytes = Vec::with_capacity(256);
    let mut u32s = |values: &[u32]| {
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    };
    u32s(&[MAGIC, VERSION, 0, modules as u32]);
    let mut u64s = |values: &[u64]| {
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    };
    let module_list = if initrd.is_some() { module_list } else { 0 };
    u64s(&[module_list, command_line, root_pointer, memory_map]);
    u64s(&[map.len() as u64]);
    if let Some(initrd) = initrd {
        u64s(&[initrd.start, initrd.len, 0, 0]);
    }
    for usable in map {
        u64s(&[usable.start, usable.end - usable.start, u64::from(RAM)]);
    }
    ram.write_bytes(GuestAddress(at), &bytes)
}

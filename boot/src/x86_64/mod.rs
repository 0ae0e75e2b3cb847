//! x86-64: what stands where in low memory, and how the first vCPU starts.

pub mod acpi;
mod boot_params;
mod mp_table;
mod page_tables;
pub mod pvh;

use cabana_memory::{GuestAddress, GuestRam};

use crate::{BootError, Format, Initrd, Kernel, X86Format, check_command_line, elf};

pub use mp_table::{IOAPIC_PINS, MAX_CPUS};

/// Where RAM makes room for devices below 4 GiB, and where it goes on.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// See [`LOW_RAM_END`].
pub const HIGH_RAM_START: u64 = 1 << 32;
/// The local APICs' registers (Intel SDM 3A §11.4.1).
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// The I/O APIC's registers.
pub const IO_APIC: u64 = 0xfec0_0000;

/// A flat GDT for the entry.
const GDT: u64 = 0x500;
/// PVH's start info, module list and memory map.
const PVH_START_INFO: u64 = 0x6000;
/// Linux's `boot_params`.
const BOOT_PARAMS: u64 = 0x7000;
/// Three pages of page tables.
const PAGE_TABLES: u64 = 0x9000;
/// The command line.
const COMMAND_LINE: u64 = 0x2_0000;
/// Usable RAM below the legacy video memory.
const BASE_RAM_END: u64 = 0x9_fc00;
/// ACPI's root pointer, where a kernel looks for it in BIOS memory, with its tables behind it.
const ACPI_TABLES: u64 = 0xe_0000;
/// The processor table, where a kernel looks for it in BIOS memory.
const MP_TABLE: u64 = 0xf_0000;
/// Where a kernel that restarts through the BIOS goes on, in real mode: F000:FFF0.
const RESET_VECTOR: u64 = 0xf_fff0;
/// Usable RAM above the legacy area.
const EXTENDED_RAM: u64 = 0x10_0000;
/// What a kernel without a limit of its own takes (`COMMAND_LINE_SIZE`), its NUL included.
const COMMAND_LINE_MAX: usize = 2048;

/// What is to be booted.
#[derive(Debug)]
pub struct Boot<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Its initramfs.
    pub initrd: Option<&'a Initrd>,
    /// Its command line.
    pub command_line: &'a str,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Pins of the I/O APIC, at most [`IOAPIC_PINS`].
    pub pins: u8,
    /// What ACPI tables say of the devices; without it there are none.
    pub acpi: Option<&'a acpi::Devices>,
}

/// How the first vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// 32-bit protected mode, flat segments, paging off, EBX at the start info.
    Pvh {
        /// EIP.
        entry: u32,
        /// EBX.
        start_info: u32,
    },
    /// 64-bit mode, identity-mapped, RSI at `boot_params`.
    Linux64 {
        /// RIP.
        entry: u64,
        /// RSI.
        boot_params: u64,
        /// CR3.
        page_tables: u64,
        /// GDT with a code segment at selector 0x10 and a data segment at 0x18.
        gdt: u64,
    },
}

/// A stretch of guest-physical memory for the kernel's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Usable {
    start: u64,
    end: u64,
}

/// Puts everything into `ram`.
pub fn load(boot: &Boot<'_>, ram: &GuestRam) -> Result<Start, BootError> {
    let Kernel { path, file, format } = boot.kernel;
    let Format::X86(format) = format else {
        let (path, architecture) = (path.clone(), "arm64".to_owned());
        return Err(BootError::ForeignArchitecture { path, architecture, machine: "x86-64" });
    };
    let low_end = low_ram_end(ram);
    let (kernel_end, cmdline_max) = match format {
        X86Format::Elf(elf) => (elf.end(), COMMAND_LINE_MAX - 1),
        X86Format::BzImage(image) => (image.end(), image.cmdline_max),
    };
    check_command_line(boot.command_line, cmdline_max)?;
    if kernel_end > low_end {
        return Err(BootError::TooLittleMemory {
            what: path.display().to_string(),
            needed: kernel_end,
            available: low_end,
        });
    }
    match format {
        X86Format::Elf(elf) => elf.load(path, file, ram)?,
        X86Format::BzImage(image) => image.load(path, file, ram)?,
    }
    let initrd = boot.initrd.map(|initrd| initrd.place(ram, kernel_end, low_end)).transpose()?;
    let mut command_line = boot.command_line.as_bytes().to_vec();
    command_line.push(0);
    ram.write_bytes(GuestAddress(COMMAND_LINE), &command_line)?;
    mp_table::write(ram, MP_TABLE, boot.cpus, boot.pins)?;
    if let Some(devices) = boot.acpi {
        acpi::write(ram, ACPI_TABLES, boot.cpus, devices)?;
        acpi::write_reset_vector(ram, RESET_VECTOR, devices)?;
    }
    let root_pointer = boot.acpi.map_or(0, |_| ACPI_TABLES);

    let map = memory_map(ram);
    let (entry, setup_header) = match format {
        X86Format::Elf(elf) => match elf.entry() {
            elf::Entry::Pvh(entry) => {
                pvh::write(ram, PVH_START_INFO, COMMAND_LINE, root_pointer, initrd, &map)?;
                return Ok(Start::Pvh { entry, start_info: PVH_START_INFO as u32 });
            }
            elf::Entry::Linux64(entry) => (entry, None),
        },
        X86Format::BzImage(image) => (image.entry(), Some(image.setup_header())),
    };
    let pointers = boot_params::Pointers { command_line: COMMAND_LINE, root_pointer };
    boot_params::write(ram, BOOT_PARAMS, pointers, setup_header, initrd, &map)?;
    page_tables::write(ram, PAGE_TABLES, GDT)?;
    Ok(Start::Linux64 { entry, boot_params: BOOT_PARAMS, page_tables: PAGE_TABLES, gdt: GDT })
}

/// One past the last byte of RAM that begins at 0.
fn low_ram_end(ram: &GuestRam) -> u64 {
    ram.slots().find(|slot| slot.guest.0 == 0).map_or(0, |slot| slot.len as u64)
}

/// RAM that the kernel may use: everything but the legacy area.
fn memory_map(ram: &GuestRam) -> Vec<Usable> {
    let mut map = vec![Usable { start: 0, end: BASE_RAM_END }];
    for slot in ram.slots() {
        let end = slot.guest.0 + slot.len as u64;
        map.push(Usable { start: slot.guest.0.max(EXTENDED_RAM), end });
    }
    map
}

#[cfg(test)]
mod tests;

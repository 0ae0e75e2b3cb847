//! ACPI tables, for kernels that find processors, interrupts and devices by nothing else (ACPI 6.5
//! §5.2): the hardware-reduced model, which needs no fixed hardware but two ports.
//!
//! root pointer → XSDT → FADT (→ DSDT: serial port and virtio devices) and MADT (interrupt
//! controllers), one behind the other.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device as AmlDevice, EISAName, IO, Interrupt, Memory32Fixed, Name, PackageBuilder, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use cabana_memory::{GuestAddress, GuestRam, MemoryError};

use super::{IO_APIC, LOCAL_APIC, MAX_CPUS};
use crate::BootError;

const OEM: [u8; 6] = *b"CABANA";
const OEM_TABLE: [u8; 8] = *b"CABANA  ";
const OEM_REVISION: u32 = 1;
/// A DSDT of revision 2 has 64-bit integers.
const DSDT_REVISION: u8 = 2;
const ALIGN: u64 = 16;

/// `IAPC_BOOT_ARCH`: no VGA, no CMOS clock; and as bit 1 is not set, no keyboard controller.
const NO_VGA_NO_CLOCK: u16 = 1 << 2 | 1 << 5;

/// What the tables say of the board beside its processors and interrupt controllers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    /// A 16550.
    pub serial: Device,
    /// Virtio devices with registers in memory.
    pub virtio: Vec<Device>,
    /// The port that resets, and the byte to write.
    pub reset: (u16, u8),
    /// The sleep control register's port, with the status register right behind, and the sleep type
    /// that powers off.
    pub sleep: (u16, u8),
}

/// A device's registers and its interrupt, edge-triggered and active high.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// The first port or address.
    pub start: u32,
    /// How many.
    pub len: u32,
    /// The I/O APIC's pin.
    pub pin: u8,
}

/// Writes the tables at `at`, where the root pointer then stands.
pub(super) fn write(
    ram: &GuestRam,
    at: u64,
    cpus: u32,
    devices: &Devices,
) -> Result<(), BootError> {
    if cpus == 0 || cpus > MAX_CPUS {
        return Err(BootError::TooManyCpus(cpus, MAX_CPUS));
    }
    Ok(ram.write_bytes(GuestAddress(at), &tables(at, cpus as u8, devices))?)
}

/// Writes at `at` what a BIOS has at the real-mode reset vector: code that resets the machine. Under
/// hardware-reduced ACPI Linux asks for EFI's reset and, without EFI, jumps there (`reboot_init`,
/// `native_machine_emergency_restart`); it would run through empty memory for ever.
pub(super) fn write_reset_vector(
    ram: &GuestRam,
    at: u64,
    devices: &Devices,
) -> Result<(), MemoryError> {
    let (port, value) = devices.reset;
    let [low, high] = port.to_le_bytes();
    // mov dx, port; mov al, value; out dx, al; hlt; jmp to the hlt.
    let code = [0xba, low, high, 0xb0, value, 0xee, 0xf4, 0xeb, 0xfd];
    ram.write_bytes(GuestAddress(at), &code)
}

/// All tables as they stand at `at`.
fn tables(at: u64, cpus: u8, devices: &Devices) -> Vec<u8> {
    let mut bytes = vec![0; Rsdp::len()];
    let mut add = |table: &dyn Aml| {
        bytes.resize(bytes.len().next_multiple_of(ALIGN as usize), 0);
        let address = at + bytes.len() as u64;
        table.to_aml_bytes(&mut bytes);
        address
    };
    let dsdt = add(&dsdt(devices));
    let fadt = add(&fadt(dsdt, devices).finalize());
    let madt = add(&madt(cpus));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = add(&xsdt);
    let mut root = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut root);
    bytes[..root.len()].copy_from_slice(&root);
    bytes
}

fn fadt(dsdt: u64, devices: &Devices) -> FADTBuilder {
    let port =
        |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let (reset, reset_value) = devices.reset;
    let (sleep, _) = devices.sleep;
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::ResetRegSup)
        // There are no buttons in fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = NO_VGA_NO_CLOCK.into();
    fadt.reset_reg = port(reset);
    fadt.reset_value = reset_value;
    fadt.sleep_control_reg = port(sleep);
    fadt.sleep_status_reg = port(sleep + 1);
    fadt
}

/// APIC ids from 0 and the I/O APIC behind them, as in the MP table.
fn madt(cpus: u8) -> MADT {
    let local_apics = LocalInterruptController::Address(LOCAL_APIC as u32);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, local_apics);
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(cpus, IO_APIC as u32, 0));
    madt
}

fn dsdt(devices: &Devices) -> Sdt {
    let mut aml = Vec::new();
    let (_, off) = devices.sleep;
    let mut s5 = PackageBuilder::new();
    s5.add_element(&off);
    Name::new("_S5_".into(), &s5).to_aml_bytes(&mut aml);

    let serial = devices.serial;
    let (start, len) = (serial.start as u16, serial.len as u8);
    let ports = IO::new(start, start, 1, len);
    device(&mut aml, "COM1", &EISAName::new("PNP0501"), 0, &ports, serial.pin);
    for (index, virtio) in (0_u8..).zip(&devices.virtio) {
        let registers = Memory32Fixed::new(true, virtio.start, virtio.len);
        let name = format!("V{index:03}");
        // The id that kernels know since QEMU's Arm board (`drivers/virtio/virtio_mmio.c`).
        device(&mut aml, &name, &"LNRO0005", index, &registers, virtio.pin);
    }

    let mut dsdt = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

/// A device below `\_SB`: who it is, where its registers are, and its interrupt.
fn device(aml: &mut Vec<u8>, name: &str, id: &dyn Aml, uid: u8, registers: &dyn Aml, pin: u8) {
    // It consumes the interrupt: edge-triggered, active high, shared with nobody.
    let interrupt = Interrupt::new(true, true, false, false, u32::from(pin));
    let id = Name::new("_HID".into(), id);
    let uid = Name::new("_UID".into(), &uid);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![registers, &interrupt]));
    let device = AmlDevice::new(Path::new(name), vec![&id, &uid, &resources]);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(aml);
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0xe_0000;

    fn devices() -> Devices {
        let virtio = |index: u32| Device {
            start: 0xd000_0000 + index * 0x1000,
            len: 0x1000,
            pin: 5 + index as u8,
        };
        Devices {
            serial: Device { start: 0x3f8, len: 8, pin: 4 },
            virtio: (0..2).map(virtio).collect(),
            reset: (0x64, 0xfe),
            sleep: (0x600, 5),
        }
    }

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    /// The table at a guest-physical address, once its sum is checked.
    fn table(bytes: &[u8], address: usize) -> &[u8] {
        let bytes = &bytes[address - AT as usize..];
        let bytes = &bytes[..u32_at(bytes, 4)];
        assert_eq!(sum(bytes), 0, "{:?}", bytes[..4].escape_ascii().to_string());
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// Follows the pointers as a kernel does: FADT, MADT and DSDT.
    fn walk(bytes: &[u8]) -> [&[u8]; 3] {
        assert!(bytes.starts_with(b"RSD PTR "));
        assert_eq!((sum(&bytes[..20]), sum(&bytes[..36])), (0, 0));
        let xsdt = table(bytes, u32_at(bytes, 24));
        assert!(xsdt.starts_with(b"XSDT"));
        assert_eq!(xsdt.len(), 36 + 2 * 8);
        let fadt = table(bytes, u32_at(xsdt, 36));
        let madt = table(bytes, u32_at(xsdt, 44));
        let dsdt = table(bytes, u32_at(fadt, 140));
        for (table, signature) in [(fadt, b"FACP"), (madt, b"APIC"), (dsdt, b"DSDT")] {
            assert!(table.starts_with(signature));
        }
        [fadt, madt, dsdt]
    }

    fn count(bytes: &[u8], pattern: &[u8]) -> usize {
        bytes.windows(pattern.len()).filter(|window| *window == pattern).count()
    }

    #[test]
    fn the_tables_lead_to_one_another() {
        let bytes = tables(AT, 3, &devices());
        let [fadt, madt, _] = walk(&bytes);
        // Hardware-reduced with a reset register: port 0x64, value 0xfe.
        assert_eq!(u32_at(fadt, 112) & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        assert_eq!(&fadt[116..129], b"\x01\x08\0\x01\x64\0\0\0\0\0\0\0\xfe");
        // Sleep control and status at ports 0x600 and 0x601.
        assert_eq!(&fadt[244..252], b"\x01\x08\0\x01\0\x06\0\0");
        assert_eq!(&fadt[256..264], b"\x01\x08\0\x01\x01\x06\0\0");
        // Three processors, of which the last is enabled with APIC id 2; the I/O APIC.
        assert_eq!(madt.len(), 44 + 3 * 8 + 12);
        assert_eq!(madt[60..68], [0, 8, 2, 2, 1, 0, 0, 0]);
        assert_eq!(madt[68..80], [1, 12, 3, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    }

    #[test]
    fn every_device_is_described() {
        let bytes = tables(AT, 1, &devices());
        let [_, _, dsdt] = walk(&bytes);
        assert_eq!(count(dsdt, b"COM1"), 1);
        // 16-bit decode, 0x3f8 to 0x3f8, by 1, 8 ports.
        assert_eq!(count(dsdt, &[0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8]), 1);
        assert_eq!(count(dsdt, b"LNRO0005"), 2);
        // Writable, 4 KiB at 0xd0001000; interrupt 6: consumer, edge, active high, exclusive.
        assert_eq!(count(dsdt, &[0x86, 9, 0, 1, 0, 0x10, 0, 0xd0, 0, 0x10, 0, 0]), 1);
        assert_eq!(count(dsdt, &[0x89, 6, 0, 0x03, 1, 6, 0, 0, 0]), 1);
    }

    #[test]
    fn the_largest_board_fits_below_the_mp_table() {
        let mut devices = devices();
        devices.virtio = vec![devices.virtio[0]; 24];
        let bytes = tables(AT, MAX_CPUS as u8, &devices);
        walk(&bytes);
        assert!(AT + (bytes.len() as u64) < super::super::MP_TABLE, "{:#x}", bytes.len());
    }
}

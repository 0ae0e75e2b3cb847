//! The processor table: vCPUs, I/O APIC and its pins (Intel's
//! Multiprocessor Specification 1.4 §4).
//! Smaller than ACPI's tables and quicker to parse.

use cabana_memory::{GuestAddress, GuestRam};

use super::{IO_APIC, LOCAL_APIC};
use crate::BootError;

/// vCPUs that fit beside the I/O APIC into 8-bit APIC ids (255 is the broadcast).
pub const MAX_CPUS: u32 = 254;
/// The most pins of our I/O APIC.
pub const IOAPIC_PINS: u8 = 24;

const FLOATING_LEN: usize = 16;
const HEADER_LEN: usize = 44;
const SPEC_1_4: u8 = 4;
const APIC_VERSION: u8 = 0x14;

const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IOAPIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

const ENABLED: u8 = 1;
const BOOTSTRAP: u8 = 2;
/// Family 6, model 0: kernels print it and use nothing of it.
const CPU_SIGNATURE: u32 = 0x600;
/// On-chip APIC and FPU.
const CPU_FEATURES: u32 = 0x201;
const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;
/// Polarity and trigger as the bus has them: an ISA line is active high and edge-triggered.
const CONFORMS: u16 = 0;
const ALL_CPUS: u8 = 0xff;

/// Writes the floating pointer at `at` and the table behind it; the I/O APIC has `pins` pins.
pub(super) fn write(ram: &GuestRam, at: u64, cpus: u32, pins: u8) -> Result<(), BootError> {
    if cpus == 0 || cpus > MAX_CPUS {
        return Err(BootError::TooManyCpus(cpus, MAX_CPUS));
    }
    let table = table(cpus as u8, pins);
    let mut floating = [0; FLOATING_LEN];
    floating[..4].copy_from_slice(b"_MP_");
    floating[4..8].copy_from_slice(&((at as u32) + FLOATING_LEN as u32).to_le_bytes());
    floating[8] = 1;
    floating[9] = SPEC_1_4;
    floating[10] = checksum(&floating);
    ram.write_bytes(GuestAddress(at), &floating)?;
    ram.write_bytes(GuestAddress(at + FLOATING_LEN as u64), &table)?;
    Ok(())
}

fn table(cpus: u8, pins: u8) -> Vec<u8> {
    let ioapic_id = cpus;
    let mut entries = Vec::new();
    let mut count = 0_u16;
    let mut add = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for cpu in 0..cpus {
        let flags = ENABLED | if cpu == 0 { BOOTSTRAP } else { 0 };
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[PROCESSOR, cpu, APIC_VERSION, flags]);
        entry[4..8].copy_from_slice(&CPU_SIGNATURE.to_le_bytes());
        entry[8..12].copy_from_slice(&CPU_FEATURES.to_le_bytes());
        add(&entry);
    }
    add(&[BUS, 0, b'I', b'S', b'A', b' ', b' ', b' ']);
    let mut ioapic = [IOAPIC, ioapic_id, APIC_VERSION, ENABLED, 0, 0, 0, 0];
    ioapic[4..].copy_from_slice(&(IO_APIC as u32).to_le_bytes());
    add(&ioapic);
    let [polarity, trigger] = CONFORMS.to_le_bytes();
    for pin in 0..pins {
        add(&[IO_INTERRUPT, VECTORED, polarity, trigger, 0, pin, ioapic_id, pin]);
    }
    add(&[LOCAL_INTERRUPT, EXTINT, polarity, trigger, 0, 0, 0, 0]);
    add(&[LOCAL_INTERRUPT, NMI, polarity, trigger, 0, 0, ALL_CPUS, 1]);

    let mut table = vec![0; HEADER_LEN];
    table[..4].copy_from_slice(b"PCMP");
    table[4..6].copy_from_slice(&((HEADER_LEN + entries.len()) as u16).to_le_bytes());
    table[6] = SPEC_1_4;
    table[8..16].copy_from_slice(b"CABANA  ");
    table[16..28].copy_from_slice(b"CABANA VMM  ");
    table[34..36].copy_from_slice(&count.to_le_bytes());
    table[36..40].copy_from_slice(&(LOCAL_APIC as u32).to_le_bytes());
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

/// What makes all bytes sum up to 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_adds_up() {
        let table = table(3, 24);
        assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        // 3 processors, a bus, an I/O APIC, 24 pins, 2 local lines.
        assert_eq!(u16::from_le_bytes([table[34], table[35]]), 31);
        assert_eq!(table.len(), 44 + 3 * 20 + 28 * 8);
        assert_eq!(table[HEADER_LEN + 3], ENABLED | BOOTSTRAP);
        assert_eq!(table[HEADER_LEN + 23], ENABLED);
    }
}

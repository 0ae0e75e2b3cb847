//! The I/O APIC (Intel 82093AA datasheet §3): up to 24 pins whose entries say which message goes to which
//! local APIC. The local APICs are the hypervisor's; messages leave through a [`MessageSink`].
//!
//! Every device of ours is edge-triggered, so an entry that the guest makes level-triggered is
//! served as an edge too: the message goes out at each pulse.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cabana_bus::{BusDevice, Interrupt, Persist, StateError};

use crate::IoApicState;

const PINS: usize = 24;
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;

const REG_ID: u8 = 0x00;
const REG_VERSION: u8 = 0x01;
const REG_ARBITRATION: u8 = 0x02;
const REG_TABLE: u8 = 0x10;

/// Version 0x11; the number of the highest entry stands above it.
const VERSION: u32 = 0x11;

const ENTRY_MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR are the I/O APIC's own.
const ENTRY_READ_ONLY: u64 = 1 << 12 | 1 << 14;
const ENTRY_LOGICAL: u64 = 1 << 11;
/// Vector and delivery mode stand in a message's data as in an entry.
const ENTRY_VECTOR_AND_MODE: u64 = 0x7ff;
const MESSAGE_BASE: u64 = 0xfee0_0000;

/// Takes messages to the local APICs.
pub trait MessageSink: Send + Sync {
    /// Sends the message (Intel SDM 3A §11.11).
    fn send(&self, address: u64, data: u32);
}

/// The device; its pins are [`Interrupt`]s.
pub struct IoApic {
    pins: u8,
    registers: Mutex<Registers>,
    sink: Box<dyn MessageSink>,
}

struct Registers {
    select: u8,
    id: u32,
    entries: [u64; PINS],
    /// Pins that were pulsed while masked; delivered when the guest unmasks them.
    pending: [bool; PINS],
}

impl IoApic {
    /// All pins masked, as after reset. A kernel sets up every pin that there is, with some eight
    /// exits each: have no more than are used.
    pub fn new(pins: u8, sink: Box<dyn MessageSink>) -> Arc<Self> {
        let pins = pins.clamp(1, PINS as u8);
        let registers =
            Registers { select: 0, id: 0, entries: [ENTRY_MASKED; PINS], pending: [false; PINS] };
        Arc::new(Self { pins, registers: Mutex::new(registers), sink })
    }

    /// The line into `pin`; `None` beyond the last.
    pub fn pin(self: &Arc<Self>, pin: u8) -> Option<Arc<dyn Interrupt>> {
        (pin < self.pins).then(|| {
            Arc::new(Pin { ioapic: Arc::clone(self), pin: pin.into() }) as Arc<dyn Interrupt>
        })
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, entry: u64) {
        let destination = entry >> 56;
        let logical = u64::from(entry & ENTRY_LOGICAL != 0);
        let address = MESSAGE_BASE | destination << 12 | logical << 2;
        self.sink.send(address, (entry & ENTRY_VECTOR_AND_MODE) as u32);
    }
}

impl Persist for IoApic {
    const VERSION: u16 = 1;
    type State = IoApicState;

    fn save(&self) -> IoApicState {
        let registers = self.registers();
        let pins = registers.entries.into_iter().zip(registers.pending);
        IoApicState {
            select: registers.select,
            id: registers.id,
            pins: pins.take(self.pins.into()).collect(),
        }
    }

    fn restore(&self, state: IoApicState) -> Result<(), StateError> {
        let pins = usize::from(self.pins);
        StateError::unless_same("the number of interrupt pins", &state.pins.len(), &pins)?;
        let mut registers = self.registers();
        registers.select = state.select;
        registers.id = state.id & 0xf;
        for (pin, (entry, pending)) in state.pins.into_iter().enumerate() {
            registers.entries[pin] = entry & !ENTRY_READ_ONLY;
            registers.pending[pin] = pending;
        }
        Ok(())
    }
}

struct Pin {
    ioapic: Arc<IoApic>,
    pin: usize,
}

impl Interrupt for Pin {
    fn pulse(&self) {
        let mut registers = self.ioapic.registers();
        let entry = registers.entries[self.pin];
        if entry & ENTRY_MASKED != 0 {
            registers.pending[self.pin] = true;
            return;
        }
        drop(registers);
        self.ioapic.send(entry);
    }
}

impl BusDevice for IoApic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = self.registers();
        let value = match offset {
            IOREGSEL => u32::from(registers.select),
            IOWIN => registers.read(self.pins),
            _ => 0,
        };
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes().into_iter().chain([0; 4])) {
            *byte = value;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        bytes.iter_mut().zip(data).for_each(|(byte, data)| *byte = *data);
        let value = u32::from_le_bytes(bytes);
        let mut registers = self.registers();
        match offset {
            IOREGSEL => registers.select = value as u8,
            IOWIN => {
                if let Some(entry) = registers.write(value) {
                    drop(registers);
                    self.send(entry);
                }
            }
            _ => {}
        }
    }
}

impl Registers {
    fn read(&self, pins: u8) -> u32 {
        match self.select {
            REG_ID | REG_ARBITRATION => self.id << 24,
            REG_VERSION => VERSION | u32::from(pins - 1) << 16,
            register => table(register).map_or(0, |(pin, shift)| {
                (self.entries.get(pin).copied().unwrap_or(0) >> shift) as u32
            }),
        }
    }

    /// Returns the entry of a pin that waited and may be delivered now.
    fn write(&mut self, value: u32) -> Option<u64> {
        if self.select == REG_ID {
            self.id = value >> 24 & 0xf;
        }
        let (pin, shift) = table(self.select)?;
        let entry = self.entries.get_mut(pin)?;
        let written = 0xffff_ffff_u64 << shift & !ENTRY_READ_ONLY;
        *entry = *entry & !written | u64::from(value) << shift & written;
        let entry = *entry;
        let deliver = entry & ENTRY_MASKED == 0 && std::mem::take(self.pending.get_mut(pin)?);
        deliver.then_some(entry)
    }
}

/// The pin and the half of its entry behind a register.
fn table(register: u8) -> Option<(usize, u32)> {
    let index = usize::from(register.checked_sub(REG_TABLE)?);
    (index < 2 * PINS).then_some((index / 2, if index % 2 == 0 { 0 } else { 32 }))
}

impl std::fmt::Debug for IoApic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoApic").field("entries", &self.registers().entries).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cabana_bus::SavedState;

    #[derive(Clone, Default)]
    struct Sent(Arc<Mutex<Vec<(u64, u32)>>>);

    impl MessageSink for Sent {
        fn send(&self, address: u64, data: u32) {
            self.0.lock().unwrap().push((address, data));
        }
    }

    impl Sent {
        fn take(&self) -> Vec<(u64, u32)> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    fn set(ioapic: &IoApic, register: u8, value: u32) {
        ioapic.write(IOREGSEL, &u32::from(register).to_le_bytes());
        ioapic.write(IOWIN, &value.to_le_bytes());
    }

    fn get(ioapic: &IoApic, register: u8) -> u32 {
        ioapic.write(IOREGSEL, &u32::from(register).to_le_bytes());
        let mut data = [0; 4];
        ioapic.read(IOWIN, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_pulse_becomes_the_entrys_message() {
        let sent = Sent::default();
        let ioapic = IoApic::new(24, Box::new(sent.clone()));
        set(&ioapic, 0x10 + 2 * 5 + 1, 3 << 24);
        set(&ioapic, 0x10 + 2 * 5, 0x0821);
        ioapic.pin(5).unwrap().pulse();
        assert_eq!(sent.take(), [(0xfee0_3004, 0x21)]);
        assert!(ioapic.pin(24).is_none());
    }

    #[test]
    fn a_masked_pulse_waits_and_comes_once() {
        let sent = Sent::default();
        let ioapic = IoApic::new(24, Box::new(sent.clone()));
        let pin = ioapic.pin(7).unwrap();
        pin.pulse();
        pin.pulse();
        assert_eq!(sent.take(), []);
        set(&ioapic, 0x10 + 2 * 7, 0x30);
        assert_eq!(sent.take(), [(0xfee0_0000, 0x30)]);
        set(&ioapic, 0x10 + 2 * 7, 0x31);
        assert_eq!(sent.take(), []);
    }

    #[test]
    fn another_takes_over_registers_and_what_waits() {
        let sent = Sent::default();
        let ioapic = IoApic::new(8, Box::new(sent.clone()));
        set(&ioapic, 0x10 + 2 * 5 + 1, 3 << 24);
        set(&ioapic, 0x10 + 2 * 5, 0x0821);
        ioapic.pin(7).unwrap().pulse();
        let saved = SavedState::of(&*ioapic);
        let other = IoApic::new(8, Box::new(sent.clone()));
        saved.into_part(&*other).unwrap();
        assert_eq!(other.save(), ioapic.save());
        other.pin(5).unwrap().pulse();
        set(&other, 0x10 + 2 * 7, 0x30);
        assert_eq!(sent.take(), [(0xfee0_3004, 0x21), (0xfee0_0000, 0x30)]);
        let small = IoApic::new(7, Box::new(sent));
        assert!(saved.into_part(&*small).unwrap_err().to_string().contains("was 8 and is 7"));
    }

    #[test]
    fn registers_keep_what_is_the_guests() {
        let ioapic = IoApic::new(24, Box::new(Sent::default()));
        assert_eq!(get(&ioapic, 1), 0x0017_0011);
        set(&ioapic, 0, 0x0200_0000);
        assert_eq!(get(&ioapic, 0), 0x0200_0000);
        set(&ioapic, 0x10, 0xffff_ffff);
        assert_eq!(get(&ioapic, 0x10), 0xffff_afff);
        // Beyond the table, and odd accesses.
        set(&ioapic, 0x40, 1);
        assert_eq!(get(&ioapic, 0x40), 0);
        ioapic.write(0x999, &[1; 8]);
        ioapic.read(IOWIN, &mut [0; 8]);
        ioapic.write(IOWIN, &[]);
        let small = IoApic::new(7, Box::new(Sent::default()));
        assert_eq!(get(&small, 1), 0x0006_0011);
        assert!(small.pin(7).is_none());
    }
}

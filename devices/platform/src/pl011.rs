//! Arm's PL011 serial port (Arm DDI 0183), as much of it as drivers use: no DMA, no modem lines, no loop-back.
//! What is sent is gone at once, so that the transmit FIFO is always empty.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use cabana_bus::{BusDevice, Line};

use crate::input::{SerialInput, TypeIn};

/// Registers (§3.2).
const DATA: u64 = 0x00;
const FLAGS: u64 = 0x18;
const INTEGER_BAUD: u64 = 0x24;
const FRACTIONAL_BAUD: u64 = 0x28;
const LINE_CONTROL: u64 = 0x2c;
const CONTROL: u64 = 0x30;
const FIFO_LEVELS: u64 = 0x34;
const MASK: u64 = 0x38;
const RAW_STATUS: u64 = 0x3c;
const MASKED_STATUS: u64 = 0x40;
const CLEAR: u64 = 0x44;
const IDENTITY: u64 = 0xfe0;

/// `UARTFR`: receive FIFO empty, receive FIFO full, transmit FIFO empty.
const RECEIVE_EMPTY: u32 = 1 << 4;
const RECEIVE_FULL: u32 = 1 << 6;
const TRANSMIT_EMPTY: u32 = 1 << 7;

/// Interrupts: received, sent, and received some time ago.
const RECEIVED: u32 = 1 << 4;
const SENT: u32 = 1 << 5;
const RECEIVED_LATELY: u32 = 1 << 6;
const ALL: u32 = 0x7ff;

/// `UARTCR` at reset: receiver and transmitter enabled.
const CONTROL_AT_RESET: u32 = 0x300;
/// `UARTPeriphID` and `UARTPCellID`, a byte a register: a PL011 of revision 1p5.
const IDENTITIES: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];
/// Characters in the receive FIFO.
const FIFO: usize = 32;

/// The port as the guest sees it.
pub struct Pl011 {
    shared: Arc<Shared>,
}

struct Shared {
    port: Mutex<Port>,
    /// There is room in the receive FIFO.
    drained: Condvar,
}

struct Port {
    output: Box<dyn Write + Send>,
    line: Box<dyn Line>,
    /// The line's level, as it was set last.
    level: bool,
    received: VecDeque<u8>,
    sent: bool,
    mask: u32,
    /// What is kept for the driver alone: baud rates, line control, control, FIFO levels.
    baud: (u32, u32),
    line_control: u32,
    control: u32,
    fifo_levels: u32,
}

impl Pl011 {
    /// A port that writes to `output` and interrupts by the level of `line`.
    pub fn new(line: Box<dyn Line>, output: Box<dyn Write + Send>) -> (Self, SerialInput) {
        let port = Port {
            output,
            line,
            level: false,
            received: VecDeque::with_capacity(FIFO),
            sent: false,
            mask: 0,
            baud: (0, 0),
            line_control: 0,
            control: CONTROL_AT_RESET,
            fifo_levels: 0x12,
        };
        let shared = Arc::new(Shared { port: Mutex::new(port), drained: Condvar::new() });
        (Self { shared: Arc::clone(&shared) }, SerialInput::new(shared))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Port {
    fn raw_status(&self) -> u32 {
        let received = if self.received.is_empty() { 0 } else { RECEIVED | RECEIVED_LATELY };
        received | if self.sent { SENT } else { 0 }
    }

    fn flags(&self) -> u32 {
        let receive = match self.received.len() {
            0 => RECEIVE_EMPTY,
            FIFO.. => RECEIVE_FULL,
            _ => 0,
        };
        receive | TRANSMIT_EMPTY
    }

    fn read(&mut self, offset: u64) -> u32 {
        match offset {
            DATA => self.received.pop_front().unwrap_or(0).into(),
            FLAGS => self.flags(),
            INTEGER_BAUD => self.baud.0,
            FRACTIONAL_BAUD => self.baud.1,
            LINE_CONTROL => self.line_control,
            CONTROL => self.control,
            FIFO_LEVELS => self.fifo_levels,
            MASK => self.mask,
            RAW_STATUS => self.raw_status(),
            MASKED_STATUS => self.raw_status() & self.mask,
            offset => {
                let index = offset.checked_sub(IDENTITY).filter(|at| at % 4 == 0).map(|at| at / 4);
                let byte = index.and_then(|index| IDENTITIES.get(index as usize));
                byte.copied().unwrap_or(0).into()
            }
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        match offset {
            DATA => {
                // A closed output is no concern of the guest's.
                let _ = self.output.write_all(&[value as u8]).and_then(|()| self.output.flush());
                self.sent = true;
            }
            INTEGER_BAUD => self.baud.0 = value & 0xffff,
            FRACTIONAL_BAUD => self.baud.1 = value & 0x3f,
            LINE_CONTROL => self.line_control = value & 0xff,
            CONTROL => self.control = value & 0xffff,
            FIFO_LEVELS => self.fifo_levels = value & 0x3f,
            MASK => self.mask = value & ALL,
            // What was received is told of until it is read.
            CLEAR => self.sent &= value & SENT == 0,
            _ => {}
        }
    }

    /// Sets the line to what it is to be.
    fn interrupt(&mut self) {
        let level = self.raw_status() & self.mask != 0;
        if level != self.level {
            self.level = level;
            self.line.set(level);
        }
    }
}

impl TypeIn for Shared {
    fn type_in(&self, bytes: &[u8]) {
        let mut port = self.lock();
        for &byte in bytes {
            while port.received.len() >= FIFO {
                port = self.drained.wait(port).unwrap_or_else(PoisonError::into_inner);
            }
            port.received.push_back(byte);
            port.interrupt();
        }
    }
}

impl BusDevice for Pl011 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut port = self.shared.lock();
        let value = port.read(offset).to_le_bytes();
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value) {
            *to = from;
        }
        if offset == DATA {
            port.interrupt();
            self.shared.drained.notify_all();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let value = data.iter().take(4).rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
        let mut port = self.shared.lock();
        port.write(offset, value);
        port.interrupt();
    }
}

impl std::fmt::Debug for Pl011 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pl011").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<(Vec<u8>, Vec<bool>)>>);

    impl Write for Seen {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().0.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Line for Seen {
        fn set(&self, level: bool) {
            self.0.lock().unwrap().1.push(level);
        }
    }

    fn port() -> (Pl011, SerialInput, Seen) {
        let seen = Seen::default();
        let (port, input) = Pl011::new(Box::new(seen.clone()), Box::new(seen.clone()));
        (port, input, seen)
    }

    fn read(port: &Pl011, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        BusDevice::read(port, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(port: &Pl011, offset: u64, value: u32) {
        BusDevice::write(port, offset, &value.to_le_bytes());
    }

    #[test]
    fn it_says_what_it_is() {
        let (port, ..) = port();
        let identity: Vec<u32> = (0..8).map(|at| read(&port, IDENTITY + 4 * at)).collect();
        assert_eq!(identity, [0x11, 0x10, 0x34, 0, 0x0d, 0xf0, 0x05, 0xb1]);
        assert_eq!(read(&port, FLAGS), TRANSMIT_EMPTY | RECEIVE_EMPTY);
        assert_eq!(read(&port, CONTROL), CONTROL_AT_RESET);
        assert_eq!((read(&port, 0x1000), read(&port, IDENTITY + 2)), (0, 0));
    }

    #[test]
    fn what_is_sent_goes_out_and_interrupts_until_it_is_cleared_or_masked() {
        let (port, _, seen) = port();
        write(&port, DATA, u32::from(b'x') | 0xff00);
        assert_eq!(seen.0.lock().unwrap().0, b"x");
        assert_eq!(read(&port, RAW_STATUS), SENT);
        assert_eq!(read(&port, MASKED_STATUS), 0);
        write(&port, MASK, SENT);
        write(&port, DATA, u32::from(b'y'));
        assert_eq!(read(&port, MASKED_STATUS), SENT);
        write(&port, CLEAR, SENT);
        write(&port, DATA, u32::from(b'z'));
        write(&port, MASK, 0);
        assert_eq!(*seen.0.lock().unwrap(), (b"xyz".to_vec(), vec![true, false, true, false]));
    }

    #[test]
    fn what_is_typed_interrupts_until_it_is_read() {
        let (port, input, seen) = port();
        write(&port, MASK, RECEIVED | RECEIVED_LATELY);
        input.type_in(b"hi");
        write(&port, CLEAR, ALL);
        assert_eq!(read(&port, MASKED_STATUS), RECEIVED | RECEIVED_LATELY);
        assert_eq!(read(&port, DATA), u32::from(b'h'));
        assert_eq!(read(&port, FLAGS), TRANSMIT_EMPTY);
        assert_eq!(read(&port, DATA), u32::from(b'i'));
        assert_eq!(read(&port, DATA), 0, "nothing is left");
        assert_eq!(seen.0.lock().unwrap().1, [true, false]);
    }

    #[test]
    fn typing_waits_for_the_guest_to_read() {
        let (port, input, _) = port();
        let typed: Vec<u8> = (0..200).collect();
        let expected = typed.clone();
        let typist = std::thread::spawn(move || input.type_in(&typed));
        let mut got = Vec::new();
        while got.len() < expected.len() {
            if read(&port, FLAGS) & RECEIVE_EMPTY == 0 {
                got.push(read(&port, DATA) as u8);
            }
        }
        typist.join().unwrap();
        assert_eq!(got, expected);
    }

    #[test]
    fn accesses_of_every_width_and_place_are_harmless() {
        let (port, input, _) = port();
        input.type_in(b"abc");
        for offset in 0..0x1010 {
            for width in [1, 2, 4, 8] {
                let mut data = vec![0xff; width];
                BusDevice::read(&port, offset, &mut data);
                assert!(data.iter().skip(4).all(|&byte| byte == 0));
                BusDevice::write(&port, offset, &vec![0xff; width]);
            }
        }
    }
}

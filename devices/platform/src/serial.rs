//! A 16550 serial port, for kernels that know no virtio console. The UART itself is `vm-superio`'s.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use cabana_bus::{BusDevice, Interrupt};
use vm_superio::Trigger;
use vm_superio::serial::{Serial as Uart, SerialEvents};

use crate::input::{SerialInput, TypeIn};

type Port = Uart<Line, Drained, Box<dyn Write + Send>>;

/// The port as the guest sees it.
pub struct Serial {
    port: Arc<Mutex<Port>>,
}

/// The other end of the line.
struct Input {
    port: Arc<Mutex<Port>>,
    drained: Arc<Condvar>,
}

/// Wakes who waits for room in the receive FIFO. Called with the port locked.
struct Drained(Arc<Condvar>);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.0.notify_all();
    }
}

/// An interrupt line in `vm-superio`'s words.
struct Line(Arc<dyn Interrupt>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> Result<(), io::Error> {
        self.0.pulse();
        Ok(())
    }
}

impl Serial {
    /// A port that writes to `output` and interrupts over `line`.
    pub fn new(line: Arc<dyn Interrupt>, output: Box<dyn Write + Send>) -> (Self, SerialInput) {
        let drained = Arc::new(Condvar::new());
        let uart = Uart::with_events(Line(line), Drained(Arc::clone(&drained)), output);
        let port = Arc::new(Mutex::new(uart));
        let input = Input { port: Arc::clone(&port), drained };
        (Self { port }, SerialInput::new(Arc::new(input)))
    }
}

impl TypeIn for Input {
    fn type_in(&self, mut bytes: &[u8]) {
        let mut port = lock(&self.port);
        while !bytes.is_empty() {
            if port.fifo_capacity() == 0 {
                port = self.drained.wait(port).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // Fails only in loop-back mode, where the outside world is cut off.
            let taken = port.enqueue_raw_bytes(bytes).unwrap_or(bytes.len());
            bytes = &bytes[taken..];
        }
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = lock(&self.port).read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            // A closed output is no concern of the guest's.
            let _ = lock(&self.port).write(offset, *byte);
        }
    }
}

fn lock(port: &Mutex<Port>) -> MutexGuard<'_, Port> {
    port.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serial").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[derive(Default)]
    struct Pulses(AtomicU32);

    impl Interrupt for Pulses {
        fn pulse(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn bytes_go_out_and_come_in() {
        let (output, pulses) = (Output::default(), Arc::new(Pulses::default()));
        let (serial, input) =
            Serial::new(Arc::clone(&pulses) as Arc<dyn Interrupt>, Box::new(output.clone()));
        serial.write(0, b"x");
        assert_eq!(*output.0.lock().unwrap(), b"x");
        // Interrupt when data is available.
        serial.write(1, &[1]);
        input.type_in(b"hi");
        assert_eq!(pulses.0.load(Ordering::Relaxed), 1);
        let mut byte = [0];
        serial.read(0, &mut byte);
        assert_eq!(&byte, b"h");
        // Only single bytes exist.
        serial.write(0, b"word");
        assert_eq!(*output.0.lock().unwrap(), b"x");
    }

    #[test]
    fn typing_waits_for_the_guest_to_read() {
        let (serial, input) = Serial::new(Arc::new(Pulses::default()), Box::new(io::sink()));
        let typed: Vec<u8> = (0..200).collect();
        let expected = typed.clone();
        let typist = std::thread::spawn(move || input.type_in(&typed));
        let mut got = Vec::new();
        while got.len() < expected.len() {
            let (mut status, mut byte) = ([0], [0]);
            serial.read(5, &mut status);
            if status[0] & 1 != 0 {
                serial.read(0, &mut byte);
                got.push(byte[0]);
            }
        }
        typist.join().unwrap();
        assert_eq!(got, expected);
    }
}

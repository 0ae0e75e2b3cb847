//! A 16550 serial port, for kernels that know no virtio console. The UART itself is `vm-superio`'s.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cabana_bus::{BusDevice, Interrupt};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Uart};

type Port = Uart<Line, NoEvents, Box<dyn Write + Send>>;

/// The port as the guest sees it.
pub struct Serial {
    port: Arc<Mutex<Port>>,
}

/// The other end of the line: what a person types.
#[derive(Clone)]
pub struct SerialInput {
    port: Arc<Mutex<Port>>,
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
        let port = Arc::new(Mutex::new(Uart::new(Line(line), output)));
        (Self { port: Arc::clone(&port) }, SerialInput { port })
    }
}

impl SerialInput {
    /// Puts bytes into the guest's receive FIFO; returns how many fitted.
    pub fn push(&self, bytes: &[u8]) -> usize {
        let mut port = lock(&self.port);
        if port.fifo_capacity() == 0 {
            return 0;
        }
        // Fails only in loop-back mode, where the outside world is cut off.
        port.enqueue_raw_bytes(bytes).unwrap_or(bytes.len())
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

impl std::fmt::Debug for SerialInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialInput").finish_non_exhaustive()
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
        assert_eq!(input.push(b"hi"), 2);
        assert_eq!(pulses.0.load(Ordering::Relaxed), 1);
        let mut byte = [0];
        serial.read(0, &mut byte);
        assert_eq!(&byte, b"h");
        // Only single bytes exist.
        serial.write(0, b"word");
        assert_eq!(*output.0.lock().unwrap(), b"x");
    }

    #[test]
    fn a_full_fifo_takes_no_more() {
        let (serial, input) = Serial::new(Arc::new(Pulses::default()), Box::new(io::sink()));
        assert_eq!(input.push(&[b'a'; 100]), 64);
        assert_eq!(input.push(b"b"), 0);
        serial.read(0, &mut [0]);
        assert_eq!(input.push(b"bc"), 1);
    }
}

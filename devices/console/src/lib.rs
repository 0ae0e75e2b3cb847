//! virtio-console (virtio 1.3 §5.3) with one port: what the guest prints goes to a function of the
//! embedder's, what the embedder types waits in a bounded queue until the guest reads it.

mod input;
mod state;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use cabana_bus::{Persist, SavedState, StateError};
use cabana_os::LoopHandle;
use cabana_virtio::{
    Chain, Identity, QueueContext, QueueState, ServedQueue, StartError, VirtioDevice,
};

pub use input::ConsoleInput;
use input::Shared;
pub use state::ConsoleState;

/// `VIRTIO_CONSOLE_F_SIZE`: the configuration holds columns and rows.
const F_SIZE: u64 = 1;
/// The queue that takes input to the guest, and the one that brings its output.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Linux fills the first with a page for each entry when it starts, and tells of each one.
const RECEIVE_SIZE: u16 = 4;
const TRANSMIT_SIZE: u16 = 64;
/// The most bytes printed out of one buffer; a Linux driver offers a page at most.
const MAX_OUTPUT: usize = 1 << 20;
/// Bytes handed to the sink at once.
const STEP: usize = 4096;

/// Takes what the guest prints.
type Sink = Box<dyn FnMut(&[u8]) + Send>;

/// The device.
pub struct Console {
    events: LoopHandle,
    sink: Arc<Mutex<Sink>>,
    shared: Arc<Shared>,
    receive: Option<ServedQueue>,
    transmit: Option<ServedQueue>,
}

impl Console {
    /// A console whose output goes to `sink`, and the handle for its input.
    ///
    /// `sink` runs on the loop of `events`: while it works nobody else on that loop is served, so
    /// it must not wait for long. A terminal may be slow but moves on; what may stand still (a pipe
    /// that nobody reads) belongs behind a buffer and a thread of its own.
    pub fn new(
        events: LoopHandle,
        sink: impl FnMut(&[u8]) + Send + 'static,
    ) -> (Self, ConsoleInput) {
        let shared = Arc::<Shared>::default();
        let input = ConsoleInput::new(Arc::clone(&shared));
        let sink: Sink = Box::new(sink);
        let sink = Arc::new(Mutex::new(sink));
        (Self { events, sink, shared, receive: None, transmit: None }, input)
    }

    fn start_receive(&self, context: QueueContext) -> io::Result<ServedQueue> {
        self.shared.connect(context.doorbell.try_clone()?);
        let shared = Arc::clone(&self.shared);
        ServedQueue::start_supply(&self.events, context, move |chain| shared.give(chain))
    }

    fn start_transmit(&self, context: QueueContext) -> io::Result<ServedQueue> {
        let sink = Arc::clone(&self.sink);
        ServedQueue::start(&self.events, context, move |chain| {
            print(chain, &mut sink.lock().unwrap_or_else(PoisonError::into_inner));
            0
        })
    }
}

impl VirtioDevice for Console {
    fn identity(&self) -> Identity {
        let queue_sizes = vec![RECEIVE_SIZE, TRANSMIT_SIZE];
        Identity { device_type: 3, features: F_SIZE, queue_sizes, config_len: 12 }
    }

    /// `struct virtio_console_config`: columns and rows; ports and emergency output are not
    /// offered.
    fn read_config(&self, config: &mut [u8]) {
        let (columns, rows) = self.shared.size();
        config[..2].copy_from_slice(&columns.to_le_bytes());
        config[2..4].copy_from_slice(&rows.to_le_bytes());
    }

    fn start_queue(&mut self, index: u16, context: QueueContext) -> Result<(), StartError> {
        match index {
            RECEIVE => {
                self.shared.announce_through(context.interrupt.clone());
                self.receive = Some(self.start_receive(context)?);
            }
            TRANSMIT => self.transmit = Some(self.start_transmit(context)?),
            _ => return Err(StartError::NoSuchQueue(index)),
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let queue = match index {
            RECEIVE => {
                self.shared.disconnect();
                self.receive.take()
            }
            TRANSMIT => self.transmit.take(),
            _ => None,
        };
        queue.map(ServedQueue::stop)
    }

    fn save(&self) -> SavedState {
        SavedState::of(self)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        state.into_part(self)
    }
}

impl Persist for Console {
    const VERSION: u16 = 1;
    type State = ConsoleState;

    fn save(&self) -> ConsoleState {
        self.shared.save()
    }

    fn restore(&self, state: ConsoleState) -> Result<(), StateError> {
        self.shared.restore(&state);
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("size", &self.shared.size()).finish_non_exhaustive()
    }
}

fn print(chain: &Chain, sink: &mut Sink) {
    let mut reader = chain.reader();
    let mut left = reader.left().min(MAX_OUTPUT);
    let mut bytes = [0; STEP];
    while left > 0 {
        let step = &mut bytes[..left.min(STEP)];
        if reader.read_exact(step).is_err() {
            return;
        }
        sink(step);
        left -= step.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cabana_os::EventLoop;
    use cabana_virtio::testing::TestDriver;
    use std::sync::mpsc::{self, Receiver};
    use std::time::Duration;

    /// What the driver sees, what it does, and what the embedder holds.
    struct Setup {
        driver: TestDriver,
        input: ConsoleInput,
        output: Receiver<Vec<u8>>,
        /// To be kept: the loop ends with it.
        _events: EventLoop,
    }

    fn setup() -> Setup {
        let events = EventLoop::spawn("test").unwrap();
        let (sender, output) = mpsc::channel();
        let (console, input) =
            Console::new(events.handle(), move |bytes| sender.send(bytes.to_vec()).unwrap());
        Setup { driver: TestDriver::new(console), input, output, _events: events }
    }

    #[test]
    fn output_arrives_in_order_and_whole() {
        let Setup { mut driver, output, _events, .. } = setup();
        assert_eq!(driver.send(TRANSMIT, &[b"hello ", b"world\n"], &[]), b"");
        assert_eq!(output.recv().unwrap(), b"hello world\n");
        let long: Vec<u8> = (0..3 * STEP + 5).map(|at| at as u8).collect();
        driver.send(TRANSMIT, &[&long], &[]);
        assert_eq!(output.try_iter().flatten().collect::<Vec<_>>(), long);
    }

    #[test]
    fn one_buffer_prints_no_more_than_the_limit() {
        let Setup { mut driver, output, _events, .. } = setup();
        driver.send(TRANSMIT, &[&vec![b'x'; MAX_OUTPUT + 1]], &[]);
        assert_eq!(output.try_iter().flatten().count(), MAX_OUTPUT);
    }

    #[test]
    fn input_waits_for_a_buffer_and_a_buffer_for_input() {
        let Setup { mut driver, input, _events, .. } = setup();
        assert_eq!(input.push(b"early"), 5);
        assert_eq!(driver.send(RECEIVE, &[], &[2, 1]), b"ear");
        assert_eq!(driver.send(RECEIVE, &[], &[64]), b"ly");
        let (one, two) = (driver.submit(RECEIVE, &[], &[4]), driver.submit(RECEIVE, &[], &[4]));
        assert!(driver.poll(RECEIVE).is_none());
        assert_eq!(input.push(b"later"), 5);
        assert_eq!(driver.wait_for(RECEIVE, one).written, b"late");
        assert_eq!(driver.wait_for(RECEIVE, two).written, b"r");
    }

    #[test]
    fn input_is_bounded_and_goes_on_when_the_guest_reads() {
        let Setup { mut driver, input, _events, .. } = setup();
        let much = vec![b'y'; input::CAPACITY + 10];
        assert_eq!(input.push(&much), input::CAPACITY);
        assert_eq!(input.push(b"z"), 0);
        let typist = std::thread::spawn(move || input.push_all(&much));
        let mut seen = 0;
        while seen < 2 * input::CAPACITY + 10 {
            seen += driver.send(RECEIVE, &[], &[5000]).len();
        }
        assert!(typist.join().unwrap());
    }

    #[test]
    fn a_typist_is_let_go_when_the_console_is_gone() {
        let Setup { driver, input, _events, .. } = setup();
        let typist = std::thread::spawn(move || input.push_all(&vec![0; 2 * input::CAPACITY]));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!typist.is_finished());
        drop(driver);
        assert!(!typist.join().unwrap());
    }

    #[test]
    fn input_typed_around_a_reset_is_kept() {
        let Setup { mut driver, input, _events, .. } = setup();
        driver.submit(RECEIVE, &[], &[64]);
        driver.reset();
        assert_eq!(input.push(b"kept"), 4);
        driver.start();
        assert_eq!(driver.send(RECEIVE, &[], &[64]), b"kept");
    }

    #[test]
    fn what_was_typed_is_read_in_another_machine() {
        let Setup { mut driver, input, _events: events, .. } = setup();
        input.resize(80, 25);
        assert_eq!(input.push(b"typed"), 5);
        let (sender, output) = mpsc::channel();
        let (other, input) =
            Console::new(events.handle(), move |bytes| sender.send(bytes.to_vec()).unwrap());
        driver.move_to(other).unwrap();
        assert_eq!(input.push(b" more"), 5);
        assert_eq!(driver.send(RECEIVE, &[], &[64]), b"typed more");
        assert_eq!(driver.config(0, 4), [80, 0, 25, 0]);
        driver.send(TRANSMIT, &[b"said"], &[]);
        assert_eq!(output.recv().unwrap(), b"said");
    }

    #[test]
    fn a_new_size_is_announced() {
        let Setup { driver, input, _events, .. } = setup();
        assert_eq!(driver.config(0, 4), [0; 4]);
        let before = driver.interrupts();
        input.resize(132, 43);
        assert_eq!(driver.config(0, 4), [132, 0, 43, 0]);
        assert_eq!(driver.interrupts(), before + 1);
        input.resize(132, 43);
        assert_eq!(driver.interrupts(), before + 1, "nothing has changed");
    }

    #[test]
    fn a_size_set_before_the_driver_comes_is_there() {
        let events = EventLoop::spawn("test").unwrap();
        let (console, input) = Console::new(events.handle(), |_| {});
        input.resize(80, 25);
        assert_eq!(TestDriver::new(console).config(0, 4), [80, 0, 25, 0]);
    }

    #[test]
    fn buffers_of_the_wrong_kind_do_no_harm() {
        let Setup { mut driver, input, output, _events, .. } = setup();
        assert_eq!(driver.send(TRANSMIT, &[], &[16]), b"", "nothing to print");
        assert_eq!(input.push(b"in"), 2);
        assert_eq!(driver.send(RECEIVE, &[b"no room"], &[]), b"");
        assert_eq!(driver.send(RECEIVE, &[b"skip"], &[2]), b"in");
        assert!(output.try_recv().is_err());
        assert!(!driver.needs_reset());
    }
}

//! A driver for unit tests: it brings a real device up through the real transport, as a guest would,
//! and can break every rule.
//!
//! ```ignore
//! let events = EventLoop::spawn("test")?;
//! let mut driver = TestDriver::new(Rng::new(events.handle()));
//! let bytes = driver.send(0, &[], &[64]);
//! ```
//!
//! Whatever a test did not expect (a timeout, a byte written outside a buffer, a buffer used without
//! an interrupt) panics.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use cabana_bus::{BusDevice, Interrupt, StateError};
use cabana_memory::{GuestAddress, GuestRam};

use crate::registers as reg;
use crate::{
    F_EVENT_IDX, F_INDIRECT_DESC, Identity, MmioTransport, QueueContext, QueueLayout, QueueState,
    RegisterPage, StartError, VirtioDevice,
};

/// `VIRTQ_DESC_F_NEXT`.
pub const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
pub const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`.
pub const INDIRECT: u16 = 4;

/// Bytes of guest RAM, from address 0.
pub const RAM_SIZE: usize = 64 << 20;
/// The first address of buffers; the rings lie below.
const BUFFERS: u64 = 4 << 20;
/// Room for the rings of a queue of 32768 entries.
const RINGS: u64 = 1 << 20;
/// Bytes behind a buffer that the device must leave alone.
const GUARD: [u8; 8] = [0xa5; 8];
/// How long a device may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a [`TestDriver`] brings the device up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Of the features offered, those to accept; all by default.
    pub features: u64,
    /// Entries of each queue, if fewer than the device allows.
    pub queue_size: Option<u16>,
    /// Put chains into indirect tables.
    pub indirect: bool,
    /// Skip the initialization: the test does it.
    pub idle: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { features: u64::MAX, queue_size: None, indirect: false, idle: false }
    }
}

impl Setup {
    /// Without notification suppression by index, without indirect tables: flags only.
    pub fn plain() -> Self {
        Self { features: !(F_EVENT_IDX | F_INDIRECT_DESC), ..Self::default() }
    }
}

/// A descriptor as it is written into a table.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawDescriptor {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The next descriptor.
    pub next: u16,
}

/// A buffer that the device has used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// The number that [`TestDriver::submit`] gave.
    pub head: u16,
    /// The bytes that the device says it wrote.
    pub written: Vec<u8>,
    /// All the writable room as the device left it; `0xa5` where it wrote nothing.
    pub room: Vec<u8>,
}

/// The interrupt line: counts, and wakes who waits.
#[derive(Debug, Default)]
struct Line {
    pulses: Mutex<usize>,
    pulsed: Condvar,
}

impl Interrupt for Line {
    fn pulse(&self) {
        *self.pulses.lock().unwrap() += 1;
        self.pulsed.notify_all();
    }
}

/// A buffer on its way through the device.
#[derive(Debug)]
struct InFlight {
    descriptors: Vec<u16>,
    /// Where its pieces lie, all of them.
    allocated: Vec<u64>,
    /// Address and length of the writable ones.
    writable: Vec<(u64, usize)>,
}

#[derive(Debug)]
struct DriverQueue {
    layout: QueueLayout,
    free: VecDeque<u16>,
    in_flight: BTreeMap<u16, InFlight>,
    next_avail: u16,
    next_used: u16,
    /// Taken from the used ring while looking for another.
    stashed: VecDeque<Used>,
}

/// The driver of one device.
#[derive(Debug)]
pub struct TestDriver {
    ram: GuestRam,
    transport: Arc<MmioTransport>,
    line: Arc<Line>,
    setup: Setup,
    queues: Vec<DriverQueue>,
    /// Start and end of what is allocated for buffers.
    allocated: BTreeMap<u64, u64>,
}

impl TestDriver {
    /// Takes the device live with every feature and all queues at their largest size.
    pub fn new(device: impl VirtioDevice + 'static) -> Self {
        Self::with(device, Setup::default())
    }

    /// Takes the device live as `setup` says.
    pub fn with(device: impl VirtioDevice + 'static, setup: Setup) -> Self {
        let ram = GuestRam::new(&[(GuestAddress(0), RAM_SIZE)]).unwrap();
        let line = Arc::<Line>::default();
        let page = RegisterPage::contiguous(1).unwrap().remove(0);
        let transport = MmioTransport::new(
            Box::new(device),
            page,
            ram.clone(),
            Arc::clone(&line) as Arc<dyn Interrupt>,
        )
        .unwrap();
        let mut driver =
            Self { ram, transport, line, setup, queues: Vec::new(), allocated: BTreeMap::new() };
        if !setup.idle {
            driver.start();
        }
        driver
    }

    /// The initialization of virtio 1.3 §3.1.1, from reset to `DRIVER_OK`.
    pub fn start(&mut self) {
        self.reset();
        self.write_register(reg::STATUS, reg::ACKNOWLEDGE);
        self.write_register(reg::STATUS, reg::ACKNOWLEDGE | reg::DRIVER);
        self.accept_features(self.offered_features() & self.setup.features);
        let status = reg::ACKNOWLEDGE | reg::DRIVER | reg::FEATURES_OK;
        self.write_register(reg::STATUS, status);
        assert_eq!(self.status(), status, "the device refused the features");
        for index in 0.. {
            let Some(layout) = self.lay_out(index) else { break };
            self.make_ready(index, layout);
        }
        self.write_register(reg::STATUS, status | reg::DRIVER_OK);
    }

    /// Resets the device; all buffers are forgotten.
    pub fn reset(&mut self) {
        self.write_register(reg::STATUS, 0);
        assert_eq!(self.status(), 0);
        self.queues.clear();
        self.allocated.clear();
    }

    /// Pauses the device and lets it go on.
    pub fn pause_and_resume(&self) {
        self.transport.pause();
        self.transport.resume();
    }

    /// Takes the driver to another device of the kind, in the state of this one, as a snapshot does;
    /// buffers on their way stay so.
    pub fn move_to(&mut self, device: impl VirtioDevice + 'static) -> Result<(), StateError> {
        self.transport.pause();
        // Through bytes, as it lies in a file.
        let bytes = postcard::to_allocvec(&self.transport.save()).unwrap();
        let state = postcard::from_bytes(&bytes).unwrap();
        let page = RegisterPage::contiguous(1).unwrap().remove(0);
        let line = Arc::clone(&self.line) as Arc<dyn Interrupt>;
        let transport = MmioTransport::new(Box::new(device), page, self.ram.clone(), line).unwrap();
        transport.restore(&state)?;
        transport.resume();
        self.transport = transport;
        Ok(())
    }

    /// The features that the device offers.
    pub fn offered_features(&self) -> u64 {
        self.write_register(reg::DEVICE_FEATURES_SEL, 0);
        let low = self.read_register(reg::DEVICE_FEATURES);
        self.write_register(reg::DEVICE_FEATURES_SEL, 1);
        u64::from(low) | u64::from(self.read_register(reg::DEVICE_FEATURES)) << 32
    }

    /// Writes the driver's features.
    pub fn accept_features(&self, features: u64) {
        for (select, half) in [(0, features), (1, features >> 32)] {
            self.write_register(reg::DRIVER_FEATURES_SEL, select);
            self.write_register(reg::DRIVER_FEATURES, half as u32);
        }
    }

    /// A place in RAM for the rings of queue `index`, cleared; `None` if the device has no such
    /// queue.
    fn lay_out(&mut self, index: u16) -> Option<QueueLayout> {
        self.write_register(reg::QUEUE_SEL, index.into());
        let max = self.read_register(reg::QUEUE_SIZE_MAX) as u16;
        if max == 0 {
            return None;
        }
        let size = self.setup.queue_size.map_or(max, |size| size.min(max));
        let base = 0x1000 + RINGS * u64::from(index);
        assert!(base + RINGS <= BUFFERS, "too many queues for the test driver");
        let avail = base + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let len = used + 6 + 8 * u64::from(size) - base;
        self.ram.write_bytes(GuestAddress(base), &vec![0; len as usize]).unwrap();
        let layout = QueueLayout { size, descriptors: base, avail, used };
        self.queues.push(DriverQueue {
            layout,
            free: (0..size).collect(),
            in_flight: BTreeMap::new(),
            next_avail: 0,
            next_used: 0,
            stashed: VecDeque::new(),
        });
        Some(layout)
    }

    /// Tells the device where the rings are and makes the queue ready.
    pub fn make_ready(&self, queue: u16, layout: QueueLayout) {
        self.write_register(reg::QUEUE_SEL, queue.into());
        self.write_register(reg::QUEUE_SIZE, layout.size.into());
        for (register, address) in [
            (reg::QUEUE_DESC_LOW, layout.descriptors),
            (reg::QUEUE_DRIVER_LOW, layout.avail),
            (reg::QUEUE_DEVICE_LOW, layout.used),
        ] {
            self.write_register(register, address as u32);
            self.write_register(register + 4, (address >> 32) as u32);
        }
        self.write_register(reg::QUEUE_READY, 1);
    }

    /// Sends a buffer and waits until the device has used it; returns what the device wrote.
    pub fn send(&mut self, queue: u16, readable: &[&[u8]], writable: &[usize]) -> Vec<u8> {
        let head = self.submit(queue, readable, writable);
        self.wait_for(queue, head).written
    }

    /// Offers a buffer of `readable` pieces and `writable` room, rings the doorbell if the device
    /// asked for that, and returns the buffer's number. Writable room is filled with `0xa5` before.
    pub fn submit(&mut self, queue: u16, readable: &[&[u8]], writable: &[usize]) -> u16 {
        let mut pieces = Vec::new();
        let mut in_flight =
            InFlight { descriptors: Vec::new(), allocated: Vec::new(), writable: Vec::new() };
        for bytes in readable {
            let addr = self.allocate(bytes.len());
            self.ram.write_bytes(GuestAddress(addr), bytes).unwrap();
            in_flight.allocated.push(addr);
            pieces.push(RawDescriptor { addr, len: bytes.len() as u32, ..Default::default() });
        }
        for &len in writable {
            let addr = self.allocate(len);
            self.ram.write_bytes(GuestAddress(addr), &vec![GUARD[0]; len + GUARD.len()]).unwrap();
            in_flight.allocated.push(addr);
            in_flight.writable.push((addr, len));
            pieces.push(RawDescriptor { addr, len: len as u32, flags: WRITE, next: 0 });
        }
        let count = if self.setup.indirect { 1 } else { pieces.len() };
        let state = &mut self.queues[usize::from(queue)];
        assert!(state.free.len() >= count && count > 0, "no room for {count} descriptors");
        in_flight.descriptors = state.free.drain(..count).collect();
        let head = in_flight.descriptors[0];
        if self.setup.indirect {
            let table = self.allocate(16 * pieces.len());
            in_flight.allocated.push(table);
            let numbers: Vec<u16> = (0..pieces.len() as u16).collect();
            self.write_chain(table, &numbers, &pieces);
            let len = 16 * pieces.len() as u32;
            let whole = RawDescriptor { addr: table, len, flags: INDIRECT, next: 0 };
            self.write_descriptor(queue, head, whole);
        } else {
            let table = self.layout(queue).descriptors;
            self.write_chain(table, &in_flight.descriptors, &pieces);
        }
        self.queues[usize::from(queue)].in_flight.insert(head, in_flight);
        self.offer(queue, head);
        if self.wants_notification(queue) {
            self.notify(queue);
        }
        head
    }

    /// Has the device asked to hear of the buffer offered last (virtio 1.3 §2.7.7, §2.7.10)?
    fn wants_notification(&self, queue: u16) -> bool {
        fence(Ordering::SeqCst);
        let state = &self.queues[usize::from(queue)];
        let QueueLayout { size, used, .. } = state.layout;
        if self.setup.features & F_EVENT_IDX == 0 {
            return self.ram.load_u16(GuestAddress(used)).unwrap() & 1 == 0;
        }
        let avail_event = GuestAddress(used + 4 + 8 * u64::from(size));
        self.ram.load_u16(avail_event).unwrap() == state.next_avail.wrapping_sub(1)
    }

    /// The next buffer that the device has used, if there is one.
    pub fn poll(&mut self, queue: u16) -> Option<Used> {
        let stashed = self.queues[usize::from(queue)].stashed.pop_front();
        stashed.or_else(|| self.take_used(queue))
    }

    /// Waits for the next buffer that the device uses.
    pub fn wait(&mut self, queue: u16) -> Used {
        let stashed = self.queues[usize::from(queue)].stashed.pop_front();
        stashed.unwrap_or_else(|| self.wait_used(queue))
    }

    /// Waits until the device has used the buffer `head`.
    pub fn wait_for(&mut self, queue: u16, head: u16) -> Used {
        let stashed = &mut self.queues[usize::from(queue)].stashed;
        if let Some(at) = stashed.iter().position(|used| used.head == head) {
            return stashed.remove(at).unwrap();
        }
        loop {
            let used = self.wait_used(queue);
            if used.head == head {
                return used;
            }
            self.queues[usize::from(queue)].stashed.push_back(used);
        }
    }

    /// Like a driver: look, ask for an interrupt, look again, sleep until it comes.
    fn wait_used(&mut self, queue: u16) -> Used {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = self.interrupts();
            self.ask_for_interrupt(queue);
            if let Some(used) = self.take_used(queue) {
                return used;
            }
            if !self.wait_interrupt(before, deadline) {
                let silent = self.take_used(queue).is_some();
                let fault = self.transport.fault();
                assert!(!silent, "queue {queue}: a buffer was used, but no interrupt came");
                panic!("queue {queue}: the device does not answer; fault: {fault:?}");
            }
        }
    }

    /// Sets `used_event`, so that the next used buffer interrupts (virtio 1.3 §2.7.7).
    fn ask_for_interrupt(&self, queue: u16) {
        let state = &self.queues[usize::from(queue)];
        let layout = state.layout;
        let used_event = layout.avail + 4 + 2 * u64::from(layout.size);
        self.ram.store_u16(GuestAddress(used_event), state.next_used).unwrap();
        fence(Ordering::SeqCst);
    }

    fn take_used(&mut self, queue: u16) -> Option<Used> {
        let state = &mut self.queues[usize::from(queue)];
        let layout = state.layout;
        if self.ram.load_u16(GuestAddress(layout.used + 2)).unwrap() == state.next_used {
            return None;
        }
        let slot = u64::from(state.next_used % layout.size);
        let entry: u64 = self.ram.read(GuestAddress(layout.used + 4 + 8 * slot)).unwrap();
        state.next_used = state.next_used.wrapping_add(1);
        let head = u16::try_from(entry as u32).expect("a buffer's number");
        let in_flight = state.in_flight.remove(&head).expect("a buffer that was offered");
        state.free.extend(&in_flight.descriptors);
        let mut room = Vec::new();
        for &(addr, len) in &in_flight.writable {
            let mut bytes = vec![0; len + GUARD.len()];
            self.ram.read_bytes(GuestAddress(addr), &mut bytes).unwrap();
            assert_eq!(bytes[len..], GUARD, "the device wrote behind a buffer");
            room.extend_from_slice(&bytes[..len]);
        }
        let len = (entry >> 32) as usize;
        assert!(len <= room.len(), "the device says that it wrote more than there is room for");
        let written = room[..len].to_vec();
        for addr in in_flight.allocated {
            self.allocated.remove(&addr);
        }
        Some(Used { head, written, room })
    }

    /// Waits for an interrupt beyond the first `before`; false if none comes in time.
    fn wait_interrupt(&self, before: usize, deadline: Instant) -> bool {
        let pulses = self.line.pulses.lock().unwrap();
        let patience = deadline.saturating_duration_since(Instant::now());
        let (_guard, wait) = self
            .line
            .pulsed
            .wait_timeout_while(pulses, patience, |pulses| *pulses == before)
            .unwrap();
        !wait.timed_out()
    }

    /// Interrupts so far.
    pub fn interrupts(&self) -> usize {
        *self.line.pulses.lock().unwrap()
    }

    /// Waits until the device asks for a reset and returns the reason.
    pub fn wait_needs_reset(&self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = self.interrupts();
            if self.status() & reg::NEEDS_RESET != 0 {
                return self.transport.fault().expect("a reason");
            }
            assert!(self.wait_interrupt(before, deadline), "the device asks for no reset");
        }
    }

    /// The device status register.
    pub fn status(&self) -> u32 {
        self.read_register(reg::STATUS)
    }

    /// Does the device ask for a reset?
    pub fn needs_reset(&self) -> bool {
        self.status() & reg::NEEDS_RESET != 0
    }

    /// `len` bytes of the device configuration.
    pub fn config(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for (at, byte) in (offset..).zip(&mut bytes) {
            self.transport.read(reg::CONFIG + at, std::slice::from_mut(byte));
        }
        bytes
    }

    /// The transport, to write what no driver would.
    pub fn transport(&self) -> &Arc<MmioTransport> {
        &self.transport
    }

    /// The guest's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Reads a register.
    pub fn read_register(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes a register.
    pub fn write_register(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    /// Where the rings of a queue are.
    pub fn layout(&self, queue: u16) -> QueueLayout {
        self.queues[usize::from(queue)].layout
    }

    /// Writes any descriptor into a queue's table.
    pub fn write_descriptor(&self, queue: u16, index: u16, descriptor: RawDescriptor) {
        self.write_table(self.layout(queue).descriptors, index, descriptor);
    }

    /// Writes any descriptor into a table anywhere.
    pub fn write_table(&self, table: u64, index: u16, descriptor: RawDescriptor) {
        let RawDescriptor { addr, len, flags, next } = descriptor;
        let at = table + 16 * u64::from(index);
        self.ram.write(GuestAddress(at), addr).unwrap();
        self.ram.write(GuestAddress(at + 8), len).unwrap();
        self.ram.write(GuestAddress(at + 12), flags).unwrap();
        self.ram.write(GuestAddress(at + 14), next).unwrap();
    }

    fn write_chain(&self, table: u64, numbers: &[u16], pieces: &[RawDescriptor]) {
        for (at, (&number, &piece)) in numbers.iter().zip(pieces).enumerate() {
            let linked = match numbers.get(at + 1) {
                Some(&next) => RawDescriptor { flags: piece.flags | NEXT, next, ..piece },
                None => piece,
            };
            self.write_table(table, number, linked);
        }
    }

    /// Puts any number into the avail ring, without ringing the doorbell.
    pub fn offer(&mut self, queue: u16, head: u16) {
        let state = &mut self.queues[usize::from(queue)];
        let slot = u64::from(state.next_avail % state.layout.size);
        let entry = GuestAddress(state.layout.avail + 4 + 2 * slot);
        self.ram.store_u16(entry, head).unwrap();
        state.next_avail = state.next_avail.wrapping_add(1);
        let next = state.next_avail;
        self.set_avail_index(queue, next);
    }

    /// Writes any index into the avail ring.
    pub fn set_avail_index(&self, queue: u16, index: u16) {
        self.ram.store_u16(GuestAddress(self.layout(queue).avail + 2), index).unwrap();
    }

    /// Rings a queue's doorbell, asked for or not.
    pub fn notify(&self, queue: u16) {
        self.write_register(reg::QUEUE_NOTIFY, queue.into());
    }

    /// Room for `len` bytes and their guard, at an address that nothing in flight covers.
    pub fn allocate(&mut self, len: usize) -> u64 {
        let len = (len + GUARD.len()) as u64;
        let mut start = BUFFERS;
        for (&from, &to) in &self.allocated {
            if start + len <= from {
                break;
            }
            start = start.max(to);
        }
        // An odd gap, so that no device counts on alignment or neighbourhood.
        let end = start + len + 3;
        assert!(end <= RAM_SIZE as u64, "the test driver is out of memory");
        self.allocated.insert(start, end);
        start
    }
}

/// A device that hands out its queues, so that a test serves them itself.
#[derive(Debug)]
struct Holder {
    queue_size: u16,
    queue: Arc<Mutex<Option<QueueContext>>>,
}

impl VirtioDevice for Holder {
    fn identity(&self) -> Identity {
        let queue_sizes = vec![self.queue_size];
        Identity { device_type: 42, features: 0, queue_sizes, config_len: 0 }
    }

    fn start_queue(&mut self, _index: u16, context: QueueContext) -> Result<(), StartError> {
        *self.queue.lock().unwrap() = Some(context);
        Ok(())
    }

    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        None
    }
}

/// A driver and the one queue of its device, for tests of what lies below a device.
pub fn bare_queue(queue_size: u16, setup: Setup) -> (TestDriver, QueueContext) {
    let queue = Arc::default();
    let driver = TestDriver::with(Holder { queue_size, queue: Arc::clone(&queue) }, setup);
    let context = queue.lock().unwrap().take().expect("a queue that has started");
    (driver, context)
}

/// A seeded source of bytes for tests that try much (xorshift64*).
#[derive(Clone, Debug)]
pub struct Noise(u64);

impl Noise {
    /// The same seed gives the same numbers; zero is not one.
    pub fn new(seed: u64) -> Self {
        assert_ne!(seed, 0);
        Self(seed)
    }

    /// The next number.
    #[allow(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

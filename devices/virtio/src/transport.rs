//! The virtio-mmio transport, version 2 (virtio 1.3 §4.2.2), without the legacy interface but for one register: a
//! driver that knows these devices by their vendor may lay out a queue and make it ready by one write of its place, as
//! legacy drivers do (§4.2.4), in place of eight, each of which would be an exit.
//!
//! Everything that the driver can read stands in a [`RegisterPage`] and is brought up to date before
//! the write that changes it returns. Reads therefore need no lock, and no exit where the machine
//! maps the page into the guest.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use cabana_bus::{BusDevice, Interrupt, StateError};
use cabana_memory::GuestRam;
use cabana_os::Event;

use crate::page::RegisterPage;
use crate::registers::{self, ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};
use crate::{
    DeviceInterrupt, Direct, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Identity, Queue,
    QueueContext, QueueLayout, QueueRegisters, TransportState, VirtioDevice,
};

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// "CABN", little-endian; nobody hands these numbers out.
const VENDOR: u32 = 0x4e42_4143;

/// Bytes of a page, and what a used ring's place is a multiple of, where a queue is placed by one write.
const LEGACY_ALIGN: u64 = 4096;

/// A device on the bus.
pub struct MmioTransport {
    page: Arc<RegisterPage>,
    identity: Identity,
    ram: GuestRam,
    /// One a queue.
    bells: Vec<Bell>,
    /// Nobody waits for it: see [`MmioTransport::doorbells`].
    acknowledged: Event,
    interrupt: DeviceInterrupt,
    /// The device's configuration has changed and nobody has looked at it yet.
    config_stale: AtomicBool,
    state: Mutex<State>,
}

/// How a queue's notifications reach whoever serves it.
struct Bell {
    event: Event,
    direct: Direct,
    /// The device serves in the thread of the vCPU that rings.
    serves_directly: bool,
}

/// A register write that a hypervisor can turn into a signal without leaving the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Doorbell<'a> {
    /// Offset in the register block.
    pub offset: u64,
    /// The 32-bit value that rings it.
    pub value: u32,
    /// What to signal.
    pub event: &'a Event,
}

/// The device and what the driver has written so far.
struct State {
    device: Box<dyn VirtioDevice>,
    driver_features: u64,
    driver_features_sel: u32,
    queue_sel: u32,
    queues: Vec<QueueRegisters>,
}

/// What a driver must not do; it is then asked for a reset.
#[derive(Debug, thiserror::Error)]
enum Violation {
    #[error("the driver takes device status {0:#x} to {1:#x}")]
    Status(u32, u32),
    #[error("the driver changes the features after it settled them, or takes unknown ones")]
    Features,
    #[error("the driver writes {1:#x} to register {2:#x} of queue {0}, which does not exist")]
    NoSuchQueue(u32, u32, u64),
    #[error("the driver writes {1:#x} to register {2:#x} of queue {0}, which is in use")]
    QueueInUse(u32, u32, u64),
    #[error("queue {0} cannot start: {1}")]
    Queue(u16, crate::QueueError),
    #[error("queue {0} cannot start: {1}")]
    Start(u16, crate::StartError),
}

impl MmioTransport {
    /// Puts `device` behind the registers of `page`; `line` is its interrupt.
    ///
    /// # Panics
    /// If the device's identity is not valid (a queue size that is not a power of two up to 32768,
    /// a configuration longer than 0xf00 bytes).
    pub fn new(
        device: Box<dyn VirtioDevice>,
        page: RegisterPage,
        ram: GuestRam,
        line: Arc<dyn Interrupt>,
    ) -> io::Result<Arc<Self>> {
        let identity = device.identity();
        let sizes = &identity.queue_sizes;
        assert!(sizes.iter().all(|size| size.is_power_of_two()), "queue sizes {sizes:?}");
        assert!(u64::from(identity.config_len) <= crate::page::SIZE - registers::CONFIG);
        let bells = (0..sizes.len() as u16)
            .map(|index| Bell::new(device.serves_directly(index)))
            .collect::<io::Result<Vec<_>>>()?;
        let acknowledged = Event::new()?;
        let state = State {
            device,
            driver_features: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            queues: vec![QueueRegisters::default(); sizes.len()],
        };
        let page = Arc::new(page);
        let transport = Arc::new_cyclic(|this: &Weak<Self>| {
            let this = Weak::clone(this);
            let on_config = Box::new(move || {
                if let Some(transport) = this.upgrade() {
                    transport.config_stale.store(true, Ordering::SeqCst);
                    transport.look_at_config();
                }
            });
            Self {
                interrupt: DeviceInterrupt::new(Arc::clone(&page), line, on_config),
                page,
                identity,
                ram,
                bells,
                acknowledged,
                config_stale: AtomicBool::new(false),
                state: Mutex::new(state),
            }
        });
        transport.page.store(registers::MAGIC_VALUE, MAGIC);
        transport.page.store(registers::VERSION, 2);
        transport.page.store(registers::DEVICE_ID, transport.identity.device_type);
        transport.page.store(registers::VENDOR_ID, VENDOR);
        transport.publish(&transport.lock());
        Ok(transport)
    }

    /// The page to map read-only at the device's address.
    pub fn register_page(&self) -> &RegisterPage {
        &self.page
    }

    /// Writes that a hypervisor may take over (KVM's ioeventfd); a write that arrives through
    /// [`BusDevice::write`] does the same.
    ///
    /// They are the notifications of the queues that are not served in the vCPU's thread, and the acknowledgement of a
    /// used buffer interrupt, which has no effect: `InterruptStatus` keeps saying that there may be used buffers, the
    /// driver looks into its rings at every interrupt, and none costs an exit to the machine.
    pub fn doorbells(&self) -> impl Iterator<Item = Doorbell<'_>> {
        let queues = (0..).zip(&self.bells).filter(|(_, bell)| !bell.serves_directly);
        let queues = queues.map(|(value, bell)| Doorbell {
            offset: registers::QUEUE_NOTIFY,
            value,
            event: &bell.event,
        });
        queues.chain([Doorbell {
            offset: registers::INTERRUPT_ACK,
            value: DeviceInterrupt::USED_BUFFER,
            event: &self.acknowledged,
        }])
    }

    /// Why the driver was last asked for a reset (`DEVICE_NEEDS_RESET`), for people.
    pub fn fault(&self) -> Option<String> {
        self.interrupt.fault()
    }

    /// Stops every queue: when this returns the device touches guest RAM no more and has finished
    /// what it had begun. For a machine whose vCPUs have stopped.
    pub fn stop(&self) {
        self.lock().stop_queues();
    }

    /// Stops every queue where it stands, for [`MmioTransport::save`]. For a machine whose vCPUs have
    /// stopped; [`MmioTransport::resume`] undoes it.
    pub fn pause(&self) {
        let mut state = self.lock();
        let State { device, queues, .. } = &mut *state;
        for (index, queue) in (0..).zip(queues.iter_mut()) {
            if std::mem::take(&mut queue.running) {
                queue.stopped = device.stop_queue(index);
            }
        }
    }

    /// Serves the queues again that were paused.
    pub fn resume(&self) {
        let mut state = self.lock();
        for index in 0..self.bells.len() as u16 {
            if let Err(violation) = self.start_queue(&mut state, index) {
                self.interrupt.needs_reset(violation);
            }
        }
    }

    /// All that goes on in another machine, of a transport that is paused.
    pub fn save(&self) -> TransportState {
        let state = self.lock();
        TransportState {
            registers: (0..registers::CONFIG).step_by(4).map(|at| self.page.load(at)).collect(),
            driver_features: state.driver_features,
            driver_features_sel: state.driver_features_sel,
            queue_sel: state.queue_sel,
            queues: state.queues.clone(),
            device: state.device.save(),
        }
    }

    /// Takes over what the transport of such a device had in another machine, whose RAM this one has.
    /// It is paused then.
    pub fn restore(&self, saved: &TransportState) -> Result<(), StateError> {
        let mut state = self.lock();
        let register = |at: u64| saved.registers.get(at as usize / 4).copied().unwrap_or(0);
        let same = StateError::unless_same::<u64>;
        let (was, here) = (register(registers::DEVICE_ID), self.identity.device_type);
        same("the device's type", &was.into(), &here.into())?;
        same("the number of queues", &(saved.queues.len() as u64), &(state.queues.len() as u64))?;
        same("the number of registers", &(saved.registers.len() as u64), &(registers::CONFIG / 4))?;
        let unknown = saved.driver_features & !self.offered();
        same("what the driver uses and the device lacks", &unknown, &0)?;
        state.device.restore(&saved.device)?;
        if register(registers::STATUS) & FEATURES_OK != 0 {
            state.device.set_features(saved.driver_features);
        }
        state.driver_features = saved.driver_features;
        state.driver_features_sel = saved.driver_features_sel;
        state.queue_sel = saved.queue_sel;
        state.queues.clone_from(&saved.queues);
        for (at, word) in (0..).step_by(4).zip(&saved.registers) {
            self.page.store(at, *word);
        }
        // What differs has its own generation, and the driver hears of it.
        if self.publish_config(&state) {
            self.interrupt.announce_config();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a configuration that has changed. Who finds the device busy leaves it to whoever
    /// keeps it busy, so that a device may announce a change while it is being called (a queue's
    /// handler that runs while [`VirtioDevice::stop_queue`] waits for it).
    fn look_at_config(&self) {
        fence(Ordering::SeqCst);
        while self.config_stale.load(Ordering::SeqCst) {
            let state = match self.state.try_lock() {
                Ok(state) => state,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            if self.config_stale.swap(false, Ordering::SeqCst) {
                self.publish_config(&state);
                self.interrupt.announce_config();
            }
            drop(state);
            fence(Ordering::SeqCst);
        }
    }

    fn offered(&self) -> u64 {
        self.identity.features | F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX
    }

    /// Brings everything up to date that depends on what a reset changes.
    fn publish(&self, state: &State) {
        self.publish_features(0);
        self.publish_queue(state);
        self.publish_shared_memory(state, 0);
        self.publish_config(state);
    }

    fn publish_features(&self, select: u32) {
        let word = match select {
            0 => self.offered() as u32,
            1 => (self.offered() >> 32) as u32,
            _ => 0,
        };
        self.page.store(registers::DEVICE_FEATURES, word);
    }

    fn publish_queue(&self, state: &State) {
        let at = state.queue_sel as usize;
        let max = self.identity.queue_sizes.get(at).copied().unwrap_or(0);
        let ready = state.queues.get(at).is_some_and(|queue| queue.ready);
        self.page.store(registers::QUEUE_SIZE_MAX, max.into());
        self.page.store(registers::QUEUE_READY, ready.into());
    }

    /// A region that does not exist has a length of -1 (virtio 1.3 §4.2.2).
    fn publish_shared_memory(&self, state: &State, id: u32) {
        let (base, len) = state.device.shared_memory(id).unwrap_or((u64::MAX, u64::MAX));
        self.page.store_halves(registers::SHM_LEN_LOW, registers::SHM_LEN_HIGH, len);
        self.page.store_halves(registers::SHM_BASE_LOW, registers::SHM_BASE_HIGH, base);
    }

    /// True if it differs from what the driver could read before.
    fn publish_config(&self, state: &State) -> bool {
        let mut config = vec![0; self.identity.config_len as usize];
        state.device.read_config(&mut config);
        self.page.store_config(&config)
    }

    fn write_register(&self, register: u64, value: u32) -> Result<(), Violation> {
        let mut state = self.lock();
        match register {
            registers::DEVICE_FEATURES_SEL => self.publish_features(value),
            registers::DRIVER_FEATURES_SEL => state.driver_features_sel = value,
            registers::DRIVER_FEATURES => {
                let settled = self.page.load(registers::STATUS) & FEATURES_OK != 0;
                state.accept_features(value, settled)?;
            }
            registers::QUEUE_SEL => {
                state.queue_sel = value;
                self.publish_queue(&state);
            }
            registers::SHM_SEL => self.publish_shared_memory(&state, value),
            registers::STATUS => self.write_status(&mut state, value)?,
            registers::QUEUE_PFN => {
                let written = self
                    .place_queue(&mut state, value)
                    .and_then(|()| self.write_ready(&mut state, 1));
                self.publish_queue(&state);
                written?;
            }
            registers::QUEUE_READY => {
                let written = self.write_ready(&mut state, value);
                self.publish_queue(&state);
                written?;
            }
            registers::QUEUE_SIZE
            | registers::QUEUE_DESC_LOW
            | registers::QUEUE_DESC_HIGH
            | registers::QUEUE_DRIVER_LOW
            | registers::QUEUE_DRIVER_HIGH
            | registers::QUEUE_DEVICE_LOW
            | registers::QUEUE_DEVICE_HIGH => state.lay_out_queue(register, value)?,
            _ => {}
        }
        Ok(())
    }

    /// The driver's way through the initialization (virtio 1.3 §3.1.1): bits are added in order and
    /// never taken back, except all at once.
    fn write_status(&self, state: &mut State, value: u32) -> Result<(), Violation> {
        if value == 0 {
            self.reset(state);
            return Ok(());
        }
        let old = self.page.load(registers::STATUS);
        let added = value & !old;
        let kept = old & !NEEDS_RESET & !value == 0;
        let known = added & !(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED) == 0;
        let ordered = [(DRIVER, ACKNOWLEDGE), (FEATURES_OK, DRIVER), (DRIVER_OK, FEATURES_OK)]
            .iter()
            .all(|(bit, before)| value & bit == 0 || value & before != 0);
        if !kept || !known || !ordered {
            return Err(Violation::Status(old, value));
        }
        if added & FEATURES_OK != 0 {
            let features = state.driver_features;
            // The bit that stays clear tells the driver that it asks for too much or too little.
            if features & !self.offered() != 0 || features & F_VERSION_1 == 0 {
                self.page.set_bits(registers::STATUS, added & !(FEATURES_OK | DRIVER_OK));
                return Ok(());
            }
            state.device.set_features(features);
            self.publish_config(state);
        }
        self.page.set_bits(registers::STATUS, added);
        if added & DRIVER_OK != 0 {
            for index in 0..self.bells.len() as u16 {
                self.start_queue(state, index)?;
            }
            // What changed before the device had an interrupt to say so.
            if self.publish_config(state) {
                self.interrupt.announce_config();
            }
        }
        Ok(())
    }

    /// Lays out a queue of the largest size as in §2.7.2, from the page of this number on.
    fn place_queue(&self, state: &mut State, page: u32) -> Result<(), Violation> {
        let index = state.queue_sel as usize;
        let size = self.identity.queue_sizes.get(index).copied().unwrap_or(0);
        let descriptors = u64::from(page) * LEGACY_ALIGN;
        let avail = descriptors + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(LEGACY_ALIGN);
        *state.queue_at_rest(registers::QUEUE_PFN, page)? =
            QueueLayout { size, descriptors, avail, used };
        Ok(())
    }

    fn write_ready(&self, state: &mut State, value: u32) -> Result<(), Violation> {
        let select = state.queue_sel;
        let Some(queue) = state.queues.get_mut(select as usize) else {
            return Err(Violation::NoSuchQueue(select, value, registers::QUEUE_READY));
        };
        let index = select as u16;
        if value & 1 == 0 {
            state.stop_queue(index);
        } else if !queue.ready {
            queue.ready = true;
            self.start_queue(state, index)?;
        }
        Ok(())
    }

    /// Starts a queue that is ready once the device is live.
    fn start_queue(&self, state: &mut State, index: u16) -> Result<(), Violation> {
        let status = self.page.load(registers::STATUS);
        let (Some(queue), Some(bell), Some(&max_size)) = (
            state.queues.get_mut(usize::from(index)),
            self.bells.get(usize::from(index)),
            self.identity.queue_sizes.get(usize::from(index)),
        ) else {
            return Ok(());
        };
        if !queue.ready || queue.running || status & (DRIVER_OK | NEEDS_RESET) != DRIVER_OK {
            return Ok(());
        }
        let (ram, features) = (self.ram.clone(), state.driver_features);
        let rings = match queue.stopped.take() {
            Some(stopped) => Queue::resume(ram, stopped, max_size, features),
            None => Queue::new(ram, queue.layout, max_size, features),
        };
        let rings = rings.map_err(|error| Violation::Queue(index, error))?;
        let context = QueueContext {
            queue: rings,
            doorbell: bell
                .event
                .try_clone()
                .map_err(|error| Violation::Start(index, error.into()))?,
            interrupt: self.interrupt.clone(),
            direct: bell.direct.clone(),
        };
        state.device.start_queue(index, context).map_err(|error| Violation::Start(index, error))?;
        queue.running = true;
        Ok(())
    }

    fn reset(&self, state: &mut State) {
        state.stop_queues();
        state.device.reset();
        state.driver_features = 0;
        state.driver_features_sel = 0;
        state.queue_sel = 0;
        state.queues.fill(QueueRegisters::default());
        self.page.store(registers::INTERRUPT_STATUS, 0);
        self.publish(state);
        self.page.store(registers::STATUS, 0);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if offset + data.len() as u64 <= u64::from(self.identity.config_len) {
            let mut state = self.lock();
            state.device.write_config(offset as u32, data);
            self.publish_config(&state);
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.page.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, <[u8; 4]>::try_from(data).map(u32::from_le_bytes)) {
            (registers::CONFIG..crate::page::SIZE, _) => {
                self.write_config(offset - registers::CONFIG, data);
            }
            (registers::QUEUE_NOTIFY, Ok(value)) => {
                if let Some(bell) = self.bells.get(value as usize) {
                    bell.ring();
                }
            }
            (registers::INTERRUPT_ACK, Ok(value)) => {
                let acknowledged = value & DeviceInterrupt::CONFIG_CHANGED;
                self.page.clear_bits(registers::INTERRUPT_STATUS, acknowledged);
            }
            (register, Ok(value)) => {
                if let Err(violation) = self.write_register(register, value) {
                    self.interrupt.needs_reset(violation);
                }
            }
            // Registers are written whole (virtio 1.3 §4.2.2.2).
            (_, Err(_)) => {}
        }
        self.look_at_config();
    }
}

impl Bell {
    fn new(serves_directly: bool) -> io::Result<Self> {
        Ok(Self { event: Event::new()?, direct: Direct::default(), serves_directly })
    }

    fn ring(&self) {
        if !self.direct.visit() {
            self.event.signal();
        }
    }
}

impl State {
    fn accept_features(&mut self, value: u32, settled: bool) -> Result<(), Violation> {
        let shift = match (self.driver_features_sel, value) {
            _ if settled => return Err(Violation::Features),
            (0, _) => 0,
            (1, _) => 32,
            (_, 0) => return Ok(()),
            _ => return Err(Violation::Features),
        };
        self.driver_features &= !(u64::from(u32::MAX) << shift);
        self.driver_features |= u64::from(value) << shift;
        Ok(())
    }

    /// The layout of the selected queue, to write `value` by `register`.
    fn queue_at_rest(&mut self, register: u64, value: u32) -> Result<&mut QueueLayout, Violation> {
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize) else {
            return Err(Violation::NoSuchQueue(self.queue_sel, value, register));
        };
        if queue.ready {
            return Err(Violation::QueueInUse(self.queue_sel, value, register));
        }
        Ok(&mut queue.layout)
    }

    fn lay_out_queue(&mut self, register: u64, value: u32) -> Result<(), Violation> {
        let layout = self.queue_at_rest(register, value)?;
        match register {
            // A size that does not fit is invalid like zero, which is found when the queue starts.
            registers::QUEUE_SIZE => layout.size = u16::try_from(value).unwrap_or(0),
            registers::QUEUE_DESC_LOW => set_low(&mut layout.descriptors, value),
            registers::QUEUE_DESC_HIGH => set_high(&mut layout.descriptors, value),
            registers::QUEUE_DRIVER_LOW => set_low(&mut layout.avail, value),
            registers::QUEUE_DRIVER_HIGH => set_high(&mut layout.avail, value),
            registers::QUEUE_DEVICE_LOW => set_low(&mut layout.used, value),
            registers::QUEUE_DEVICE_HIGH => set_high(&mut layout.used, value),
            _ => {}
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) {
        let Some(queue) = self.queues.get_mut(usize::from(index)) else { return };
        queue.ready = false;
        queue.stopped = None;
        if std::mem::take(&mut queue.running) {
            self.device.stop_queue(index);
        }
    }

    fn stop_queues(&mut self) {
        for index in 0..self.queues.len() as u16 {
            self.stop_queue(index);
        }
    }
}

fn set_low(word: &mut u64, low: u32) {
    *word = *word & !u64::from(u32::MAX) | u64::from(low);
}

fn set_high(word: &mut u64, high: u32) {
    *word = *word & u64::from(u32::MAX) | u64::from(high) << 32;
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioTransport")
            .field("identity", &self.identity)
            .field("fault", &self.fault())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

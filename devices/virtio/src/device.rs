//! The contract between a transport and a device (virtio 1.3 §2, §3.1).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cabana_bus::{Interrupt, SavedState, StateError};
use cabana_os::Event;

use crate::page::RegisterPage;
use crate::{Queue, QueueState, registers};

/// What a device is; constant over its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The device type (virtio 1.3 §5): 2 for a block device.
    pub device_type: u32,
    /// Feature bits that the device itself offers; the transport adds the ring features.
    pub features: u64,
    /// The largest size of each queue, a power of two up to 32768.
    pub queue_sizes: Vec<u16>,
    /// Bytes of device configuration, at most 0xf00.
    pub config_len: u32,
}

/// A virtio device. The transport calls it with one call at a time.
pub trait VirtioDevice: Send {
    /// What it is.
    fn identity(&self) -> Identity;

    /// The whole device configuration (virtio 1.3 §2.5), [`Identity::config_len`] bytes, zeroed
    /// before. The transport asks at the start, when the queues have started, and after
    /// [`DeviceInterrupt::config_changed`], [`VirtioDevice::set_features`],
    /// [`VirtioDevice::write_config`] and [`VirtioDevice::reset`].
    fn read_config(&self, _config: &mut [u8]) {}

    /// The driver writes `data` (1, 2, 4 or 8 bytes) at `offset` of the configuration, within it.
    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    /// The features that the driver accepted; called once before the first queue starts.
    fn set_features(&mut self, _features: u64) {}

    /// The driver has made the queue ready and the device live: serve it from now on.
    fn start_queue(&mut self, index: u16, context: QueueContext) -> Result<(), StartError>;

    /// Stop serving the queue and say where it stands. When this returns nothing of the device
    /// touches the queue any more. `None` if it was not running.
    fn stop_queue(&mut self, index: u16) -> Option<QueueState>;

    /// Back to the state before the driver came. All queues have been stopped.
    fn reset(&mut self) {}

    /// What the device has to remember beside its queues and features, while none of its queues runs:
    /// that of its [`cabana_bus::Persist`]. Most have nothing.
    fn save(&self) -> SavedState {
        SavedState::default()
    }

    /// Takes over what its like in another machine had to remember, before anything else is called.
    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        if *state == SavedState::default() { Ok(()) } else { Err(StateError::Malformed) }
    }

    /// Does the device answer the queue's buffers in the thread of the vCPU that rings for them
    /// ([`QueueContext::direct`])? Its notifications then come out to user space.
    fn serves_directly(&self, _index: u16) -> bool {
        false
    }

    /// Guest-physical start and length of the device's shared memory region `id`, if it has one
    /// (virtio 1.3 §2.10).
    fn shared_memory(&self, _id: u32) -> Option<(u64, u64)> {
        None
    }
}

/// All that a device needs to serve one queue.
#[derive(Debug)]
pub struct QueueContext {
    /// The rings.
    pub queue: Queue,
    /// Signalled when the driver has put something into the avail ring.
    pub doorbell: Event,
    /// To tell the driver about used buffers.
    pub interrupt: DeviceInterrupt,
    /// Where vCPUs that ring come by; used for queues of [`VirtioDevice::serves_directly`].
    pub direct: Direct,
}

/// A way for the vCPU that rings for a queue to have it served in its own thread, at once.
#[derive(Clone, Default)]
pub struct Direct {
    service: Arc<Mutex<Option<Box<Visit>>>>,
}

/// Serves what is there; false if there is something left for the doorbell's listener.
type Visit = dyn FnMut() -> bool + Send;

impl Direct {
    /// Opens the way to `service`, which says false if there is something left for the doorbell's listener.
    pub fn open(&self, service: impl FnMut() -> bool + Send + 'static) {
        *self.slot() = Some(Box::new(service));
    }

    /// Closes it. When this returns no vCPU is in the service.
    pub fn close(&self) {
        *self.slot() = None;
    }

    /// True if all is served; false if the doorbell has to be rung: another vCPU is in the service, it leaves
    /// something, or there is none.
    pub(crate) fn visit(&self) -> bool {
        match self.service.try_lock() {
            Ok(mut service) => service.as_mut().is_some_and(|service| service()),
            Err(_) => false,
        }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Box<Visit>>> {
        self.service.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Direct {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Direct").finish_non_exhaustive()
    }
}

/// A queue that cannot start; the device then asks for a reset (`DEVICE_NEEDS_RESET`).
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The device has no such queue.
    #[error("the device has no queue {0}")]
    NoSuchQueue(u16),
    /// The host refused something.
    #[error("cannot start the queue: {0}")]
    Host(#[from] std::io::Error),
}

/// How a device speaks to its driver: the interrupt line, the reason that the driver reads
/// (`InterruptStatus`, virtio 1.3 §4.2.2) and the device status. Cheap to clone.
#[derive(Clone)]
pub struct DeviceInterrupt {
    shared: Arc<Shared>,
}

struct Shared {
    page: Arc<RegisterPage>,
    line: Arc<dyn Interrupt>,
    on_config: Box<dyn Fn() + Send + Sync>,
    /// Why the driver was last asked for a reset.
    fault: Mutex<Option<String>>,
}

impl DeviceInterrupt {
    /// Bit 0 of `InterruptStatus`: a used buffer notification.
    pub const USED_BUFFER: u32 = 1;
    /// Bit 1 of `InterruptStatus`: a configuration change notification.
    pub const CONFIG_CHANGED: u32 = 2;

    /// `on_config` makes the transport read the configuration anew and then announce it.
    pub(crate) fn new(
        page: Arc<RegisterPage>,
        line: Arc<dyn Interrupt>,
        on_config: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self { shared: Arc::new(Shared { page, line, on_config, fault: Mutex::new(None) }) }
    }

    /// There are used buffers. Ask [`Queue::needs_interrupt`] first.
    pub fn used_buffer(&self) {
        self.raise(Self::USED_BUFFER);
    }

    /// The configuration has changed: the transport reads it at once, or, if it is busy, as soon
    /// as it is not, and tells the driver. May be called from anywhere, never blocks on the device.
    pub fn config_changed(&self) {
        (self.shared.on_config)();
    }

    /// The device cannot go on until the driver resets it (virtio 1.3 §2.1.2); `reason` is for
    /// people ([`crate::MmioTransport::fault`]).
    pub fn needs_reset(&self, reason: impl std::fmt::Display) {
        *self.fault_slot() = Some(reason.to_string());
        self.shared.page.set_bits(registers::STATUS, registers::NEEDS_RESET);
        self.announce_config();
    }

    /// Tells a driver that is live (virtio 1.3 §2.1.2) to look at the configuration and status.
    pub(crate) fn announce_config(&self) {
        if self.shared.page.load(registers::STATUS) & registers::DRIVER_OK != 0 {
            self.raise(Self::CONFIG_CHANGED);
        }
    }

    pub(crate) fn fault(&self) -> Option<String> {
        self.fault_slot().clone()
    }

    fn fault_slot(&self) -> MutexGuard<'_, Option<String>> {
        self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn raise(&self, reason: u32) {
        self.shared.page.set_bits(registers::INTERRUPT_STATUS, reason);
        self.shared.line.pulse();
    }
}

impl std::fmt::Debug for DeviceInterrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceInterrupt").field("fault", &self.fault()).finish_non_exhaustive()
    }
}

//! The contract between a transport and a device (virtio 1.3 §2, §3.1).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cabana_bus::Interrupt;
use cabana_os::Event;

use crate::{Queue, QueueState};

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

    /// The whole device configuration (virtio 1.3 §2.5), [`Identity::config_len`] bytes. The
    /// transport asks once at the start and after each [`DeviceInterrupt::config_changed`].
    fn read_config(&self, config: &mut [u8]) {
        config.fill(0);
    }

    /// The driver writes `data` at `offset` of the configuration.
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

/// The device's interrupt with the reason that the driver reads (virtio 1.3 §4.2.2).
#[derive(Clone)]
pub struct DeviceInterrupt {
    status: Arc<AtomicU32>,
    line: Arc<dyn Interrupt>,
    on_config: Arc<dyn Fn() + Send + Sync>,
}

impl DeviceInterrupt {
    /// Bit 0 of `InterruptStatus`: a used buffer notification.
    pub const USED_BUFFER: u32 = 1;
    /// Bit 1 of `InterruptStatus`: a configuration change notification.
    pub const CONFIG_CHANGED: u32 = 2;

    /// An interrupt over `line` with its reasons in `status`; `on_config` is called before a
    /// change of the configuration is announced, so that the transport can look at it.
    pub fn new(
        status: Arc<AtomicU32>,
        line: Arc<dyn Interrupt>,
        on_config: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self { status, line, on_config }
    }

    /// There are used buffers. Ask [`Queue::needs_interrupt`] first.
    pub fn used_buffer(&self) {
        self.raise(Self::USED_BUFFER);
    }

    /// The configuration has changed. Not to be called from within a call of the transport.
    pub fn config_changed(&self) {
        (self.on_config)();
        self.raise(Self::CONFIG_CHANGED);
    }

    fn raise(&self, reason: u32) {
        self.status.fetch_or(reason, Ordering::SeqCst);
        self.line.pulse();
    }
}

impl std::fmt::Debug for DeviceInterrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceInterrupt").field("status", &self.status).finish_non_exhaustive()
    }
}

//! The device (virtio 1.3 §5.10): type 19, the queues rx, tx and event.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cabana_bus::{Persist, SavedState, StateError};
use cabana_os::{LoopHandle, Token};
use cabana_virtio::{
    Identity, Queue, QueueContext, QueueError, QueueState, StartError, VirtioDevice,
};

use crate::host::Hub;
use crate::inbox::lock;
use crate::rx::Rx;
use crate::tx::Tx;
use crate::{VsockHost, VsockState};

const DEVICE_TYPE: u32 = 19;
/// `VIRTIO_VSOCK_F_STREAM`.
const F_STREAM: u64 = 1;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`.
const TRANSPORT_RESET: u32 = 0;
const RX: u16 = 0;
const TX: u16 = 1;
const EVENT: u16 = 2;
/// Linux gives 4 KiB to every rx buffer: more than a connection's credit altogether.
const RX_SIZE: u16 = 128;
const TX_SIZE: u16 = 128;
/// Linux offers eight buffers for events.
const EVENT_SIZE: u16 = 8;

/// What a machine's vsock is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's context id, at least 3.
    pub guest_cid: u64,
    /// Bytes from the guest that wait for a reader, a connection, at most. The guest blocks beyond.
    pub buffer: u32,
    /// Connections at a time; more are refused.
    pub max_connections: usize,
    /// Connections of the guest's to one listener that nobody has accepted yet; more are refused.
    pub backlog: usize,
}

impl Default for VsockConfig {
    fn default() -> Self {
        Self { guest_cid: 3, buffer: 256 << 10, max_connections: 1024, backlog: 128 }
    }
}

/// The virtio-vsock device. Dropping it ends every connection: the machine is gone.
#[derive(Debug)]
pub struct VsockDevice {
    hub: Arc<Hub>,
    events: LoopHandle,
    rx: Option<Token>,
    tx: Option<(Token, Arc<Mutex<Tx>>)>,
    event: Option<Queue>,
    /// The guest comes out of a snapshot and believes in connections that are gone.
    restored: AtomicBool,
}

impl VsockDevice {
    /// A device whose queues are served on `events`, and the way for the host's threads to use it.
    pub fn new(config: VsockConfig, events: LoopHandle) -> (Self, VsockHost) {
        let hub = Hub::new(config);
        let host = VsockHost::new(Arc::clone(&hub));
        let restored = AtomicBool::new(false);
        (Self { hub, events, rx: None, tx: None, event: None, restored }, host)
    }

    fn start_rx(&mut self, context: QueueContext) -> io::Result<()> {
        let doorbell = context.doorbell.try_clone()?;
        self.hub.with_rx(|rx| rx.start(context));
        let hub = Arc::clone(&self.hub);
        self.rx = Some(self.events.add_event(&doorbell, move || {
            let starved = hub.with_rx(|rx| {
                let starved = rx.refilled();
                rx.flush();
                starved
            });
            for link in starved {
                link.update(|state| state.starved = false);
            }
        })?);
        // What the driver offered before anyone listened.
        doorbell.signal();
        Ok(())
    }

    fn start_event(&mut self, context: QueueContext) {
        let QueueContext { mut queue, interrupt, .. } = context;
        if self.restored.swap(false, Ordering::Relaxed) {
            match announce_reset(&mut queue) {
                Ok(true) => interrupt.used_buffer(),
                Ok(false) => {}
                Err(error) => interrupt.needs_reset(error),
            }
        }
        self.event = Some(queue);
    }

    fn start_tx(&mut self, context: QueueContext) -> io::Result<()> {
        let doorbell = context.doorbell.try_clone()?;
        let tx = Arc::new(Mutex::new(Tx::new(Arc::clone(&self.hub), context)));
        let served = Arc::clone(&tx);
        let token = self.events.add_event(&doorbell, move || lock(&served).serve())?;
        self.tx = Some((token, tx));
        doorbell.signal();
        Ok(())
    }
}

impl VirtioDevice for VsockDevice {
    fn identity(&self) -> Identity {
        Identity {
            device_type: DEVICE_TYPE,
            features: F_STREAM,
            queue_sizes: vec![RX_SIZE, TX_SIZE, EVENT_SIZE],
            config_len: 8,
        }
    }

    fn read_config(&self, config: &mut [u8]) {
        for (byte, value) in config.iter_mut().zip(self.hub.config.guest_cid.to_le_bytes()) {
            *byte = value;
        }
    }

    fn start_queue(&mut self, index: u16, context: QueueContext) -> Result<(), StartError> {
        match index {
            RX => self.start_rx(context)?,
            TX => self.start_tx(context)?,
            EVENT => self.start_event(context),
            _ => return Err(StartError::NoSuchQueue(index)),
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        match index {
            RX => {
                if let Some(token) = self.rx.take() {
                    self.events.remove(token);
                }
                self.hub.with_rx(Rx::stop)
            }
            TX => {
                let (token, tx) = self.tx.take()?;
                self.events.remove(token);
                let state = lock(&tx).state();
                Some(state)
            }
            EVENT => self.event.take().map(|queue| queue.state()),
            _ => None,
        }
    }

    fn reset(&mut self) {
        self.hub.reset();
    }

    fn save(&self) -> SavedState {
        SavedState::of(self)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        state.into_part(self)
    }
}

impl Persist for VsockDevice {
    const VERSION: u16 = 1;
    type State = VsockState;

    fn save(&self) -> VsockState {
        VsockState { guest_cid: self.hub.config.guest_cid, next_port: self.hub.next_port() }
    }

    fn restore(&self, state: VsockState) -> Result<(), StateError> {
        let here = self.hub.config.guest_cid;
        StateError::unless_same("the guest's context id", &state.guest_cid, &here)?;
        self.hub.connect_from(state.next_port);
        self.restored.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Tells the driver that all connections are gone (virtio 1.3 §5.10.6.7); it then asks for the context
/// id anew. False if it has no buffer for that or wants no interrupt.
fn announce_reset(queue: &mut Queue) -> Result<bool, QueueError> {
    let Some(chain) = queue.pop()? else { return Ok(false) };
    let mut writer = chain.writer();
    let _no_room = writer.write_all(&TRANSPORT_RESET.to_le_bytes());
    queue.push(&chain, writer.written())?;
    queue.needs_interrupt()
}

impl Drop for VsockDevice {
    fn drop(&mut self) {
        for index in [RX, TX, EVENT] {
            self.stop_queue(index);
        }
        self.hub.shut_down();
    }
}

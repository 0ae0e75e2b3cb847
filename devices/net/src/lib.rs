//! virtio-net (virtio 1.3 §5.1): a network card plugged into a [`FrameLink`].
//!
//! - The guest may leave checksums to the device and send TCP packets of 64 KiB: between guest and stack there
//!   is memory only, so nothing is ever cut up or summed. It is told of a checksum that it may leave unlooked
//!   at in the same way.
//! - Receive buffers are merged: a large frame takes as many as it needs, and small ones waste none.
//! - Frames are pulled out of the stack as the guest has buffers, so that a guest that takes none stops the
//!   connections behind it, and nothing is lost or kept on the way.
//!
//! There is one pair of queues: one thread serves a machine's network, and a second pair would only wait for
//! it. There is no control queue, since there is nothing to control.

mod rx;
mod service;
mod state;
mod tx;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cabana_bus::{Persist, SavedState, StateError};
use cabana_netstack::{EthernetAddress, FrameLink};
use cabana_os::{LoopHandle, Token};
use cabana_virtio::{Identity, QueueContext, QueueState, StartError, VirtioDevice};

pub use state::NetState;

use crate::rx::Rx;
use crate::tx::Tx;

const DEVICE_TYPE: u32 = 1;
const RX: u16 = 0;
const TX: u16 = 1;
/// Linux puts a page behind each receive buffer when frames are large: sixteen frames of 64 KiB.
const QUEUE_SIZE: u16 = 256;

/// Checksums of the driver's packets may be left out.
const F_CSUM: u64 = 1 << 0;
/// Checksums of packets to the driver may be left out.
const F_GUEST_CSUM: u64 = 1 << 1;
/// The device tells the MTU.
const F_MTU: u64 = 1 << 3;
/// The device tells the hardware address.
const F_MAC: u64 = 1 << 5;
/// Packets to the driver may be larger than the MTU says: the driver then has buffers for 64 KiB.
const F_GUEST_TSO: u64 = 1 << 7 | 1 << 8;
/// The driver's TCP packets may be larger than the MTU.
const F_HOST_TSO: u64 = 1 << 11 | 1 << 12;
/// A frame may take several receive buffers.
const F_MRG_RXBUF: u64 = 1 << 15;

/// `struct virtio_net_hdr` with `num_buffers` (virtio 1.3 §5.1.6).
pub(crate) const HEADER: usize = 12;
/// The largest frame: Ethernet with one tag, and an IP packet.
pub(crate) const MAX_FRAME: usize = 18 + 65_535;

/// The card.
pub struct Net<L> {
    link: Arc<L>,
    events: LoopHandle,
    mac: EthernetAddress,
    mtu: u16,
    features: u64,
    rx: Option<(Token, Arc<Mutex<Rx<L>>>)>,
    tx: Option<(Token, Arc<Mutex<Tx<L>>>)>,
}

impl<L: FrameLink + Sync + 'static> Net<L> {
    /// A card with this address, plugged into `link`. `events` is the loop that serves the link too.
    pub fn new(link: L, mac: EthernetAddress, mtu: u16, events: LoopHandle) -> Self {
        Self { link: Arc::new(link), events, mac, mtu, features: 0, rx: None, tx: None }
    }

    fn start_rx(&mut self, context: QueueContext) -> Result<(), StartError> {
        let doorbell = context.doorbell.try_clone()?;
        let notify = context.doorbell.try_clone()?;
        let merged = self.features & F_MRG_RXBUF != 0;
        let rx = Arc::new(Mutex::new(Rx::new(Arc::clone(&self.link), context, merged)));
        let served = Arc::clone(&rx);
        let token = self.events.add_event(&doorbell, move || lock(&served).serve())?;
        self.rx = Some((token, rx));
        let trusting = self.features & F_GUEST_CSUM != 0;
        self.link.start(trusting, Arc::new(move || notify.signal()));
        Ok(())
    }

    fn start_tx(&mut self, context: QueueContext) -> Result<(), StartError> {
        let doorbell = context.doorbell.try_clone()?;
        let tx = Arc::new(Mutex::new(Tx::new(Arc::clone(&self.link), context)));
        let served = Arc::clone(&tx);
        let token = self.events.add_event(&doorbell, move || lock(&served).serve())?;
        self.tx = Some((token, tx));
        // What the driver offered before anyone listened.
        doorbell.signal();
        Ok(())
    }
}

impl<L: FrameLink + Sync + 'static> VirtioDevice for Net<L> {
    fn identity(&self) -> Identity {
        Identity {
            device_type: DEVICE_TYPE,
            features: F_CSUM
                | F_GUEST_CSUM
                | F_MTU
                | F_MAC
                | F_GUEST_TSO
                | F_HOST_TSO
                | F_MRG_RXBUF,
            queue_sizes: vec![QUEUE_SIZE; 2],
            config_len: 12,
        }
    }

    /// `struct virtio_net_config` up to the MTU; status and number of queue pairs stay zero, because their
    /// features are not offered.
    fn read_config(&self, config: &mut [u8]) {
        let fields = self.mac.0.into_iter().chain([0; 4]).chain(self.mtu.to_le_bytes());
        for (byte, value) in config.iter_mut().zip(fields) {
            *byte = value;
        }
    }

    fn set_features(&mut self, features: u64) {
        self.features = features;
    }

    fn start_queue(&mut self, index: u16, context: QueueContext) -> Result<(), StartError> {
        match index {
            RX => self.start_rx(context),
            TX => self.start_tx(context),
            _ => Err(StartError::NoSuchQueue(index)),
        }
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        match index {
            RX => {
                let (token, rx) = self.rx.take()?;
                self.events.remove(token);
                let state = lock(&rx).state();
                Some(state)
            }
            TX => {
                let (token, tx) = self.tx.take()?;
                self.events.remove(token);
                let state = lock(&tx).state();
                Some(state)
            }
            _ => None,
        }
    }

    fn reset(&mut self) {
        self.features = 0;
    }

    fn save(&self) -> SavedState {
        SavedState::of(self)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        state.into_part(self)
    }
}

impl<L> Persist for Net<L> {
    const VERSION: u16 = 1;
    type State = NetState;

    fn save(&self) -> NetState {
        NetState { mac: self.mac.0, mtu: self.mtu }
    }

    fn restore(&self, state: NetState) -> Result<(), StateError> {
        StateError::unless_same("the network card", &state, &Persist::save(self))
    }
}

impl<L> Drop for Net<L> {
    fn drop(&mut self) {
        let tokens =
            [self.rx.take().map(|(token, _)| token), self.tx.take().map(|(token, _)| token)];
        for token in tokens.into_iter().flatten() {
            self.events.remove(token);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<L> std::fmt::Debug for Net<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net")
            .field("mac", &self.mac)
            .field("mtu", &self.mtu)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

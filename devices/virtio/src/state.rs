//! What a transport keeps in a snapshot: the driver's registers, where each queue stands, and the
//! device's own state.

use cabana_bus::SavedState;
use serde::{Deserialize, Serialize};

use crate::{QueueLayout, QueueState};

/// A transport and its device at rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// What the driver reads, up to the device's configuration, as 32-bit words.
    pub registers: Vec<u32>,
    /// The features that the driver took.
    pub driver_features: u64,
    /// Which half of them it writes next.
    pub driver_features_sel: u32,
    /// The queue that it sets up.
    pub queue_sel: u32,
    /// The queues.
    pub queues: Vec<QueueRegisters>,
    /// The device's own.
    pub device: SavedState,
}

/// One queue as the driver has set it up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegisters {
    /// Where the rings are.
    pub layout: QueueLayout,
    /// `QueueReady`.
    pub ready: bool,
    /// Where it was stopped, if it was being served.
    pub stopped: Option<QueueState>,
    /// It is being served.
    #[serde(skip)]
    pub(crate) running: bool,
}

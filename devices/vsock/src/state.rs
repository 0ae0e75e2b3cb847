//! What the device keeps in a snapshot. Connections are not part of it: their other ends are threads of
//! this process. In another machine the guest is told that they are gone.

use serde::{Deserialize, Serialize};

/// The device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The guest's context id.
    pub guest_cid: u64,
    /// The port that the host connects from next, so that a new connection is not taken for an old one.
    pub next_port: u32,
}

//! What the card keeps in a snapshot: what its driver has been told. What it had plugged in stays behind.

use serde::{Deserialize, Serialize};

/// The card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// The largest IP packet.
    pub mtu: u16,
}

//! What the I/O APIC keeps in a snapshot.

use serde::{Deserialize, Serialize};

/// The registers, and what waits for the guest to unmask it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    /// The register that `IOWIN` shows.
    pub select: u8,
    /// Its APIC id.
    pub id: u32,
    /// The entry of each pin that there is, and whether the pin was pulsed while masked.
    pub pins: Vec<(u64, bool)>,
}

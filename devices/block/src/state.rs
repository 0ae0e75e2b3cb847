//! What the device keeps in a snapshot: how long its disk is. The disk itself is kept beside.

use serde::{Deserialize, Serialize};

/// The disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Its length in sectors of 512 bytes.
    pub sectors: u64,
}

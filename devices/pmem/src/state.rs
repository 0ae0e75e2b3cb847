//! What the device keeps in a snapshot: nothing, but where its image has to lie again.

use serde::{Deserialize, Serialize};

/// The guest's range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmemState {
    /// Its first guest-physical address.
    pub guest: u64,
    /// Its length in bytes.
    pub len: u64,
}

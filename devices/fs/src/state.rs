//! What the device keeps in a snapshot: nothing. A guest that has shares mounted names the files of this
//! server by numbers, which another server does not know.

use serde::{Deserialize, Serialize};

/// Whether the guest has mounted the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsState {
    /// It has.
    pub mounted: bool,
}

//! What the device keeps in a snapshot.

use serde::{Deserialize, Serialize};

/// What was typed, and the window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Bytes that wait for the guest to read them.
    pub typed: Vec<u8>,
    /// The window's width in characters.
    pub columns: u16,
    /// The window's height in characters.
    pub rows: u16,
}

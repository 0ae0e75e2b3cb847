//! The other end of a serial line: what a person types.

use std::sync::Arc;

/// A serial port that receives.
pub(crate) trait TypeIn: Send + Sync {
    /// Receives `bytes`; waits for the guest to read what does not fit into the receive FIFO.
    fn type_in(&self, bytes: &[u8]);
}

/// The other end of a serial port's line.
#[derive(Clone)]
pub struct SerialInput(Arc<dyn TypeIn>);

impl SerialInput {
    pub(crate) fn new(port: Arc<impl TypeIn + 'static>) -> Self {
        Self(port)
    }

    /// Types `bytes`; waits for the guest to read what does not fit into its receive FIFO.
    pub fn type_in(&self, bytes: &[u8]) {
        self.0.type_in(bytes);
    }
}

impl std::fmt::Debug for SerialInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialInput").finish_non_exhaustive()
    }
}

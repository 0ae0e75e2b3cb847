//! What can go wrong with a connection.

use std::io;

/// Why a connection could not be made, or why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VsockError {
    /// The guest answered, and nobody listens there.
    #[error("nobody in the guest listens on vsock port {0}")]
    Refused(u32),
    /// The deadline passed first.
    #[error("the guest did not answer in time")]
    TimedOut,
    /// The machine is gone, or the guest has reset the device.
    #[error("the machine is gone")]
    Closed,
    /// The guest ended the connection without finishing it, or broke the protocol.
    #[error("the guest reset the connection")]
    Reset,
    /// This end has been shut down for writing, or the guest's for reading.
    #[error("the connection takes no more data")]
    Finished,
    /// Somebody in this process listens there already.
    #[error("vsock port {0} of the host is taken")]
    PortTaken(u32),
    /// The device has as many connections as it may have.
    #[error("the machine has {0} vsock connections already, and may not have more")]
    TooMany(usize),
}

impl From<VsockError> for io::Error {
    fn from(error: VsockError) -> Self {
        let kind = match error {
            VsockError::Refused(_) => io::ErrorKind::ConnectionRefused,
            VsockError::TimedOut => io::ErrorKind::TimedOut,
            VsockError::Closed | VsockError::Finished => io::ErrorKind::BrokenPipe,
            VsockError::Reset => io::ErrorKind::ConnectionReset,
            VsockError::PortTaken(_) => io::ErrorKind::AddrInUse,
            VsockError::TooMany(_) => io::ErrorKind::QuotaExceeded,
        };
        Self::new(kind, error)
    }
}

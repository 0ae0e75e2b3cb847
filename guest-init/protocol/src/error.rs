use std::io;

use crate::frame::Kind;

/// Why a connection cannot go on. None of these can be recovered from: the frames that follow cannot
/// be trusted, so the connection is closed.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The stream itself failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The peer closed the connection where a frame was due, or within one.
    #[error("the peer closed the connection")]
    Closed,
    /// A header announces more bytes than a frame may have.
    #[error("a frame of {length} bytes is longer than the limit of {limit}")]
    TooLong {
        /// Announced or attempted length of the payload in bytes.
        length: usize,
        /// The limit, [`MAX_PAYLOAD`](crate::MAX_PAYLOAD).
        limit: usize,
    },
    /// A header names a kind that this generation does not have.
    #[error("frame kind {0:#04x} does not exist")]
    UnknownKind(u8),
    /// A frame of a kind that has no place here, for example output sent to the guest.
    #[error("a frame of kind {0:?} has no place here")]
    UnexpectedKind(Kind),
    /// A known message at a moment where it may not come, for example a second `Exec`.
    #[error("{0} came out of turn")]
    OutOfTurn(&'static str),
    /// The payload is not the message that the kind promises.
    #[error("a {kind:?} message does not decode: {source}")]
    Malformed {
        /// The kind of the frame.
        kind: Kind,
        /// What the decoder says.
        source: postcard::Error,
    },
    /// The peer sent more standard input than its window allows, see [`crate::exec::STDIN_WINDOW`].
    #[error("{excess} bytes of standard input beyond the window")]
    WindowExceeded {
        /// Bytes beyond the window.
        excess: usize,
    },
    /// A signal number outside 1..=64.
    #[error("signal {0} does not exist")]
    BadSignal(i32),
}

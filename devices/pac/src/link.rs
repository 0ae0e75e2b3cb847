//! What the two ends say to each other: one message a packet. Each request of the parent's has a number, which its
//! answer repeats, so that an answer that comes too late is taken for no other.

use std::io;
use std::net::IpAddr;

use cabana_os::Channel;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes of the longest script.
pub const MAX_SCRIPT: usize = 1 << 20;
/// Bytes of a piece of it.
pub const MAX_PIECE: usize = 64 << 10;
/// Bytes of the longest name that is asked for (RFC 1035 §2.3.4).
pub const MAX_NAME: usize = 253;
/// Addresses that a name may have.
pub const MAX_ADDRESSES: usize = 64;
/// Bytes of the longest answer or complaint of a script.
pub const MAX_ANSWER: usize = 8 << 10;

/// From the parent.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// A piece of a script; the first one with another number begins another script.
    Piece {
        /// Of the [`Request::Load`] that follows.
        number: u64,
        /// At most [`MAX_PIECE`] bytes.
        bytes: Vec<u8>,
    },
    /// Take the pieces for the script from now on.
    Load {
        /// Named in the answer.
        number: u64,
    },
    /// Ask the script.
    Find {
        /// Named in the answer.
        number: u64,
        /// What its function gets first.
        url: String,
        /// And second.
        host: String,
    },
    /// What was asked of the world.
    Addresses(Vec<IpAddr>),
}

/// From the program.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// What came of a request: the script's answer, or why there is none.
    Done {
        /// Which.
        number: u64,
        /// At most [`MAX_ANSWER`] bytes.
        result: Result<String, String>,
    },
    /// The script wants to know the addresses of a name, at most [`MAX_NAME`] bytes. [`Request::Addresses`] comes
    /// before anything else does.
    Resolve(String),
    /// The script wants to know the addresses by which this host speaks to the world.
    OwnAddresses,
    /// The interpreter has ended, and another begins, which knows no script.
    Ended(Ending),
    /// The interpreter could not confine itself, and there is none.
    Unconfined(String),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// By itself.
    Status(i32),
    /// By a signal.
    Signal(i32),
}

/// Sends a message.
pub fn send(channel: &Channel, message: &impl Serialize) -> io::Result<()> {
    let bytes = postcard::to_allocvec(message).map_err(io::Error::other)?;
    channel.send(&bytes, &[])
}

/// Waits for a message; `None` once the peer is gone.
pub fn receive<M: DeserializeOwned>(channel: &Channel) -> io::Result<Option<M>> {
    // Handles have no meaning here, and are closed.
    let Some((bytes, _)) = channel.receive()? else { return Ok(None) };
    postcard::from_bytes(&bytes).map(Some).map_err(io::Error::other)
}

/// As much of a text as an answer holds.
pub fn shortened(mut text: String) -> String {
    let end = (0..=MAX_ANSWER).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
    text
}

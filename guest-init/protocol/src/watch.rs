//! Messages of the watch connection, which the agent makes to [`WATCH_PORT`](crate::WATCH_PORT) from
//! [`WATCH_SOURCE`](crate::WATCH_SOURCE) once there is a share: the host tells what has changed there,
//! and the agent repeats it in the guest, so that programs that watch files hear of it.
//!
//! The agent says [`Watcher`]; then the host says one [`Replay`] after the other and awaits
//! [`Replayed`] each time.

use serde::{Deserialize, Serialize};

use crate::frame::{Kind, Message};

/// Who repeats the changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watcher {
    /// The number of the agent's thread, by which the file server knows its requests.
    pub thread: u32,
}

/// A change on the host, to be repeated in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// The folder's node in the virtio-fs device.
    pub directory: u64,
    /// The entry's name, as bytes.
    pub name: Vec<u8>,
    /// What to do.
    pub step: Step,
}

/// What to do to an entry. The file server changes nothing on the host for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Make an entry of this type: the top bits of a mode (`S_IFMT`).
    Make(u32),
    /// Remove a name that is no folder's.
    Unlink,
    /// Remove a folder.
    Rmdir,
    /// Look anew and set the time of modification alone.
    Modify,
    /// Look anew and set both times.
    Touch,
    /// Open for writing and close.
    Close,
}

/// Done, or found to be nothing that the guest knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed;

impl Message for Watcher {
    const KIND: Kind = Kind::Watcher;
}

impl Message for Replay {
    const KIND: Kind = Kind::Replay;
}

impl Message for Replayed {
    const KIND: Kind = Kind::Replayed;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_stay() {
        let replay = Replay { directory: 300, name: b"a.js".to_vec(), step: Step::Modify };
        let frame = [9, 0, 0, 0, 65, 0xac, 2, 4, b'a', b'.', b'j', b's', 3];
        assert_eq!(replay.to_frame().unwrap()[4..], frame[4..]);
        assert_eq!(Watcher { thread: 7 }.to_frame().unwrap(), [1, 0, 0, 0, 64, 7]);
        assert_eq!(Replayed.to_frame().unwrap(), [0, 0, 0, 0, 66]);
        for (byte, step) in (0..).zip([
            Step::Make(1),
            Step::Unlink,
            Step::Rmdir,
            Step::Modify,
            Step::Touch,
            Step::Close,
        ]) {
            let bytes = Replay { directory: 0, name: Vec::new(), step }.to_frame().unwrap();
            assert_eq!(bytes[7], byte);
        }
    }
}

//! Host folders in the guest: a virtio-fs device (virtio 1.3 §5.11) and its file server.
//!
//! One device, tagged [`TAG`], serves all shares as children of one synthetic root, whose
//! directories bear the shares' names; they come and go while the guest runs.
//!
//! **Containment.** The guest names inodes by numbers that the server gave it and entries by single
//! components. Each inode is known by a handle (`cabana_os::tree`) and opened through that handle alone, so no
//! link, rename or `..` leads out of a share; devices, fifos and sockets are never opened. The
//! guest makes no devices, sets no set-ID bits, changes no owners and sees only `user.` extended
//! attributes. See `names` and `host`.
//!
//! **Ownership.** What belongs to the user who runs Cabana belongs to root in the guest, and what
//! the guest makes belongs to that user on the host; what belongs to others is nobody's (65534).
//! If that user is root, so is the owner of what the guest makes.
//!
//! **Coherence.** Close-to-open in both directions; `coherence` says how. What the guest writes is
//! in the host's hands when `write(2)` returns, and on its disk when `fsync(2)` does; `sync(2)`
//! does that for all that is shared for writing. `watch` makes the host's changes known to the guest.
//!
//! **Locks.** `flock(2)` and `fcntl(2)` locks hold among the processes of one guest, which its
//! kernel sees to; they do not exclude processes of the host or of other guests. Linux's
//! virtio-fs driver cannot interrupt a request, so a process that waited on the host for a lock
//! could not even be killed.
//!
//! **Cost.** What one guest makes the host hold is bounded by [`Limits`]; a request copies at most
//! 1 MiB, and 16 MiB within the host.

// File data moves between files and guest memory, which Rust knows by address only.
#![allow(unsafe_code)]

mod coherence;
mod device;
mod handles;
mod host;
mod host_names;
mod message;
mod names;
mod nodes;
mod observer;
mod server;
mod share;
mod state;
mod watch;
pub mod wire;

pub use device::{FsDevice, TAG};
pub use host_names::NameRules;
pub use message::{Reply, ReplyBuffer, Request};
pub use server::{FileServer, Limits};
pub use share::{Share, ShareError};
pub use state::FsState;
pub use watch::{Replay, Step};

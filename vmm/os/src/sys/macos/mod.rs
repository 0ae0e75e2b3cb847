//! macOS: mmap, pipes as events, queues of the kernel's events, preadv.

pub mod confine;
mod event;
pub mod file;
pub(super) mod inodes;
pub(super) mod memory;
pub mod net;
pub(super) mod poller;
pub mod process;
pub(crate) mod proxies;
mod queue;
pub(super) mod socket;
mod timer;

pub use super::portable::{FolderWatch, PresentPages, Replacement, own_blocks, present_pages};
pub use super::unix::channel::Channel;
pub use super::unix::handle::{AsHandle, BorrowedHandle, FromHandle, OwnedHandle};
pub use super::unix::local::{LocalListener, LocalStream};
pub use super::unix::mapping::{Access, Mapping};
pub use super::unix::packets::Packets;
pub use super::unix::{signals, terminal};
pub use event::Event;
pub use poller::Source;
pub use timer::Timer;

/// Why no folder is watched. Streams of events for whole trees (`FSEvents`) would tell.
pub(in crate::sys) const UNWATCHED: &str =
    "macOS does not tell which entry of an open folder has changed";

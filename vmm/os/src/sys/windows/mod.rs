//! Windows: virtual memory, event objects, waitable timers, waits of the thread pool, named pipes, overlapped file
//! access.

mod channel;
pub mod confine;
mod event;
pub mod file;
mod handle;
pub(super) mod inodes;
mod job;
mod listing;
mod local;
mod mapping;
mod native;
pub mod net;
mod packets;
mod pipe;
pub(super) mod poller;
pub mod process;
pub(crate) mod proxies;
mod reparse;
pub mod signals;
pub mod terminal;
mod timer;
mod user;

pub use super::portable::{FolderWatch, PresentPages, Replacement, own_blocks, present_pages};
pub use channel::Channel;
pub use event::Event;
pub use handle::{AsHandle, BorrowedHandle, FromHandle, OwnedHandle};
pub use local::{LocalListener, LocalStream};
pub use mapping::Mapping;
pub use packets::Packets;
pub use poller::Source;
pub use timer::Timer;

/// Why no folder is watched.
pub(in crate::sys) const UNWATCHED: &str =
    "Windows does not tell the changes of others from those of this process";

//! Linux: mmap, eventfd, timerfd, epoll, fallocate, sockets with handles.

mod behind;
mod channel;
pub mod confine;
mod event;
pub mod file;
pub(super) mod inodes;
pub(super) mod memory;
pub mod net;
mod packets;
mod pages;
pub(super) mod poller;
pub mod process;
pub(crate) mod proxies;
mod replace;
mod returns;
mod signal;
pub(super) mod socket;
mod spare;
mod timer;
mod watch;

pub use super::unix::handle::{AsHandle, BorrowedHandle, FromHandle, OwnedHandle};
pub use super::unix::local::{LocalListener, LocalStream};
pub use super::unix::mapping::{Access, Mapping};
pub use super::unix::{signals, terminal};
pub use channel::Channel;
pub use event::Event;
pub use packets::Packets;
pub use pages::{PresentPages, own_blocks, present_pages};
pub use poller::Source;
pub use replace::Replacement;
pub use signal::let_interrupt;
pub use timer::Timer;
pub use watch::FolderWatch;

//! Linux: mmap, eventfd, timerfd, epoll, fallocate, sockets with handles.

mod channel;
mod event;
mod event_loop;
pub mod file;
pub(super) mod memory;
pub mod net;
mod packets;
mod pages;
pub mod process;
pub(crate) mod proxies;
mod replace;
mod signal;
mod timer;
pub mod tree;
mod watch;

pub use super::unix::mapping::{Access, Mapping};
pub use channel::{Channel, MAX_HANDLES, MAX_MESSAGE};
pub use event::Event;
pub use event_loop::{EventLoop, Interest, LoopHandle, Token};
pub use packets::Packets;
pub use pages::own_blocks;
pub use replace::Replacement;
pub use signal::let_interrupt;
pub use timer::Timer;
pub use watch::{EntryChange, FolderWatch};

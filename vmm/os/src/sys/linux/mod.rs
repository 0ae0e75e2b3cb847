//! Linux: mmap, eventfd, timerfd, epoll, fallocate, prctl.

mod event;
mod event_loop;
pub mod file;
mod mapping;
pub mod net;
pub mod process;
mod timer;
pub mod tree;
mod watch;

pub use event::Event;
pub use event_loop::{EventLoop, Interest, LoopHandle, Token};
pub use mapping::{Access, Mapping};
pub use timer::Timer;
pub use watch::{EntryChange, FolderWatch};

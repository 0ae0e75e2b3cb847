//! Linux: mmap, eventfd, epoll, fallocate, prctl.

mod event;
mod event_loop;
pub mod file;
mod mapping;
pub mod process;

pub use event::Event;
pub use event_loop::{EventLoop, Interest, LoopHandle, Token};
pub use mapping::{Access, Mapping};

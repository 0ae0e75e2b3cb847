//! macOS: mmap, pipes as events, preadv. What a machine needs beyond that (the event loop, sockets with
//! handles) is not there yet.

mod event;
pub mod file;
pub(super) mod memory;
pub mod process;
pub(crate) mod proxies;

pub use super::unix::mapping::{Access, Mapping};
pub use event::Event;

//! macOS: mmap, pipes as events, preadv. What a machine needs beyond that (the event loop, sockets with
//! handles) is not there yet.

mod event;
pub mod file;
mod mapping;
pub mod process;

pub use event::Event;
pub use mapping::Mapping;

//! Windows: virtual memory, event objects, overlapped file access. What a machine needs beyond that (the
//! event loop, sockets) is not there yet.

mod event;
pub mod file;
mod mapping;
pub mod process;
pub(crate) mod proxies;

pub use event::Event;
pub use mapping::Mapping;

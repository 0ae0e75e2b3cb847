//! Cases that are the same on every processor, but for their payloads and the exits that these make.

pub mod kick;
pub mod memory;
pub mod state;

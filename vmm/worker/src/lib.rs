//! The worker: the process that owns one machine. The engine starts it, hands it open handles over a
//! [`link`], and speaks to the guest's agent through it without its understanding a word.
//!
//! A machine with a network has a second worker, which serves its network and nothing else ([`link::NetworkStart`]):
//! whoever takes over the one that guests attack most has no sockets, and this one has no machine and no files.
//!
//! A worker confines itself before it reads anything that a guest or a file holds, and ends when its
//! engine does, however that ends: it watches both the link and the engine's process.

pub mod link;
mod network;
mod serve;
mod splice;

pub use serve::{in_this_process, run};

//! Scripts that name proxies (proxy auto-configuration, PAC) run in a program of their own, `cabana-pac`, so that only
//! whoever has a script pays for an interpreter, and only that program has C behind a script in it.
//!
//! This library is the way to speak to it: [`Interpreter`], and the messages ([`link`]) of both ends. The program is
//! two processes. One waits, and starts the other anew when that has ended; the other has confined itself to computing
//! and to its end of the channel, and asks its parent ([`World`]) for the addresses that a script wants to know.

mod interpreter;
pub mod link;

pub use interpreter::{Failure, Interpreter, StartError, World};

//! The file server's speed: the device alone beside bare system calls ([`device`]), and what a
//! share's journal costs ([`journal`]).

pub mod device;
pub mod driver;
pub mod journal;

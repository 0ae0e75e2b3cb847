//! The file server's speed: the device alone beside bare system calls ([`device`]).

pub mod device;
pub mod driver;

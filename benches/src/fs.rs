//! The file server's speed: the device alone beside bare system calls ([`device`]), a folder in a
//! guest beside virtiofsd ([`guest`]), and what a share's journal costs ([`journal`]).

pub mod device;
pub mod driver;
pub mod guest;
pub mod journal;

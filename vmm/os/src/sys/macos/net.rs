//! What the standard library does not say about sockets.

use std::io;

pub use crate::sys::portable::stop_listening;

/// Whether the error of a connect that does not wait means that it goes on (`EINPROGRESS`).
pub fn connect_goes_on(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINPROGRESS)
}

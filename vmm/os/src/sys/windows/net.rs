//! What the standard library does not say about sockets.

use std::io;

use windows_sys::Win32::Networking::WinSock::WSAEWOULDBLOCK;

pub use crate::sys::portable::stop_listening;

/// Whether the error of a connect that does not wait means that it goes on (`WSAEWOULDBLOCK`).
pub fn connect_goes_on(error: &io::Error) -> bool {
    error.raw_os_error() == Some(WSAEWOULDBLOCK)
}

//! What the standard library does not say about sockets.

use std::io;
use std::net::TcpListener;

/// Whether the error of a connect that does not wait means that it goes on (`EINPROGRESS`).
pub fn connect_goes_on(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINPROGRESS)
}

/// Ends a listener: whoever waits for a connection of it hears an error, and nobody connects any more.
pub fn stop_listening(listener: &TcpListener) -> io::Result<()> {
    Ok(rustix::net::shutdown(listener, rustix::net::Shutdown::Both)?)
}

//! What the standard library does well enough on systems other than Linux.

pub(super) mod allocate;
pub(super) mod listing;
mod replace;
mod watch;

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

pub use replace::Replacement;
pub use watch::FolderWatch;

/// Time of the host that only goes forward, from an unknown beginning.
pub fn monotonic() -> Duration {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    BEGIN.get_or_init(Instant::now).elapsed()
}

/// The wall clock as file systems read it for times of change.
pub fn realtime_coarse() -> Duration {
    realtime()
}

/// Time since 1970.
pub fn realtime() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Ends the wait of whoever waits for a connection of a listener: it gets one that ends at once. Nobody connects any
/// more once it has closed the listener.
pub fn stop_listening(listener: &TcpListener) -> io::Result<()> {
    let mut address = listener.local_addr()?;
    match address.ip() {
        IpAddr::V4(all) if all.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(all) if all.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    TcpStream::connect(address).map(drop)
}

/// The blocks of `block` bytes in a range of memory that are this process's own alone, of which no system but Linux tells.
pub fn own_blocks(_range: Range<usize>, _block: usize) -> io::Result<Vec<Range<usize>>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Pages of this process that are in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresentPages {
    /// Their addresses.
    pub range: Range<usize>,
    /// They are this process's alone.
    pub own: bool,
}

/// The pages in a range of memory that this process has touched, of which no system but Linux tells.
pub fn present_pages(_range: Range<usize>) -> io::Result<Vec<PresentPages>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Gives back what a process that has nothing to do does not need, of which there is no part that a program could name here:
/// Windows empties a working set as a whole, with the memory of a guest; macOS takes clean pages when it needs them.
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub fn release_spare() -> io::Result<()> {
    Ok(())
}

/// Nothing is copied within the kernel.
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub(in crate::sys) fn copy_in_kernel(
    _from: &File,
    _range: Range<u64>,
    _to: &File,
    _at: u64,
) -> io::Result<u64> {
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_connections_is_woken() {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let own = listener.try_clone().unwrap();
        let waiting = std::thread::spawn(move || own.accept().is_ok());
        stop_listening(&listener).unwrap();
        waiting.join().unwrap();
    }
}

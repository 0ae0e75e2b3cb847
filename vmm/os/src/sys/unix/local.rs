//! Streams of bytes between processes of this host, by sockets with paths (`unix(7)`).

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

pub use std::os::unix::net::UnixStream as LocalStream;

/// Waits for streams at a path.
#[derive(Debug)]
pub struct LocalListener(UnixListener);

impl LocalListener {
    /// Stands at a path that is free, for this user alone.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Self(listener))
    }

    /// Waits for the next stream that a process of this user's opens; others may not even ask, whatever the permissions
    /// of the socket have become.
    pub fn accept(&self) -> io::Result<LocalStream> {
        loop {
            let (stream, _) = self.0.accept()?;
            if super::host_socket::is_own_user(&stream) {
                return Ok(stream);
            }
        }
    }

    /// Removes what somebody who was killed has left at a path, if it is of this kind.
    pub fn remove(path: &Path) -> io::Result<()> {
        match fs::symlink_metadata(path) {
            Ok(old) if old.file_type().is_socket() => fs::remove_file(path),
            _ => Ok(()),
        }
    }
}

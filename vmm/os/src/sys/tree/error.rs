//! What the guest's Linux is told for a host's errors.

use std::io::{self, ErrorKind};

use super::host::linux_error;

/// The number that Linux has for an error of this host.
pub fn guest_error(error: &io::Error) -> i32 {
    match error.raw_os_error() {
        Some(code) => linux_error(code),
        None => of_kind(error.kind()),
    }
}

/// For what no system has said: `errno-base.h` and `errno.h` of Linux.
fn of_kind(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::NotFound => 2,
        ErrorKind::PermissionDenied => 13,
        ErrorKind::AlreadyExists => 17,
        ErrorKind::CrossesDevices => 18,
        ErrorKind::NotADirectory => 20,
        ErrorKind::IsADirectory => 21,
        ErrorKind::InvalidInput => 22,
        ErrorKind::FileTooLarge => 27,
        ErrorKind::StorageFull => 28,
        ErrorKind::ReadOnlyFilesystem => 30,
        ErrorKind::DirectoryNotEmpty => 39,
        ErrorKind::InvalidFilename => 84,
        ErrorKind::Unsupported => 95,
        ErrorKind::StaleNetworkFileHandle => 116,
        // EIO.
        _ => 5,
    }
}

//! Open files and paths on Linux and macOS.

use std::borrow::Cow;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Result};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, RawMode, SeekFrom};
use rustix::io::Errno;

use crate::sys::tree::mode;

/// User and group of this process: what it makes belongs to them.
pub fn owner() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// How many descriptors this process may have open now.
pub fn descriptor_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Changes the permissions of an open file.
pub fn set_permissions(file: &File, mode: u32) -> Result<()> {
    Ok(rustix::fs::fchmod(file, Mode::from_raw_mode((mode & mode::ALL) as RawMode))?)
}

/// Where to write in a file that appends: the kernel knows itself.
pub fn append_at(offset: u64) -> u64 {
    offset
}

/// Turns appending on or off.
pub fn set_append(file: &File, append: bool) -> Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(file)?;
    flags.set(OFlags::APPEND, append);
    Ok(rustix::fs::fcntl_setfl(file, flags)?)
}

/// Changes the length of an open file.
pub fn set_len(file: &File, len: u64) -> Result<()> {
    if i64::try_from(len).is_err() {
        return Err(Errno::FBIG.into());
    }
    Ok(rustix::fs::ftruncate(file, len)?)
}

/// The next data or hole from `offset` on.
pub fn seek_sparse(file: &File, offset: u64, hole: bool) -> Result<u64> {
    let from = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
    Ok(rustix::fs::seek(file, from)?)
}

/// A path's last component as a name.
pub fn c_name(path: &Path) -> Result<CString> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    CString::new(name.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// The bytes of a path, `/` between its components.
pub fn path_bytes(path: &Path) -> Cow<'_, [u8]> {
    Cow::Borrowed(path.as_os_str().as_bytes())
}

/// A path of such bytes.
pub fn path_from_bytes(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

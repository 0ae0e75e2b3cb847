//! The inodes of a folder: naming, looking at, opening, linking, moving and copying them, with all that
//! belongs to them, beneath directory handles.
//!
//! A [`Handle`] names an inode without touching it. An entry is found beneath its directory's handle, by one
//! component and without following links, so that neither a link nor a rename leads out of a folder.
//! Numbers and bits (types, permissions, flags) are Linux's on every system: those of the guests.

mod entry;
mod error;
mod stat;

#[cfg(target_os = "linux")]
use super::linux::inodes as host;
#[cfg(target_os = "macos")]
use super::macos::inodes as host;
#[cfg(windows)]
use super::windows::inodes as host;

pub use entry::{Entry, copy_content, names, open_to_read, open_to_write};
pub use error::guest_error;
#[cfg(not(target_os = "linux"))]
pub(in crate::sys) use host::reserve;
pub use host::{
    Handle, Listing, NAMING, allocate, append_at, c_name, copy_range, descriptor_limit, look,
    owner, path_bytes, path_from_bytes, seek_sparse, set_append, set_len, set_permissions, stat,
    sync, sync_file_system,
};
pub use stat::{
    Access, Attributes, InodeKind, InodeStat, Listed, Moment, Naming, NewTime, Space, Stat, flags,
    mode,
};

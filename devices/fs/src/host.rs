//! The host's file system as the server uses it: inodes by handles (`os::tree`), and what the guest's Linux is told
//! of them.

use std::fs::File;
use std::io;

pub(crate) use cabana_os::tree::{
    Access, Handle, Listed, Listing, Moment as Time, NewTime, Stat, allocate, append_at,
    copy_range, descriptor_limit, seek_sparse, set_append, set_len, set_permissions, stat, sync,
    sync_file_system,
};
use cabana_os::tree::{NAMING, Naming, guest_error, owner};

use crate::host_names::NameRules;
use crate::names::NAME_MAX;
use crate::wire::{self, Errno, Result};

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        match Self(guest_error(&error)) {
            // The process's limit is the whole guest's.
            Self::EMFILE => Self::ENFILE,
            error => error,
        }
    }
}

/// What this host's file systems make of names.
pub(crate) const NAME_RULES: NameRules = match NAMING {
    Naming::Linux => NameRules::LINUX,
    Naming::Windows => NameRules::WINDOWS,
    Naming::Macos => NameRules::MACOS,
};

/// The process's owner: what it makes belongs to them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Owner {
    pub(crate) fn of_this_process() -> Self {
        let (uid, gid) = owner();
        Self { uid, gid }
    }
}

/// Opens an inode for I/O. `kind` is what it is; only regular files and directories are opened.
pub(crate) fn open(handle: &Handle, kind: u32, access: Access) -> Result<File> {
    match kind {
        wire::mode::REGULAR | wire::mode::DIRECTORY => Ok(handle.open(access)?),
        wire::mode::SYMLINK => Err(Errno::ELOOP),
        _ => Err(Errno::EACCES),
    }
}

/// What the host says of a file system.
pub(crate) fn statfs(handle: &Handle) -> Result<wire::StatfsOut> {
    let space = handle.space()?;
    Ok(wire::StatfsOut {
        blocks: space.blocks,
        bfree: space.free,
        bavail: space.available,
        files: space.files,
        ffree: space.free_files,
        bsize: space.block as u32,
        namelen: NAME_MAX as u32,
        frsize: space.block as u32,
        ..wire::StatfsOut::default()
    })
}

/// Nothing on the host becomes set-user-ID or set-group-ID by the guest's doing.
pub(crate) fn permissions(mode: u32) -> u32 {
    mode & wire::mode::PERMISSIONS
}

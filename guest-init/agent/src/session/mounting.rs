//! `mount_setattr(2)`, which `rustix` does not have.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Attributes of a mount (`linux/mount.h`).
pub(super) const RDONLY: u64 = 1;
pub(super) const NOSUID: u64 = 2;
pub(super) const NODEV: u64 = 4;
const IDMAP: u64 = 0x0010_0000;

/// `struct mount_attr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Sets and clears attributes of the mount at a path, with `flags` of `mount_setattr`.
pub(super) fn change(
    folder: BorrowedFd<'_>,
    path: &CStr,
    flags: libc::c_int,
    set: u64,
    clear: u64,
) -> io::Result<()> {
    call(folder, path, flags, &Attributes { set, clear, ..Attributes::default() })
}

/// Shows the owners of a mount that is attached nowhere as a user namespace maps them.
pub(super) fn map_owners(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = Attributes {
        set: IDMAP,
        user_namespace: namespace.as_raw_fd() as u64,
        ..Attributes::default()
    };
    call(mount, c"", libc::AT_EMPTY_PATH, &attributes)
}

fn call(
    folder: BorrowedFd<'_>,
    path: &CStr,
    flags: libc::c_int,
    attributes: &Attributes,
) -> io::Result<()> {
    // SAFETY: the kernel reads a path that ends with zero and attributes of the given size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            folder.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<Attributes>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

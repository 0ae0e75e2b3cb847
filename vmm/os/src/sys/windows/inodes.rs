//! Inodes on Windows.
//!
//! An inode is known by its file id, which NTFS and `ReFS` never use twice, and opened by it for every operation: a
//! handle that stayed open would keep the host's programs from renaming the folders above. Only the folder that a
//! [`Handle`] was first made of stays open. An entry is opened beneath its directory's handle, by one component, and
//! itself if it is a link, so that no link is ever followed.
//!
//! What Windows has not: permissions are one bit (read-only), and every file is executable; owners are the
//! process's own; links are those of WSL, which Windows' programs do not follow, while Windows' own are shown; there are no extended
//! attributes, fifos, sockets or files without a name.
//!
//! **Placeholders** of cloud folders are reparse points that stand for no other name. They are opened for I/O like any
//! file, whereupon their provider fills them or the opening or the reading fails. To look at one fills nothing.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, ErrorKind, Result};
use std::os::windows::io::OwnedHandle;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use windows_sys::Wdk::Storage::FileSystem::{
    FILE_CREATE, FILE_DIRECTORY_FILE, FILE_NON_DIRECTORY_FILE, FILE_OPEN, FILE_OPEN_REPARSE_POINT,
    FILE_WRITE_THROUGH,
};
use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_ALREADY_EXISTS, ERROR_CALL_NOT_IMPLEMENTED,
    ERROR_CANT_RESOLVE_FILENAME, ERROR_DIR_NOT_EMPTY, ERROR_DIRECTORY, ERROR_DISK_FULL,
    ERROR_DISK_QUOTA_EXCEEDED, ERROR_FILE_EXISTS, ERROR_FILE_NOT_FOUND, ERROR_FILE_TOO_LARGE,
    ERROR_FILENAME_EXCED_RANGE, ERROR_HANDLE_DISK_FULL, ERROR_INVALID_FUNCTION,
    ERROR_INVALID_HANDLE, ERROR_INVALID_NAME, ERROR_INVALID_PARAMETER, ERROR_LOCK_VIOLATION,
    ERROR_NOT_ENOUGH_MEMORY, ERROR_NOT_SAME_DEVICE, ERROR_NOT_SUPPORTED, ERROR_PATH_NOT_FOUND,
    ERROR_PRIVILEGE_NOT_HELD, ERROR_SEEK, ERROR_SHARING_VIOLATION, ERROR_TOO_MANY_LINKS,
    ERROR_TOO_MANY_OPEN_FILES, ERROR_WRITE_PROTECT,
};
use windows_sys::Win32::Storage::FileSystem::{
    DELETE, FILE_ATTRIBUTE_NORMAL, FILE_ATTRIBUTE_READONLY, FILE_GENERIC_READ, FILE_GENERIC_WRITE,
    FILE_LIST_DIRECTORY, FILE_READ_ATTRIBUTES, FILE_WRITE_ATTRIBUTES, FILE_WRITE_DATA, SYNCHRONIZE,
};

use super::listing::Directory;
use super::native;
use super::reparse;
use crate::sys::file::for_each_data;
pub use crate::sys::portable::allocate::{allocate, copy_range};
use crate::sys::portable::listing::Sequence;
use crate::sys::tree::{Access, Naming, NewTime, Space, Stat, flags, mode};

/// What this host's file systems make of names.
pub const NAMING: Naming = Naming::Windows;

/// What is asked for besides whatever an operation needs.
const LOOK: u32 = FILE_READ_ATTRIBUTES | SYNCHRONIZE;
/// Any of these lets a file be written to by Linux's permissions.
const WRITABLE: u32 = 0o222;

/// The number that Linux has for an error of Windows.
pub(in crate::sys) fn linux_error(code: i32) -> i32 {
    match code.unsigned_abs() {
        ERROR_FILE_NOT_FOUND | ERROR_PATH_NOT_FOUND => 2,
        ERROR_PRIVILEGE_NOT_HELD => 1,
        ERROR_SEEK => 6,
        ERROR_INVALID_HANDLE => 9,
        ERROR_NOT_ENOUGH_MEMORY => 12,
        ERROR_ACCESS_DENIED => 13,
        ERROR_SHARING_VIOLATION | ERROR_LOCK_VIOLATION => 16,
        ERROR_ALREADY_EXISTS | ERROR_FILE_EXISTS => 17,
        ERROR_NOT_SAME_DEVICE => 18,
        ERROR_DIRECTORY => 20,
        ERROR_INVALID_PARAMETER => 22,
        ERROR_TOO_MANY_OPEN_FILES => 24,
        ERROR_FILE_TOO_LARGE => 27,
        ERROR_DISK_FULL | ERROR_HANDLE_DISK_FULL => 28,
        ERROR_WRITE_PROTECT => 30,
        ERROR_TOO_MANY_LINKS => 31,
        ERROR_FILENAME_EXCED_RANGE => 36,
        ERROR_DIR_NOT_EMPTY => 39,
        ERROR_CANT_RESOLVE_FILENAME => 40,
        ERROR_INVALID_NAME => 84,
        ERROR_NOT_SUPPORTED | ERROR_INVALID_FUNCTION | ERROR_CALL_NOT_IMPLEMENTED => 95,
        ERROR_DISK_QUOTA_EXCEEDED => 122,
        // EIO: also what providers of placeholders answer.
        _ => 5,
    }
}

/// Everything belongs to the guest's root: Windows' owners are no numbers.
pub fn owner() -> (u32, u32) {
    (0, 0)
}

/// Windows has no limit of open files that would matter.
pub fn descriptor_limit() -> usize {
    usize::MAX
}

/// A name for an inode, without access to its content.
#[derive(Clone, Debug)]
pub struct Handle {
    root: Arc<Root>,
    id: u64,
}

/// The folder or file that handles were first made of.
#[derive(Debug)]
struct Root {
    handle: OwnedHandle,
    volume: u64,
    id: u64,
}

/// A directory that is open, or stays so.
enum Opened {
    Stays(Arc<Root>),
    Once(OwnedHandle),
}

impl Opened {
    fn handle(&self) -> &OwnedHandle {
        match self {
            Self::Stays(root) => &root.handle,
            Self::Once(handle) => handle,
        }
    }
}

impl Handle {
    /// The directory at `path`, which the host's user chose: links in it are followed.
    pub fn of_directory(path: &Path) -> Result<Self> {
        let handle = native::open_folder(path)?;
        if native::look(&handle)?.kind() != mode::DIRECTORY {
            return Err(ErrorKind::NotADirectory.into());
        }
        if !native::finds_by_id(&handle)? {
            let why = "its file system does not find files by ids that stay, as NTFS and ReFS do";
            return Err(io::Error::new(ErrorKind::Unsupported, why));
        }
        Self::rooted(handle)
    }

    fn rooted(handle: OwnedHandle) -> Result<Self> {
        let (id, volume) = (native::look(&handle)?.id(), native::volume(&handle));
        Ok(Self { root: Arc::new(Root { handle, volume, id }), id })
    }

    /// A second handle of the same inode.
    #[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
    pub fn try_clone(&self) -> Result<Self> {
        Ok(self.clone())
    }

    /// The folder at `path` beneath this one, which an empty path names; no link is followed.
    pub fn beneath(&self, path: &Path) -> Result<Self> {
        let mut folder = self.clone();
        for component in path.components() {
            folder = match component {
                Component::CurDir => continue,
                Component::Normal(name) => folder.child(&c_name(Path::new(name))?)?,
                _ => return Err(ErrorKind::InvalidInput.into()),
            };
            if folder.stat()?.kind() != mode::DIRECTORY {
                return Err(ErrorKind::NotADirectory.into());
            }
        }
        Ok(folder)
    }

    /// Where the inode is now.
    pub fn path(&self) -> Result<PathBuf> {
        native::path(self.itself(LOOK, 0)?.handle())
    }

    /// Its path from `root` on; ESTALE if it is not beneath it any more.
    pub fn path_from(&self, root: &Self) -> Result<PathBuf> {
        let (root, path) = (root.path()?, self.path()?);
        let below = path.strip_prefix(&root).map_err(|_| ErrorKind::StaleNetworkFileHandle)?;
        Ok(below.to_owned())
    }

    /// The entry `name` of this directory, itself if it is a link.
    pub fn child(&self, name: &CStr) -> Result<Self> {
        let handle = self.entry(name, LOOK, FILE_OPEN, 0, 0)?;
        Ok(Self { root: Arc::clone(&self.root), id: native::look(&handle)?.id() })
    }

    /// A handle of the inode that `file` has open.
    pub fn of_file(file: &File) -> Result<Self> {
        Self::rooted(file.try_clone()?.into())
    }

    /// A handle of the inode that `file` has open and that was just made in this directory as `name`.
    #[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
    pub fn of_made(&self, _name: &CStr, _file: &File, made: &Stat) -> Result<Self> {
        Ok(Self { root: Arc::clone(&self.root), id: made.ino })
    }

    /// What the host says of the inode.
    pub fn stat(&self) -> Result<Stat> {
        self.stat_of(self.itself(LOOK, 0)?.handle())
    }

    /// The same; it takes as much here.
    pub fn attributes(&self) -> Result<Stat> {
        self.stat()
    }

    /// What the host says of the entry `name` of this directory, itself if it is a link.
    pub fn stat_child(&self, name: &CStr) -> Result<Stat> {
        if name == c"." {
            return self.stat();
        }
        self.stat_of(&self.entry(name, LOOK, FILE_OPEN, 0, 0)?)
    }

    fn stat_of(&self, handle: &OwnedHandle) -> Result<Stat> {
        Ok(native::look(handle)?.stat(self.root.volume))
    }

    /// Opens the inode, a regular file or a directory, for I/O.
    pub fn open(&self, access: Access) -> Result<File> {
        let looked = native::look(self.itself(LOOK, 0)?.handle())?;
        if looked.kind() == mode::SYMLINK {
            return Err(io::Error::from_raw_os_error(ERROR_CANT_RESOLVE_FILENAME as i32));
        }
        // What is left of reparse points are placeholders: to be filled they must be opened as what they stand for.
        let options = through(access);
        let handle = native::open_id(&self.root.handle, self.id, rights(access), options)?;
        Ok(handle.into())
    }

    /// Makes a file that did not exist; of the permissions `mode` it gets whether it may be written to. Also what the
    /// host says of it.
    pub fn create(&self, name: &CStr, mode: u32, access: Access) -> Result<(File, Stat)> {
        let options = FILE_NON_DIRECTORY_FILE | through(access);
        let attributes = if mode & WRITABLE == 0 { FILE_ATTRIBUTE_READONLY } else { 0 };
        let handle = self.entry(
            name,
            rights(access),
            FILE_CREATE,
            attributes | FILE_ATTRIBUTE_NORMAL,
            options,
        )?;
        let stat = self.stat_of(&handle)?;
        Ok((handle.into(), stat))
    }

    /// There are no files without a name that could get one.
    pub fn create_unnamed(&self, _mode: u32, _access: Access) -> Result<(File, Stat)> {
        Err(ErrorKind::Unsupported.into())
    }

    /// Makes a directory. Windows has no permissions for it that are like Linux's.
    pub fn make_directory(&self, name: &CStr, _mode: u32) -> Result<()> {
        self.entry(name, LOOK, FILE_CREATE, FILE_ATTRIBUTE_NORMAL, FILE_DIRECTORY_FILE).map(drop)
    }

    /// Windows has neither fifos nor sockets that are files.
    pub fn make_special(&self, _name: &CStr, _kind: u32, _mode: u32) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    /// Makes a symbolic link of WSL's kind; nobody here ever follows it.
    pub fn make_symlink(&self, name: &CStr, target: &CStr) -> Result<()> {
        let access = LOOK | DELETE | FILE_WRITE_DATA | FILE_WRITE_ATTRIBUTES;
        let link =
            self.entry(name, access, FILE_CREATE, FILE_ATTRIBUTE_NORMAL, FILE_NON_DIRECTORY_FILE)?;
        reparse::set_link(&link, target.to_bytes()).inspect_err(|_| {
            let _ = native::delete(&link);
        })
    }

    /// Gives the inode `target` one more name in this directory.
    pub fn link(&self, name: &CStr, target: &Self) -> Result<()> {
        let file = target.itself(LOOK | FILE_WRITE_ATTRIBUTES, 0)?;
        native::link(file.handle(), self.directory()?.handle(), &wide(name)?)
    }

    /// Removes a name that is not a directory's.
    pub fn unlink(&self, name: &CStr) -> Result<()> {
        let handle = self.entry(name, LOOK | DELETE | FILE_WRITE_ATTRIBUTES, FILE_OPEN, 0, 0)?;
        if native::look(&handle)?.kind() == mode::DIRECTORY {
            return Err(ErrorKind::IsADirectory.into());
        }
        native::delete(&handle)
    }

    /// Removes an empty directory.
    pub fn remove_directory(&self, name: &CStr) -> Result<()> {
        let handle = self.entry(name, LOOK | DELETE | FILE_WRITE_ATTRIBUTES, FILE_OPEN, 0, 0)?;
        if native::look(&handle)?.kind() != mode::DIRECTORY {
            return Err(ErrorKind::NotADirectory.into());
        }
        native::delete(&handle)
    }

    /// Moves `name` to `to_name` in `to`; [`flags`] say how. Names cannot be exchanged. What replaces an empty
    /// directory does that in two steps.
    pub fn rename(&self, name: &CStr, to: &Self, to_name: &CStr, how: u32) -> Result<()> {
        if how & flags::RENAME_EXCHANGE != 0 {
            return Err(ErrorKind::InvalidInput.into());
        }
        let moved = self.entry(name, LOOK | DELETE | FILE_WRITE_ATTRIBUTES, FILE_OPEN, 0, 0)?;
        let folder = to.directory()?;
        let into = wide(to_name)?;
        if how & flags::RENAME_NOREPLACE == 0
            && let Ok(over) = to.entry(to_name, LOOK, FILE_OPEN, 0, 0)
        {
            let (one, other) = (native::look(&moved)?, native::look(&over)?);
            drop(over);
            let is_same = one.id() == other.id();
            // Two names of one inode stay as they are; one name changes its case.
            if is_same && (self.id != to.id || !same_but_for_case(name, to_name)) {
                return Ok(());
            }
            match (one.kind() == mode::DIRECTORY, other.kind() == mode::DIRECTORY) {
                _ if is_same => {}
                (true, true) => to.remove_directory(to_name)?,
                (false, true) => return Err(ErrorKind::IsADirectory.into()),
                (true, false) => return Err(ErrorKind::NotADirectory.into()),
                (false, false) => {}
            }
            return native::rename(&moved, folder.handle(), &into, true);
        }
        native::rename(&moved, folder.handle(), &into, false)
    }

    /// Where this symbolic link points.
    pub fn read_link(&self) -> Result<Vec<u8>> {
        reparse::target(self.itself(LOOK, 0)?.handle())
    }

    /// Lets a file be written to or not, as the permissions say; the rest of them is not kept.
    pub fn set_mode(&self, mode: u32) -> Result<()> {
        let handle = self.itself(LOOK | FILE_WRITE_ATTRIBUTES, 0)?;
        let looked = native::look(handle.handle())?;
        if looked.kind() != mode::REGULAR {
            return Ok(());
        }
        native::set_read_only(handle.handle(), &looked, mode & WRITABLE == 0)
    }

    /// Owners are no numbers.
    pub fn set_owner(&self, _uid: u32, _gid: u32) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    /// Sets the times of access and modification; `None` leaves one as it is.
    pub fn set_times(&self, accessed: Option<NewTime>, modified: Option<NewTime>) -> Result<()> {
        let handle = self.itself(LOOK | FILE_WRITE_ATTRIBUTES, 0)?;
        native::set_times(handle.handle(), accessed, modified)
    }

    /// The room of its file system.
    pub fn space(&self) -> Result<Space> {
        native::space(&self.root.handle)
    }

    /// There are no extended attributes.
    pub fn xattr_len(&self, _name: &CStr) -> Result<usize> {
        Err(ErrorKind::Unsupported.into())
    }

    /// There are no extended attributes.
    pub fn xattr(&self, _name: &CStr, _buffer: &mut [u8]) -> Result<usize> {
        Err(ErrorKind::Unsupported.into())
    }

    /// There are no extended attributes.
    pub fn set_xattr(&self, _name: &CStr, _value: &[u8], _how: u32) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    /// There are no extended attributes.
    pub fn xattr_names(&self) -> Result<Vec<u8>> {
        Err(ErrorKind::Unsupported.into())
    }

    /// There are no extended attributes.
    pub fn remove_xattr(&self, _name: &CStr) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    /// Opens the inode, itself if it is a link, with these rights.
    fn itself(&self, access: u32, options: u32) -> Result<Opened> {
        if access == LOOK && self.id == self.root.id {
            return Ok(Opened::Stays(Arc::clone(&self.root)));
        }
        let options = options | FILE_OPEN_REPARSE_POINT;
        native::open_id(&self.root.handle, self.id, access, options).map(Opened::Once)
    }

    /// Opens it as a directory, for what is beneath.
    fn directory(&self) -> Result<Opened> {
        self.itself(LOOK, FILE_DIRECTORY_FILE)
    }

    fn entry(
        &self,
        name: &CStr,
        access: u32,
        disposition: u32,
        attributes: u32,
        options: u32,
    ) -> Result<OwnedHandle> {
        let (directory, name) = (self.directory()?, wide(name)?);
        let options = options | FILE_OPEN_REPARSE_POINT;
        native::open_entry(directory.handle(), &name, access, disposition, attributes, options)
    }

    /// Opens it to be listed.
    pub(super) fn to_list(&self) -> Result<OwnedHandle> {
        let access = FILE_LIST_DIRECTORY | LOOK;
        native::open_id(
            &self.root.handle,
            self.id,
            access,
            FILE_DIRECTORY_FILE | FILE_OPEN_REPARSE_POINT,
        )
    }
}

/// A directory that is being read.
pub type Listing = Sequence<Directory>;

/// What the host says of an open file.
pub fn stat(file: &File) -> Result<Stat> {
    let handle: OwnedHandle = file.try_clone()?.into();
    Ok(native::look(&handle)?.stat(native::volume(&handle)))
}

/// What the host says of what is at a path, itself if it is a link.
pub fn look(path: &Path) -> Result<Stat> {
    let handle = native::open_itself(path)?;
    Ok(native::look(&handle)?.stat(native::volume(&handle)))
}

/// Lets an open file be written to or not, as the permissions say.
pub fn set_permissions(file: &File, mode: u32) -> Result<()> {
    let handle: OwnedHandle = file.try_clone()?.into();
    let looked = native::look(&handle)?;
    if looked.kind() != mode::REGULAR {
        return Ok(());
    }
    match native::set_read_only(&handle, &looked, mode & WRITABLE == 0) {
        // It is open to be read alone.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Handle::of_file(file)?.set_mode(mode)
        }
        result => result,
    }
}

/// Where to write in a file that appends: at what Windows takes for the end.
pub fn append_at(_offset: u64) -> u64 {
    u64::MAX
}

/// Each write says where it goes.
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub fn set_append(_file: &File, _append: bool) -> Result<()> {
    Ok(())
}

/// Changes the length of an open file.
pub fn set_len(file: &File, len: u64) -> Result<()> {
    if i64::try_from(len).is_err() {
        return Err(ErrorKind::FileTooLarge.into());
    }
    file.set_len(len)
}

/// Brings an open file to the disk. One that is open to be read alone has nothing to bring.
pub fn sync(file: &File, _data_only: bool) -> Result<()> {
    match file.sync_all() {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        result => result,
    }
}

/// Only administrators may bring whole volumes to the disk: Windows does it by itself.
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub fn sync_file_system(_directory: &Handle) -> Result<()> {
    Ok(())
}

/// The next data or hole from `offset` on.
pub fn seek_sparse(file: &File, offset: u64, hole: bool) -> Result<u64> {
    let len = file.metadata()?.len();
    let none = || io::Error::from_raw_os_error(ERROR_SEEK as i32);
    if offset >= len {
        return Err(none());
    }
    let (mut data, mut end) = (None, offset);
    for_each_data(file, offset..len, |part| {
        data.get_or_insert(part.start);
        if part.start <= end {
            end = part.end;
        }
        Ok(())
    })?;
    if hole { Ok(end.min(len)) } else { data.ok_or_else(none) }
}

/// No blocks are shared.
pub(in crate::sys) fn clone_content(_from: &File, _to: &File) -> bool {
    false
}

/// Takes room on the disk for a file up to `end`, of which it has `allocated` bytes.
pub(in crate::sys) fn reserve(file: &File, end: u64, allocated: u64) -> Result<()> {
    if end <= allocated { Ok(()) } else { native::set_allocation(file, end) }
}

/// A path's last component as a name.
pub fn c_name(path: &Path) -> Result<CString> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let name = name.to_str().ok_or(ErrorKind::InvalidFilename)?;
    CString::new(name).map_err(|_| ErrorKind::InvalidInput.into())
}

/// The bytes of a path, `/` between its components.
pub fn path_bytes(path: &Path) -> Cow<'_, [u8]> {
    Cow::Owned(path.to_string_lossy().replace('\\', "/").into_bytes())
}

/// A path of such bytes.
pub fn path_from_bytes(bytes: &[u8]) -> PathBuf {
    String::from_utf8_lossy(bytes).replace('/', "\\").into()
}

/// What a file is opened with. To be looked at is always part of it, and so is the time of a change.
fn rights(access: Access) -> u32 {
    let read = if access.read { FILE_GENERIC_READ } else { 0 };
    let write = if access.write { FILE_GENERIC_WRITE } else { 0 };
    read | write | LOOK
}

fn through(access: Access) -> u32 {
    if access.sync || access.data_sync { FILE_WRITE_THROUGH } else { 0 }
}

/// A name as Windows takes it: one component, of a file and not of a stream of one.
fn wide(name: &CStr) -> Result<Vec<u16>> {
    let name = name.to_str().map_err(|_| ErrorKind::InvalidFilename)?;
    if matches!(name, "" | "." | "..") || name.contains(['/', '\\', ':']) {
        return Err(ErrorKind::InvalidFilename.into());
    }
    Ok(name.encode_utf16().collect())
}

fn same_but_for_case(one: &CStr, other: &CStr) -> bool {
    let folded = |name: &CStr| name.to_string_lossy().to_lowercase();
    folded(one) == folded(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_a_path_or_a_stream() {
        for name in [c"..", c".", c"", c"a/b", c"a\\b", c"file:stream", c"\xff"] {
            assert_eq!(wide(name).unwrap_err().kind(), ErrorKind::InvalidFilename, "{name:?}");
        }
        assert_eq!(wide(c"a").unwrap(), [97]);
    }

    #[test]
    fn paths_have_slashes_in_bytes() {
        let path = Path::new(r"one\two");
        assert_eq!(&*path_bytes(path), b"one/two");
        assert_eq!(path_from_bytes(b"one/two"), path);
    }
}

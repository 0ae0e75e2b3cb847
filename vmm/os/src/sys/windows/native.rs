//! The calls by which inodes are opened and looked at (`NtCreateFile` and its kind): beneath a directory's handle, by
//! one component, or by a file's id. Win32's calls take paths only.

use std::ffi::{OsString, c_void};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Result};
use std::os::windows::ffi::OsStringExt;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::{AsHandle, AsRawHandle, FromRawHandle, OwnedHandle};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{mem, ptr};

use windows_sys::Wdk::Foundation::OBJECT_ATTRIBUTES;
use windows_sys::Wdk::Storage::FileSystem::{
    FILE_ALL_INFORMATION, FILE_DISPOSITION_DELETE, FILE_DISPOSITION_IGNORE_READONLY_ATTRIBUTE,
    FILE_DISPOSITION_POSIX_SEMANTICS, FILE_OPEN, FILE_OPEN_BY_FILE_ID,
    FILE_RENAME_IGNORE_READONLY_ATTRIBUTE, FILE_RENAME_POSIX_SEMANTICS,
    FILE_RENAME_REPLACE_IF_EXISTS, FILE_SYNCHRONOUS_IO_NONALERT, FileAllInformation,
    FileDispositionInformation, FileDispositionInformationEx, FileFsAttributeInformation,
    FileFsFullSizeInformation, FileLinkInformation, FileRenameInformation, FileRenameInformationEx,
    NtCreateFile, NtQueryInformationFile, NtQueryVolumeInformationFile, NtSetInformationFile,
};
use windows_sys::Win32::Foundation::{
    HANDLE, NTSTATUS, OBJ_CASE_INSENSITIVE, RtlNtStatusToDosError, STATUS_BUFFER_OVERFLOW,
    STATUS_DELETE_PENDING, STATUS_INVALID_INFO_CLASS, STATUS_INVALID_PARAMETER,
    STATUS_NOT_IMPLEMENTED, STATUS_NOT_SUPPORTED, UNICODE_STRING,
};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_ALLOCATION_INFO, FILE_ATTRIBUTE_DIRECTORY, FILE_ATTRIBUTE_NORMAL, FILE_ATTRIBUTE_READONLY,
    FILE_ATTRIBUTE_REPARSE_POINT, FILE_BASIC_INFO, FILE_FLAG_BACKUP_SEMANTICS,
    FILE_FLAG_OPEN_REPARSE_POINT, FILE_ID_INFO, FILE_READ_ATTRIBUTES, FILE_SHARE_DELETE,
    FILE_SHARE_READ, FILE_SHARE_WRITE, FileAllocationInfo, FileBasicInfo, FileIdInfo,
    GetFileInformationByHandleEx, GetFinalPathNameByHandleW, SYNCHRONIZE,
    SetFileInformationByHandle,
};
use windows_sys::Win32::System::IO::IO_STATUS_BLOCK;

use super::reparse;
use crate::sys::tree::{Moment, NewTime, Space, Stat, mode};

const SHARED: u32 = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
/// Between 1601, where Windows' time begins, and 1970, in its units of 100 ns.
const TO_1970: i64 = 116_444_736_000_000_000;
const UNITS: i64 = 10_000_000;
/// File systems whose ids name places and not files.
const WITHOUT_IDS: [&str; 4] = ["FAT", "FAT12", "FAT32", "exFAT"];

/// Opens a folder by its path, links followed.
pub(super) fn open_folder(path: &Path) -> Result<OwnedHandle> {
    open_path(path, FILE_FLAG_BACKUP_SEMANTICS)
}

/// Opens what is at a path, itself if it is a link, to be looked at.
pub(super) fn open_itself(path: &Path) -> Result<OwnedHandle> {
    open_path(path, FILE_FLAG_BACKUP_SEMANTICS | FILE_FLAG_OPEN_REPARSE_POINT)
}

fn open_path(path: &Path, flags: u32) -> Result<OwnedHandle> {
    let mut options = OpenOptions::new();
    options.access_mode(FILE_READ_ATTRIBUTES | SYNCHRONIZE).share_mode(SHARED);
    Ok(options.custom_flags(flags).open(path)?.into())
}

/// Opens or makes the entry `name` of a directory.
pub(super) fn open_entry(
    directory: &OwnedHandle,
    name: &[u16],
    access: u32,
    disposition: u32,
    attributes: u32,
    options: u32,
) -> Result<OwnedHandle> {
    let len = size_of_val(name).try_into().map_err(|_| ErrorKind::InvalidFilename)?;
    open(directory, name.as_ptr().cast(), len, access, disposition, attributes, options)
}

/// Opens the inode with this id on the volume of `near`. ESTALE if there is none any more.
pub(super) fn open_id(
    near: &OwnedHandle,
    id: u64,
    access: u32,
    options: u32,
) -> Result<OwnedHandle> {
    let (name, len) = ((&raw const id).cast(), size_of::<u64>() as u16);
    let options = options | FILE_OPEN_BY_FILE_ID;
    let opened = open(near, name, len, access, FILE_OPEN, 0, options);
    opened.map_err(|error| match error.kind() {
        // What Windows says of an id that nothing has.
        ErrorKind::InvalidInput | ErrorKind::NotFound => ErrorKind::StaleNetworkFileHandle.into(),
        _ => error,
    })
}

fn open(
    near: &OwnedHandle,
    name: *const c_void,
    len: u16,
    access: u32,
    disposition: u32,
    attributes: u32,
    options: u32,
) -> Result<OwnedHandle> {
    let name = UNICODE_STRING { Length: len, MaximumLength: len, Buffer: name.cast_mut().cast() };
    let object = OBJECT_ATTRIBUTES {
        Length: size_of::<OBJECT_ATTRIBUTES>() as u32,
        RootDirectory: near.as_raw_handle(),
        ObjectName: &raw const name,
        Attributes: OBJ_CASE_INSENSITIVE,
        ..OBJECT_ATTRIBUTES::default()
    };
    let mut handle: HANDLE = ptr::null_mut();
    let mut status = IO_STATUS_BLOCK::default();
    // SAFETY: all structures live through the call; the name is read, as many bytes as its length says.
    let result = unsafe {
        NtCreateFile(
            &raw mut handle,
            access | SYNCHRONIZE,
            &raw const object,
            &raw mut status,
            ptr::null(),
            attributes,
            SHARED,
            disposition,
            options | FILE_SYNCHRONOUS_IO_NONALERT,
            ptr::null(),
            0,
        )
    };
    checked(result)?;
    // SAFETY: the system made the handle for us alone.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// What Windows says of an inode.
pub(super) struct Looked {
    all: FILE_ALL_INFORMATION,
    kind: u32,
}

/// Asks for everything that is said of an inode.
pub(super) fn look(handle: &OwnedHandle) -> Result<Looked> {
    let mut all = FILE_ALL_INFORMATION::default();
    let mut status = IO_STATUS_BLOCK::default();
    // SAFETY: no more is written than the structure, whose length is told.
    let result = unsafe {
        NtQueryInformationFile(
            handle.as_raw_handle(),
            &raw mut status,
            (&raw mut all).cast(),
            size_of::<FILE_ALL_INFORMATION>() as u32,
            FileAllInformation,
        )
    };
    // There is no room for its name, which is the last of all.
    if result != STATUS_BUFFER_OVERFLOW {
        checked(result)?;
    }
    let attributes = all.BasicInformation.FileAttributes;
    let tag = match attributes & FILE_ATTRIBUTE_REPARSE_POINT {
        0 => 0,
        _ => reparse::tag(handle)?,
    };
    Ok(Looked { all, kind: kind_of(attributes, tag) })
}

/// What an inode is: a reparse point that stands for another name is a link; any other is what it would be without.
pub(super) fn kind_of(attributes: u32, tag: u32) -> u32 {
    reparse::kind_of(tag).unwrap_or(match attributes & FILE_ATTRIBUTE_DIRECTORY {
        0 => mode::REGULAR,
        _ => mode::DIRECTORY,
    })
}

impl Looked {
    pub(super) fn id(&self) -> u64 {
        self.all.InternalInformation.IndexNumber as u64
    }

    pub(super) fn kind(&self) -> u32 {
        self.kind
    }

    fn is_read_only(&self) -> bool {
        self.all.BasicInformation.FileAttributes & FILE_ATTRIBUTE_READONLY != 0
    }

    pub(super) fn stat(&self, volume: u64) -> Stat {
        let (basic, standard) = (&self.all.BasicInformation, &self.all.StandardInformation);
        let permissions = match self.kind {
            mode::SYMLINK => 0o777,
            mode::REGULAR if self.is_read_only() => 0o555,
            _ => 0o755,
        };
        let is_file = self.kind != mode::DIRECTORY;
        Stat {
            device: volume,
            mount: 0,
            ino: self.id(),
            mode: self.kind | permissions,
            links: if standard.DeletePending { 0 } else { standard.NumberOfLinks.max(1) },
            uid: 0,
            gid: 0,
            size: if is_file { standard.EndOfFile as u64 } else { 4096 },
            blocks: standard.AllocationSize as u64 / 512,
            block_size: 4096,
            accessed: moment(basic.LastAccessTime),
            modified: moment(basic.LastWriteTime),
            changed: moment(basic.ChangeTime),
            // Any program may set it, and a name that comes back gets the one of before: it proves nothing. Ids do.
            born: None,
        }
    }
}

fn moment(time: i64) -> Moment {
    let since = time.saturating_sub(TO_1970);
    Moment { sec: since.div_euclid(UNITS), nsec: since.rem_euclid(UNITS) as u32 * 100 }
}

fn windows_time(time: Option<NewTime>) -> Result<i64> {
    let moment = match time {
        // It stays as it is.
        None => return Ok(0),
        Some(NewTime::At(moment)) => moment,
        Some(NewTime::Now) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            Moment { sec: now.as_secs() as i64, nsec: now.subsec_nanos() }
        }
    };
    let units = moment.sec.checked_mul(UNITS).and_then(|units| units.checked_add(TO_1970));
    let units = units.filter(|units| *units > 0).ok_or(ErrorKind::InvalidInput)?;
    Ok(units + i64::from(moment.nsec / 100))
}

pub(super) fn set_times(
    handle: &OwnedHandle,
    accessed: Option<NewTime>,
    modified: Option<NewTime>,
) -> Result<()> {
    let basic = FILE_BASIC_INFO {
        LastAccessTime: windows_time(accessed)?,
        LastWriteTime: windows_time(modified)?,
        ..FILE_BASIC_INFO::default()
    };
    set_basic(handle, &basic)
}

pub(super) fn set_read_only(handle: &OwnedHandle, looked: &Looked, read_only: bool) -> Result<()> {
    if looked.is_read_only() == read_only {
        return Ok(());
    }
    let others = looked.all.BasicInformation.FileAttributes & !FILE_ATTRIBUTE_READONLY;
    let attributes = others | if read_only { FILE_ATTRIBUTE_READONLY } else { 0 };
    // None at all would mean that they stay.
    let attributes = if attributes == 0 { FILE_ATTRIBUTE_NORMAL } else { attributes };
    set_basic(handle, &FILE_BASIC_INFO { FileAttributes: attributes, ..<_>::default() })
}

fn set_basic(handle: &OwnedHandle, basic: &FILE_BASIC_INFO) -> Result<()> {
    let (at, len) = (ptr::from_ref(basic).cast(), size_of::<FILE_BASIC_INFO>() as u32);
    // SAFETY: reads the structure, of the length that is told.
    done(unsafe { SetFileInformationByHandle(handle.as_raw_handle(), FileBasicInfo, at, len) })
}

/// Takes room for so many bytes.
pub(super) fn set_allocation(file: &File, bytes: u64) -> Result<()> {
    let allocation = FILE_ALLOCATION_INFO {
        AllocationSize: bytes.try_into().map_err(|_| ErrorKind::FileTooLarge)?,
    };
    let (at, len) = ((&raw const allocation).cast(), size_of::<FILE_ALLOCATION_INFO>() as u32);
    let handle = file.as_handle().as_raw_handle();
    // SAFETY: reads the structure, of the length that is told.
    done(unsafe { SetFileInformationByHandle(handle, FileAllocationInfo, at, len) })
}

/// Takes the name away by which an inode was opened: at once, where the file system can, else with its last handle.
pub(super) fn delete(handle: &OwnedHandle) -> Result<()> {
    let flags: u32 = FILE_DISPOSITION_DELETE
        | FILE_DISPOSITION_POSIX_SEMANTICS
        | FILE_DISPOSITION_IGNORE_READONLY_ATTRIBUTE;
    let status = set(handle, &flags.to_ne_bytes(), FileDispositionInformationEx);
    if !is_unknown(status) {
        return checked(status);
    }
    set_read_only(handle, &look(handle)?, false)?;
    checked(set(handle, &[1], FileDispositionInformation))
}

/// Moves an inode to a name in a directory, over what has the name if that is wanted.
pub(super) fn rename(
    handle: &OwnedHandle,
    directory: &OwnedHandle,
    name: &[u16],
    replace: bool,
) -> Result<()> {
    let over = FILE_RENAME_REPLACE_IF_EXISTS | FILE_RENAME_IGNORE_READONLY_ATTRIBUTE;
    let flags = FILE_RENAME_POSIX_SEMANTICS | if replace { over } else { 0 };
    let status = set(handle, &naming(flags, directory, name), FileRenameInformationEx);
    if !is_unknown(status) {
        return checked(status);
    }
    let replace = u32::from(replace);
    checked(set(handle, &naming(replace, directory, name), FileRenameInformation))
}

/// Gives an inode one more name in a directory.
pub(super) fn link(handle: &OwnedHandle, directory: &OwnedHandle, name: &[u16]) -> Result<()> {
    checked(set(handle, &naming(0, directory, name), FileLinkInformation))
}

/// `FILE_RENAME_INFORMATION`, as which `FILE_LINK_INFORMATION` is laid out too: flags, a directory, a name.
fn naming(flags: u32, directory: &OwnedHandle, name: &[u16]) -> Vec<u8> {
    let mut bytes = vec![0; 2 * size_of::<HANDLE>()];
    bytes[..4].copy_from_slice(&flags.to_ne_bytes());
    let root = (directory.as_raw_handle() as usize).to_ne_bytes();
    bytes[size_of::<HANDLE>()..].copy_from_slice(&root);
    bytes.extend((size_of_val(name) as u32).to_ne_bytes());
    bytes.extend(name.iter().flat_map(|unit| unit.to_ne_bytes()));
    // Windows takes none that is shorter than the structure with its padding.
    let least = bytes.len().next_multiple_of(size_of::<HANDLE>());
    bytes.resize(least, 0);
    bytes
}

fn set(handle: &OwnedHandle, bytes: &[u8], class: i32) -> NTSTATUS {
    // Structures of Windows' begin at multiples of eight.
    let mut aligned = vec![0u64; bytes.len().div_ceil(8)];
    // SAFETY: as many bytes as the first has room in the second, which has more than that.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), aligned.as_mut_ptr().cast(), bytes.len()) };
    let mut status = IO_STATUS_BLOCK::default();
    let (at, len) = (aligned.as_ptr().cast(), bytes.len() as u32);
    // SAFETY: reads as many bytes as there are.
    unsafe { NtSetInformationFile(handle.as_raw_handle(), &raw mut status, at, len, class) }
}

/// Does the file system, or Wine, not know what it was asked for?
fn is_unknown(status: NTSTATUS) -> bool {
    const UNKNOWN: [NTSTATUS; 4] = [
        STATUS_INVALID_INFO_CLASS,
        STATUS_INVALID_PARAMETER,
        STATUS_NOT_IMPLEMENTED,
        STATUS_NOT_SUPPORTED,
    ];
    UNKNOWN.contains(&status)
}

/// The volume's number; zero where Windows gives it none.
pub(super) fn volume(handle: &OwnedHandle) -> u64 {
    let mut found = FILE_ID_INFO::default();
    let (at, len) = ((&raw mut found).cast(), size_of::<FILE_ID_INFO>() as u32);
    // SAFETY: fills the structure, of the length that is told.
    unsafe { GetFileInformationByHandleEx(handle.as_raw_handle(), FileIdInfo, at, len) };
    found.VolumeSerialNumber
}

/// Does the file system find files by ids that stay?
pub(super) fn finds_by_id(handle: &OwnedHandle) -> Result<bool> {
    // What it has, the longest name, the length of its own name, its own name.
    let mut bytes = [0u64; 128];
    ask_volume(handle, &mut bytes, FileFsAttributeInformation)?;
    let bytes: Vec<u8> = bytes.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let len = u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
    let name = bytes.get(12..12 + len).unwrap_or_default();
    let units: Vec<u16> =
        name.chunks_exact(2).map(|two| u16::from_ne_bytes([two[0], two[1]])).collect();
    let name = String::from_utf16_lossy(&units);
    Ok(!WITHOUT_IDS.contains(&name.as_str()))
}

/// The room of a file system.
pub(super) fn space(handle: &OwnedHandle) -> Result<Space> {
    // All units, those for this user, those that are free; sectors of a unit, bytes of a sector.
    let mut words = [0u64; 4];
    ask_volume(handle, &mut words, FileFsFullSizeInformation)?;
    let [blocks, available, free, sizes] = words;
    let block = (sizes & 0xffff_ffff) * (sizes >> 32);
    Ok(Space { block, blocks, free, available, files: 0, free_files: 0 })
}

fn ask_volume(handle: &OwnedHandle, answer: &mut [u64], class: i32) -> Result<()> {
    let mut status = IO_STATUS_BLOCK::default();
    let (at, len) = (answer.as_mut_ptr().cast(), mem::size_of_val(answer) as u32);
    // SAFETY: no more is written than there is room for.
    let result = unsafe {
        NtQueryVolumeInformationFile(handle.as_raw_handle(), &raw mut status, at, len, class)
    };
    if result == STATUS_BUFFER_OVERFLOW { Ok(()) } else { checked(result) }
}

/// Where an inode is now.
pub(super) fn path(handle: &OwnedHandle) -> Result<PathBuf> {
    let mut units = vec![0u16; 1024];
    loop {
        let room = units.len() as u32;
        // SAFETY: no more is written than there is room for.
        let len = unsafe {
            GetFinalPathNameByHandleW(handle.as_raw_handle(), units.as_mut_ptr(), room, 0)
        };
        match len {
            0 => return Err(io::Error::last_os_error()),
            len if len < room => {
                return Ok(OsString::from_wide(&units[..len as usize]).into());
            }
            len => units.resize(len as usize + 1, 0),
        }
    }
}

fn done(result: i32) -> Result<()> {
    if result == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(super) fn checked(status: NTSTATUS) -> Result<()> {
    match status {
        0.. => Ok(()),
        // Its name is as good as gone.
        STATUS_DELETE_PENDING => Err(ErrorKind::NotFound.into()),
        // SAFETY: looks the number up.
        _ => Err(io::Error::from_raw_os_error(unsafe { RtlNtStatusToDosError(status) } as i32)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use windows_sys::Win32::Storage::FileSystem::FILE_ATTRIBUTE_RECALL_ON_DATA_ACCESS;

    #[test]
    fn times_go_there_and_back() {
        for moment in
            [Moment::default(), Moment { sec: -1, nsec: 500 }, Moment { sec: 1 << 33, nsec: 100 }]
        {
            let there = windows_time(Some(NewTime::At(moment))).unwrap();
            assert_eq!(super::moment(there), moment);
        }
        assert_eq!(windows_time(None).unwrap(), 0);
        let before_1601 = Moment { sec: -12_000_000_000, nsec: 0 };
        assert!(windows_time(Some(NewTime::At(before_1601))).is_err());
    }

    #[test]
    fn a_placeholder_is_a_file_and_a_link_is_none() {
        let placeholder = FILE_ATTRIBUTE_REPARSE_POINT | FILE_ATTRIBUTE_RECALL_ON_DATA_ACCESS;
        // `IO_REPARSE_TAG_CLOUD_6`.
        assert_eq!(kind_of(placeholder, 0x9000_601a), mode::REGULAR);
        assert_eq!(kind_of(placeholder | FILE_ATTRIBUTE_DIRECTORY, 0x9000_601a), mode::DIRECTORY);
        // `IO_REPARSE_TAG_SYMLINK`, and a junction.
        assert_eq!(kind_of(FILE_ATTRIBUTE_REPARSE_POINT, 0xa000_000c), mode::SYMLINK);
        assert_eq!(kind_of(FILE_ATTRIBUTE_DIRECTORY, 0xa000_0003), mode::SYMLINK);
        // Any other that stands for a name: opened, it would lead somewhere.
        assert_eq!(kind_of(FILE_ATTRIBUTE_REPARSE_POINT, 0xa000_1234), mode::SYMLINK);
    }
}

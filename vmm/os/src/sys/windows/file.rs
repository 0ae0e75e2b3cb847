//! Files: positional I/O, on raw memory too (`ReadFile` and `WriteFile` with an offset), holes, locks.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::windows::ffi::OsStrExt;
use std::os::windows::fs::{FileExt as _, OpenOptionsExt};
use std::os::windows::io::AsRawHandle;
use std::path::{Path, PathBuf};
use std::ptr;

use windows_sys::Win32::Foundation::{
    ERROR_CALL_NOT_IMPLEMENTED, ERROR_HANDLE_EOF, ERROR_INVALID_FUNCTION, ERROR_IO_PENDING,
    ERROR_LOCK_VIOLATION, ERROR_MORE_DATA, ERROR_NOT_SUPPORTED, HANDLE,
};
use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, FILE_ATTRIBUTE_TEMPORARY, FILE_FLAG_BACKUP_SEMANTICS,
    FILE_FLAG_DELETE_ON_CLOSE, FILE_FLAG_OPEN_REPARSE_POINT, FILE_STANDARD_INFO, FileStandardInfo,
    GetFileInformationByHandle, GetFileInformationByHandleEx, LOCKFILE_EXCLUSIVE_LOCK,
    LOCKFILE_FAIL_IMMEDIATELY, LockFileEx, MoveFileExW, ReadFile, WriteFile,
};
use windows_sys::Win32::System::IO::{DeviceIoControl, OVERLAPPED, OVERLAPPED_0, OVERLAPPED_0_0};
use windows_sys::Win32::System::Ioctl::{
    FILE_ALLOCATED_RANGE_BUFFER, FILE_ZERO_DATA_INFORMATION, FSCTL_QUERY_ALLOCATED_RANGES,
    FSCTL_SET_SPARSE, FSCTL_SET_ZERO_DATA,
};

use super::native;
use super::process::random_bytes;
pub(in crate::sys) use crate::sys::portable::copy_in_kernel;
pub use crate::sys::sparse::{copy_sparse, copy_sparse_range, same_content};

/// Positional I/O by the names that the standard library has for it on Unix. It moves the file's own position, which
/// nobody may rely on.
pub trait FileExt {
    /// Reads from `offset` on; returns the bytes read.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes from `offset` on; returns the bytes written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Fills `bytes` from `offset` on.
    fn read_exact_at(&self, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self.read_at(bytes, offset)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes = &mut bytes[count..];
            offset += count as u64;
        }
        Ok(())
    }

    /// Writes all of `bytes` from `offset` on.
    fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self.write_at(bytes, offset)?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[count..];
            offset += count as u64;
        }
        Ok(())
    }
}

impl FileExt for File {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.seek_read(bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.seek_write(bytes, offset)
    }
}

/// Bytes that a file takes on the disk.
pub fn allocated(file: &File) -> io::Result<u64> {
    let mut information = FILE_STANDARD_INFO::default();
    let (at, len) = ((&raw mut information).cast(), size_of::<FILE_STANDARD_INFO>() as u32);
    // SAFETY: fills the structure, of the length that is told.
    match unsafe { GetFileInformationByHandleEx(handle(file), FileStandardInfo, at, len) } {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(information.AllocationSize.try_into().unwrap_or(0)),
    }
}

/// Bytes for which the file's file system has room.
pub fn room(file: &File) -> io::Result<u64> {
    let found = native::space(&file.try_clone()?.into())?;
    Ok(found.available.saturating_mul(found.block))
}

/// Gives `len` bytes from `offset` back to the host's file system; they read as zeroes. A file that is not sparse is
/// zeroed; a file system that can do neither keeps the data (`Ok(false)`).
pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    zero_range(file, offset, len)
}

/// Makes `len` bytes from `offset` read as zeroes without moving data, where the file system can.
pub fn zero_range(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    let end = offset.saturating_add(len).min(i64::MAX as u64);
    let range = FILE_ZERO_DATA_INFORMATION {
        FileOffset: offset.min(end) as i64,
        BeyondFinalZero: end as i64,
    };
    unsupported_is_none(control(file, FSCTL_SET_ZERO_DATA, Some(&range), &mut []))
        .map(|done| done.is_some())
}

/// Lets a file have holes, where the file system can.
pub(in crate::sys) fn let_have_holes(file: &File) -> io::Result<()> {
    unsupported_is_none(control::<()>(file, FSCTL_SET_SPARSE, None, &mut [])).map(drop)
}

/// Calls `each` with the parts of a range that are no holes, in order. A file system that knows no holes has one part.
pub fn for_each_data(
    file: &File,
    range: Range<u64>,
    mut each: impl FnMut(Range<u64>) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = range.start;
    let end = range.end.min(file.metadata()?.len());
    while at < end {
        let asked =
            FILE_ALLOCATED_RANGE_BUFFER { FileOffset: at as i64, Length: (end - at) as i64 };
        let mut found = [FILE_ALLOCATED_RANGE_BUFFER::default(); 64];
        let answer = control(file, FSCTL_QUERY_ALLOCATED_RANGES, Some(&asked), &mut found);
        let Some(count) = unsupported_is_none(answer)? else {
            return each(at..end);
        };
        for part in &found[..count] {
            let start = at.max(part.FileOffset as u64);
            at = end.min(part.FileOffset.saturating_add(part.Length) as u64);
            if start < at {
                each(start..at)?;
            }
        }
        if count < found.len() {
            return Ok(());
        }
    }
    Ok(())
}

/// Tells a file's system something; returns how many of the answers it has filled.
fn control<Q: Copy>(
    file: &File,
    code: u32,
    question: Option<&Q>,
    answers: &mut [FILE_ALLOCATED_RANGE_BUFFER],
) -> io::Result<usize> {
    let (asked, asked_len) = match question {
        Some(question) => (ptr::from_ref(question).cast::<c_void>(), size_of::<Q>() as u32),
        None => (ptr::null(), 0),
    };
    let mut filled = 0;
    // SAFETY: the question is read, and no more is written than the answers have room for.
    let done = unsafe {
        DeviceIoControl(
            handle(file),
            code,
            asked,
            asked_len,
            answers.as_mut_ptr().cast(),
            size_of_val(answers) as u32,
            &raw mut filled,
            ptr::null_mut(),
        )
    };
    let error = io::Error::last_os_error();
    if done == 0 && error.raw_os_error() != Some(ERROR_MORE_DATA as i32) {
        return Err(error);
    }
    Ok(filled as usize / size_of::<FILE_ALLOCATED_RANGE_BUFFER>())
}

fn unsupported_is_none(result: io::Result<usize>) -> io::Result<Option<usize>> {
    const NOT_HERE: [u32; 3] =
        [ERROR_INVALID_FUNCTION, ERROR_NOT_SUPPORTED, ERROR_CALL_NOT_IMPLEMENTED];
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if NOT_HERE.iter().any(|code| error.raw_os_error() == Some(*code as i32)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A file that nobody else opens, in `dir`: it is gone when the last handle is, however this process ends.
pub fn unnamed(dir: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    options.attributes(FILE_ATTRIBUTE_TEMPORARY).custom_flags(FILE_FLAG_DELETE_ON_CLOSE);
    let file = options.open(beside(dir)?)?;
    let_have_holes(&file)?;
    Ok(file)
}

/// No file system of Windows lies in memory that is short.
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub fn is_in_memory(_file: &File) -> io::Result<bool> {
    Ok(false)
}

/// Makes the file `path` with what `fill` writes: whole or not at all. Killed half-way it leaves a file whose name
/// begins with a dot. Fails if the name is taken.
pub fn create_whole(path: &Path, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let unfinished = beside(folder(path))?;
    let file = File::options().read(true).write(true).create_new(true).open(&unfinished)?;
    let filled = let_have_holes(&file).and_then(|()| fill(&file));
    drop(file);
    let named = filled.and_then(|()| rename(&unfinished, path));
    if named.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    named
}

/// Gives a file another name, which must be free.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let wide = |path: &Path| path.as_os_str().encode_wide().chain([0]).collect::<Vec<u16>>();
    let (from, to) = (wide(from), wide(to));
    // SAFETY: both names end with a zero. Without a flag the call does not replace.
    match unsafe { MoveFileExW(from.as_ptr(), to.as_ptr(), 0) } {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Windows makes the entries of folders last by itself.
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub fn sync_folder(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// The folder of a path.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// A name in `dir` that begins with a dot and that nobody else has.
fn beside(dir: &Path) -> io::Result<PathBuf> {
    let number = u128::from_le_bytes(random_bytes()?);
    Ok(dir.join(format!(".cabana-{number:032x}-unfinished")))
}

/// Takes the file for this process alone; false if another holds it. Freed with the last handle. A byte that no file
/// has stands for all of it: Windows would keep others from reading what is locked.
pub fn try_lock(file: &File) -> io::Result<bool> {
    take(file, LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY)
}

/// Takes the file together with others that only read it; false if somebody holds it alone.
pub fn try_lock_shared(file: &File) -> io::Result<bool> {
    take(file, LOCKFILE_FAIL_IMMEDIATELY)
}

/// Waits until the file is this process's alone.
pub fn lock(file: &File) -> io::Result<()> {
    take(file, LOCKFILE_EXCLUSIVE_LOCK).map(drop)
}

/// Opens a folder, links to it followed, for another process to open again; anything else fails at once.
pub fn open_folder(path: &Path) -> io::Result<File> {
    folder_with(FILE_FLAG_BACKUP_SEMANTICS, path)
}

/// Opens a folder, and not what a link in its place leads to.
pub fn open_folder_itself(path: &Path) -> io::Result<File> {
    folder_with(FILE_FLAG_BACKUP_SEMANTICS | FILE_FLAG_OPEN_REPARSE_POINT, path)
}

fn folder_with(flags: u32, path: &Path) -> io::Result<File> {
    let opened = File::options().read(true).custom_flags(flags).open(path)?;
    if opened.metadata()?.is_dir() { Ok(opened) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

/// Nothing: what is new has the rights of the folder that it is in.
pub fn adopt(_path: &Path) {}

/// Lets nobody write to a file any more, and brings it to the disk; returns it open to be read.
pub fn seal(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut permissions = file.metadata()?.permissions();
    permissions.set_readonly(true);
    file.set_permissions(permissions)?;
    file.sync_all()?;
    Ok(file)
}

/// Removes a folder with all that is in it, also what nobody may write to; links are removed, not followed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        // A file system that cannot take away the name of a file that is read-only.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            unseal(path)?;
            std::fs::remove_dir_all(path)
        }
        result => result,
    }
}

/// Lets all files in a folder be written to.
fn unseal(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let mut permissions = metadata.permissions();
        if metadata.is_dir() {
            unseal(&entry.path())?;
        } else if metadata.is_file() && permissions.readonly() {
            #[allow(
                clippy::permissions_set_readonly_false,
                reason = "it lets nobody else write on Windows"
            )]
            permissions.set_readonly(false);
            std::fs::set_permissions(entry.path(), permissions)?;
        }
    }
    Ok(())
}

/// Windows exchanges no names (`Ok(false)`).
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub fn exchange(_one: &Path, _other: &Path) -> io::Result<bool> {
    Ok(false)
}

/// Whether two files are one.
pub fn is_same(one: &File, other: &File) -> io::Result<bool> {
    let number = |file: &File| -> io::Result<_> {
        let mut told = BY_HANDLE_FILE_INFORMATION::default();
        // SAFETY: fills the structure.
        match unsafe { GetFileInformationByHandle(handle(file), &raw mut told) } {
            0 => Err(io::Error::last_os_error()),
            _ => Ok((told.dwVolumeSerialNumber, told.nFileIndexHigh, told.nFileIndexLow)),
        }
    };
    Ok(number(one)? == number(other)?)
}

/// Makes a folder if it is not there, with the rights of the one that it is in: that of temporary files is a user's own. False if
/// what is there is no folder.
pub fn private_folder(path: &Path) -> io::Result<bool> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(std::fs::symlink_metadata(path)?.is_dir()),
    }
}

fn take(file: &File, flags: u32) -> io::Result<bool> {
    let mut place = place(i64::MAX as u64 - 1);
    // SAFETY: the structure says where the byte is.
    if unsafe { LockFileEx(handle(file), flags, 0, 1, 0, &raw mut place) } != 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error().map(|code| code as u32) {
        Some(ERROR_LOCK_VIOLATION | ERROR_IO_PENDING) => Ok(false),
        _ => Err(error),
    }
}

/// A piece of memory to read into or write from: address and length in bytes.
#[derive(Clone, Copy, Debug)]
pub struct IoPiece {
    /// The first byte.
    pub addr: *mut u8,
    /// Length in bytes.
    pub len: usize,
}

/// Reads at `offset` into the pieces in order; returns the bytes read, fewer at the file's end.
///
/// # Safety
/// Each piece is memory that is valid for writes for the whole call and that no Rust reference
/// points to (guest memory).
pub unsafe fn read_pieces_at(file: &File, pieces: &[IoPiece], offset: u64) -> io::Result<usize> {
    transfer(pieces, offset, |piece, len, place, moved| {
        // SAFETY: the caller vouches for the piece; no more than its length is written.
        unsafe { ReadFile(handle(file), piece, len, moved, place) }
    })
}

/// Writes the pieces in order at `offset`; returns the bytes written.
///
/// # Safety
/// Each piece is memory that is valid for reads for the whole call.
pub unsafe fn write_pieces_at(file: &File, pieces: &[IoPiece], offset: u64) -> io::Result<usize> {
    transfer(pieces, offset, |piece, len, place, moved| {
        // SAFETY: the caller vouches for the piece; no more than its length is read.
        unsafe { WriteFile(handle(file), piece, len, moved, place) }
    })
}

fn handle(file: &File) -> HANDLE {
    file.as_raw_handle()
}

/// Where in a file.
fn place(at: u64) -> OVERLAPPED {
    let place = OVERLAPPED_0_0 { Offset: at as u32, OffsetHigh: (at >> 32) as u32 };
    OVERLAPPED { Anonymous: OVERLAPPED_0 { Anonymous: place }, ..OVERLAPPED::default() }
}

/// Piece after piece, each in calls of at most 1 GiB, until one moves less than it was asked to.
fn transfer(
    pieces: &[IoPiece],
    offset: u64,
    call: impl Fn(*mut u8, u32, *mut OVERLAPPED, *mut u32) -> i32,
) -> io::Result<usize> {
    const MOST: usize = 1 << 30;
    let mut total = 0;
    for piece in pieces {
        let mut done = 0;
        while done < piece.len {
            let len = (piece.len - done).min(MOST) as u32;
            // The last of all offsets is the end, wherever that is.
            let at = offset.saturating_add(total as u64);
            let mut place = place(at);
            let mut moved = 0;
            let fine =
                call(piece.addr.wrapping_add(done), len, &raw mut place, &raw mut moved) != 0;
            if !fine {
                let error = io::Error::last_os_error();
                if error.raw_os_error() == Some(ERROR_HANDLE_EOF as i32) || total > 0 {
                    return Ok(total);
                }
                return Err(error);
            }
            done += moved as usize;
            total += moved as usize;
            if moved < len {
                return Ok(total);
            }
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_written_and_read_where_it_belongs() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"late", 1 << 20).unwrap();
        let mut bytes = [9; 6];
        file.read_exact_at(&mut bytes, (1 << 20) - 2).unwrap();
        assert_eq!(&bytes, b"\0\0late");
        assert!(file.read_exact_at(&mut bytes, (1 << 20) - 1).is_err());
    }

    #[test]
    fn pieces_are_filled_in_order_up_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        let file = File::open(&path).unwrap();
        let mut bytes = [0u8; 8];
        let base = bytes.as_mut_ptr();
        let pieces =
            [IoPiece { addr: base, len: 3 }, IoPiece { addr: base.wrapping_add(4), len: 4 }];
        // SAFETY: both pieces lie in `bytes`, which is not looked at meanwhile.
        assert_eq!(unsafe { read_pieces_at(&file, &pieces, 5) }.unwrap(), 5);
        assert_eq!(&bytes, b"567\x0089\0\0");
    }
}

//! Directories that are being read.

use std::ffi::CString;
use std::io::{self, Result};
use std::mem::offset_of;
use std::os::windows::io::{AsRawHandle, OwnedHandle};

use windows_sys::Win32::Foundation::ERROR_NO_MORE_FILES;
use windows_sys::Win32::Storage::FileSystem::{
    FILE_ATTRIBUTE_REPARSE_POINT, FILE_ID_BOTH_DIR_INFO, FileIdBothDirectoryInfo,
    FileIdBothDirectoryRestartInfo, GetFileInformationByHandleEx,
};

use super::native::kind_of;
use crate::sys::portable::listing::{Entries, Item};
use crate::sys::tree::Handle;

/// Words of eight bytes that are read at once.
const ROOM: usize = 2048;

/// An open directory, and what was read of it last.
#[derive(Debug)]
pub struct Directory {
    handle: OwnedHandle,
    read: Vec<u64>,
    /// Where the next entry lies in it, in bytes; `None` if there is none.
    at: Option<usize>,
    begun: bool,
}

impl Entries for Directory {
    fn open(directory: &Handle) -> Result<Self> {
        let handle = directory.to_list()?;
        Ok(Self { handle, read: vec![0; ROOM], at: None, begun: false })
    }

    fn next(&mut self) -> Result<Option<Item>> {
        loop {
            let Some(at) = self.at else {
                if !self.fill()? {
                    return Ok(None);
                }
                continue;
            };
            let (item, next) = self.entry(at);
            self.at = next;
            // What is no text cannot be named by a guest.
            if item.is_some() {
                return Ok(item);
            }
        }
    }

    fn rewind(&mut self) -> Result<()> {
        (self.at, self.begun) = (None, false);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        // Windows makes the entries of folders last by itself.
        Ok(())
    }
}

impl Directory {
    /// Reads on; false behind the last entry.
    fn fill(&mut self) -> Result<bool> {
        let class =
            if self.begun { FileIdBothDirectoryInfo } else { FileIdBothDirectoryRestartInfo };
        let (at, len) = (self.read.as_mut_ptr().cast(), size_of_val(&self.read[..]) as u32);
        // SAFETY: no more is written than there is room for.
        let done =
            unsafe { GetFileInformationByHandleEx(self.handle.as_raw_handle(), class, at, len) };
        self.begun = true;
        if done != 0 {
            self.at = Some(0);
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(ERROR_NO_MORE_FILES as i32) {
            return Ok(false);
        }
        Err(error)
    }

    /// The entry at a place in what was read, and where the next one is.
    fn entry(&self, at: usize) -> (Option<Item>, Option<usize>) {
        // SAFETY: the system has put an entry there, each at a multiple of eight bytes, with its name behind it.
        let (info, name) = unsafe {
            let entry = self.read.as_ptr().byte_add(at).cast::<FILE_ID_BOTH_DIR_INFO>();
            let name = entry.byte_add(offset_of!(FILE_ID_BOTH_DIR_INFO, FileName)).cast::<u16>();
            let len = (*entry).FileNameLength as usize / 2;
            (&*entry, std::slice::from_raw_parts(name, len))
        };
        let next = (info.NextEntryOffset != 0).then(|| at + info.NextEntryOffset as usize);
        let name = String::from_utf16(name).ok().and_then(|name| CString::new(name).ok());
        let tag = match info.FileAttributes & FILE_ATTRIBUTE_REPARSE_POINT {
            0 => 0,
            _ => info.EaSize,
        };
        let kind = kind_of(info.FileAttributes, tag);
        (name.map(|name| Item { name, ino: info.FileId as u64, kind }), next)
    }
}

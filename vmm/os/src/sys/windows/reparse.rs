//! Reparse points: links, and what is a file all the same.

use std::io::{ErrorKind, Result};
use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::ptr;

use windows_sys::Win32::Storage::FileSystem::{
    FILE_ATTRIBUTE_TAG_INFO, FileAttributeTagInfo, GetFileInformationByHandleEx,
};
use windows_sys::Win32::System::IO::DeviceIoControl;
use windows_sys::Win32::System::Ioctl::{FSCTL_GET_REPARSE_POINT, FSCTL_SET_REPARSE_POINT};
use windows_sys::Win32::System::SystemServices::{
    IO_REPARSE_TAG_AF_UNIX, IO_REPARSE_TAG_MOUNT_POINT, IO_REPARSE_TAG_SYMLINK,
};

use crate::sys::tree::mode;

/// WSL's symbolic link (`IO_REPARSE_TAG_LX_SYMLINK`): a version, and the target in UTF-8.
const LX_SYMLINK: u32 = 0xa000_001d;
/// WSL's fifo and devices (`IO_REPARSE_TAG_LX_FIFO` and its kind).
const LX_SPECIAL: [u32; 3] = [0x8000_0024, 0x8000_0025, 0x8000_0026];
const LX_VERSION: [u8; 4] = 2u32.to_le_bytes();
/// The tag stands for another name.
const NAME_SURROGATE: u32 = 0x2000_0000;
/// Bytes of the head: tag, length of what follows, reserved.
const HEAD: usize = 8;
/// The most bytes of a reparse point (`MAXIMUM_REPARSE_DATA_BUFFER_SIZE`).
const MOST: usize = 16 << 10;

/// What a reparse point is by its tag; `None` for what it would be without: placeholders, compressed files and the like.
pub(super) fn kind_of(tag: u32) -> Option<u32> {
    match tag {
        IO_REPARSE_TAG_AF_UNIX => Some(mode::SOCKET),
        tag if LX_SPECIAL.contains(&tag) => Some(mode::FIFO),
        tag if tag & NAME_SURROGATE != 0 => Some(mode::SYMLINK),
        _ => None,
    }
}

/// The tag of a reparse point.
pub(super) fn tag(handle: &OwnedHandle) -> Result<u32> {
    let mut found = FILE_ATTRIBUTE_TAG_INFO::default();
    let (at, len) = ((&raw mut found).cast(), size_of::<FILE_ATTRIBUTE_TAG_INFO>() as u32);
    // SAFETY: fills the structure, of the length that is told.
    let done = unsafe {
        GetFileInformationByHandleEx(handle.as_raw_handle(), FileAttributeTagInfo, at, len)
    };
    if done == 0 { Err(std::io::Error::last_os_error()) } else { Ok(found.ReparseTag) }
}

/// Makes an empty file a link of WSL's kind.
pub(super) fn set_link(handle: &OwnedHandle, target: &[u8]) -> Result<()> {
    let len =
        u16::try_from(LX_VERSION.len() + target.len()).map_err(|_| ErrorKind::InvalidInput)?;
    let mut data = LX_SYMLINK.to_le_bytes().to_vec();
    data.extend(len.to_le_bytes());
    data.extend([0; 2]);
    data.extend(LX_VERSION);
    data.extend(target);
    control(handle, FSCTL_SET_REPARSE_POINT, &data, &mut []).map(drop)
}

/// Where a link points, `/` between the components.
pub(super) fn target(handle: &OwnedHandle) -> Result<Vec<u8>> {
    let mut data = vec![0; MOST];
    let len = control(handle, FSCTL_GET_REPARSE_POINT, &[], &mut data)?;
    data.truncate(len);
    target_in(&data).ok_or_else(|| ErrorKind::InvalidData.into())
}

/// The target in a reparse point's data, which the host's disk may have in any form.
fn target_in(data: &[u8]) -> Option<Vec<u8>> {
    let tag = u32::from_le_bytes(data.get(..4)?.try_into().ok()?);
    let body = data.get(HEAD..)?;
    // Where the name lies that is to be shown, in bytes behind the head of its kind.
    let names = match tag {
        LX_SYMLINK => return Some(body.get(LX_VERSION.len()..)?.to_vec()),
        IO_REPARSE_TAG_SYMLINK => 12,
        IO_REPARSE_TAG_MOUNT_POINT => 8,
        _ => return None,
    };
    let number =
        |at: usize| Some(usize::from(u16::from_le_bytes(body.get(at..at + 2)?.try_into().ok()?)));
    let (at, len) = (names + number(4)?, number(6)?);
    let units = body.get(at..at.checked_add(len)?)?.chunks_exact(2);
    let units: Vec<u16> = units.map(|two| u16::from_le_bytes([two[0], two[1]])).collect();
    Some(String::from_utf16_lossy(&units).replace('\\', "/").into_bytes())
}

fn control(handle: &OwnedHandle, code: u32, question: &[u8], answer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    // SAFETY: the question is read, and no more is written than the answer has room for.
    let done = unsafe {
        DeviceIoControl(
            handle.as_raw_handle(),
            code,
            question.as_ptr().cast(),
            question.len() as u32,
            answer.as_mut_ptr().cast(),
            answer.len() as u32,
            &raw mut filled,
            ptr::null_mut(),
        )
    };
    if done == 0 { Err(std::io::Error::last_os_error()) } else { Ok(filled as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_found_in_links_of_all_kinds_and_in_no_garbage() {
        let head = |tag: u32, body: &[u8]| {
            [&tag.to_le_bytes()[..], &(body.len() as u16).to_le_bytes(), &[0; 2], body].concat()
        };
        let wsl = head(LX_SYMLINK, &[&LX_VERSION[..], b"../a b"].concat());
        assert_eq!(target_in(&wsl).unwrap(), b"../a b");
        let name: Vec<u8> = r"..\a".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let len = (name.len() as u16).to_le_bytes();
        let places = [&[0, 0][..], &len, &[0, 0], &len].concat();
        let windows = head(IO_REPARSE_TAG_SYMLINK, &[&places[..], &[1, 0, 0, 0], &name].concat());
        assert_eq!(target_in(&windows).unwrap(), b"../a");
        let junction = head(IO_REPARSE_TAG_MOUNT_POINT, &[&places[..], &name].concat());
        assert_eq!(target_in(&junction).unwrap(), b"../a");
        for whole in [&wsl, &windows, &junction] {
            for len in 0..HEAD {
                assert_eq!(target_in(&whole[..len]), None);
            }
        }
        let beyond = [&[0, 0][..], &len, &[0xff, 0xff], &[0xff, 0xff]].concat();
        assert_eq!(target_in(&head(IO_REPARSE_TAG_MOUNT_POINT, &beyond)), None);
        assert_eq!(target_in(&head(0x9000_601a, &places)), None, "a placeholder is no link");
    }
}

//! Hearing of what other processes do in folders (`fanotify(7)`).
//!
//! It takes Linux 5.19 and a file system that names its inodes by handles; no privilege. What this
//! process does itself is left out: the kernel says whose doing an event is, though to those
//! without privilege only whether it was their own.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};

use super::Event;
use crate::sys::tree::Handle;
use crate::sys::watch::EntryChange;

/// Folders that are watched.
#[derive(Debug)]
pub struct FolderWatch {
    group: OwnedFd,
    own: i32,
}

/// The group names the folder and the entry of each event.
const REPORT_DFID_NAME: u32 = 0xc00;
/// The mark goes when the kernel drops the inode from its cache.
const MARK_EVICTABLE: u32 = 0x200;
const MARK_ADD_FOLDER: u32 = libc::FAN_MARK_ADD | libc::FAN_MARK_ONLYDIR | MARK_EVICTABLE;
const CAME: u64 = libc::FAN_CREATE | libc::FAN_MOVED_TO;
const WENT: u64 = libc::FAN_DELETE | libc::FAN_MOVED_FROM;
const WATCHED: u64 = CAME
    | WENT
    | libc::FAN_MODIFY
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_ATTRIB
    | libc::FAN_ONDIR
    | libc::FAN_EVENT_ON_CHILD;
/// `FAN_EVENT_INFO_TYPE_DFID_NAME`.
const INFO_DFID_NAME: u8 = 2;
/// Bytes of events to take at once.
const BATCH: usize = 128 << 10;
/// Bytes of `struct fanotify_event_metadata`.
const METADATA: usize = 24;
/// `name_to_handle_at(2)`: a handle that need not be opened.
const HANDLE_FID: i32 = 0x200;
/// The longest handle (`MAX_HANDLE_SZ`).
const HANDLE_MAX: usize = 128;

impl FolderWatch {
    /// Watches nothing yet.
    pub fn new() -> io::Result<Self> {
        let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
        // SAFETY: makes a descriptor; no memory is involved.
        let group = unsafe { libc::fanotify_init(flags | REPORT_DFID_NAME, libc::O_RDONLY as u32) };
        if group < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fanotify_init` has just made it, for us alone.
        let group = unsafe { OwnedFd::from_raw_fd(group) };
        Ok(Self { group, own: std::process::id() as i32 })
    }

    /// Watches a folder until its inode is forgotten; returns what [`read`](Self::read) calls it.
    pub fn add(&self, folder: &Handle) -> io::Result<Box<[u8]>> {
        let folder = folder.as_fd();
        let name = name_of(folder)?;
        let path = format!("/proc/self/fd/{}\0", folder.as_raw_fd());
        // SAFETY: the path ends with a NUL and is only read.
        let result = unsafe {
            libc::fanotify_mark(
                self.group.as_raw_fd(),
                MARK_ADD_FOLDER,
                WATCHED,
                libc::AT_FDCWD,
                path.as_ptr().cast(),
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(name) }
    }

    /// Waits until something has happened, or the event is signalled.
    pub fn wait(&self, wake: &Event) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.group, PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes what has happened since, without waiting, though not more than some thousand changes at
    /// once: the folder, the entry's name, the change.
    pub fn read(&self, mut each: impl FnMut(&[u8], &CStr, EntryChange)) -> io::Result<()> {
        let mut buffer = vec![0; BATCH];
        let len = match rustix::io::read(&self.group, &mut buffer) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            other => other?,
        };
        let mut events = buffer.get(..len).unwrap_or_default();
        while let Some((event, rest)) = split_event(events) {
            events = rest;
            if let Some((mask, folder, name)) = self.parse(event) {
                each(folder, name, change(mask));
            }
        }
        Ok(())
    }

    /// An event of others: its mask, the folder, the name.
    fn parse<'a>(&self, event: &'a [u8]) -> Option<(u64, &'a [u8], &'a CStr)> {
        let mask = u64::from_ne_bytes(event.get(8..16)?.try_into().ok()?);
        let process = i32::from_ne_bytes(event.get(20..24)?.try_into().ok()?);
        if process == self.own {
            return None;
        }
        let info = event.get(METADATA..)?;
        if *info.first()? != INFO_DFID_NAME {
            return None;
        }
        // A header of 4 bytes, the file system, the handle's length, its type, it, and the name.
        let handle_len = u32::from_ne_bytes(info.get(12..16)?.try_into().ok()?) as usize;
        let end = 20usize.checked_add(handle_len)?;
        let folder = info.get(4..end)?;
        let name = CStr::from_bytes_until_nul(info.get(end..)?).ok()?;
        Some((mask, folder, name))
    }
}

fn split_event(events: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = u32::from_ne_bytes(events.get(..4)?.try_into().ok()?) as usize;
    if len < METADATA { None } else { events.split_at_checked(len) }
}

fn change(mask: u64) -> EntryChange {
    EntryChange {
        came: mask & CAME != 0,
        went: mask & WENT != 0,
        content: mask & libc::FAN_MODIFY != 0,
        closed: mask & libc::FAN_CLOSE_WRITE != 0,
        attributes: mask & libc::FAN_ATTRIB != 0,
        folder: mask & libc::FAN_ONDIR != 0,
    }
}

/// What the kernel calls a folder in events: file system, length, type and bytes of its handle.
fn name_of(folder: BorrowedFd<'_>) -> io::Result<Box<[u8]>> {
    let id = rustix::fs::fstatfs(folder)?.f_fsid;
    // SAFETY: a file system's identifier is eight plain bytes, whatever its fields are called.
    let id: [u8; 8] = unsafe { std::mem::transmute(id) };
    let mut handle = FileHandle { len: HANDLE_MAX as u32, kind: 0, bytes: [0; HANDLE_MAX] };
    let mut mount = 0;
    let mut ask = |flags: i32| {
        // SAFETY: `handle` has the layout of `struct file_handle` with room for `len` bytes; the
        // kernel writes no more than that, and one number into `mount`.
        unsafe {
            libc::name_to_handle_at(
                folder.as_raw_fd(),
                c"".as_ptr(),
                (&raw mut handle).cast(),
                &raw mut mount,
                libc::AT_EMPTY_PATH | flags,
            )
        }
    };
    // Kernels before 6.5 know only handles that can be opened.
    if ask(HANDLE_FID) < 0 && ask(0) < 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = handle.bytes.get(..handle.len as usize).unwrap_or_default();
    Ok([&id[..], &handle.len.to_ne_bytes(), &handle.kind.to_ne_bytes(), bytes].concat().into())
}

/// `struct file_handle` with room for the longest.
#[repr(C)]
struct FileHandle {
    len: u32,
    kind: i32,
    bytes: [u8; HANDLE_MAX],
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::process::Command;
    use std::time::{Duration, Instant};

    #[test]
    fn what_others_do_is_heard_and_what_this_process_does_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Handle::of_directory(dir.path()).unwrap();
        let watch = match FolderWatch::new() {
            Ok(watch) => watch,
            Err(error) => return eprintln!("skipped: no fanotify here: {error}"),
        };
        let id = match watch.add(&folder) {
            Ok(id) => id,
            Err(error) => return eprintln!("skipped: not on this file system: {error}"),
        };
        std::fs::write(dir.path().join("own"), "mine").unwrap();
        let script =
            "cd \"$1\"; echo x > made; mkdir folder; mv made moved; chmod 600 moved; rm own";
        let status = Command::new("sh").args(["-ec", script, "sh"]).arg(dir.path()).status();
        assert!(status.unwrap().success());
        let mut seen = BTreeMap::<String, EntryChange>::new();
        let end = Instant::now() + Duration::from_secs(5);
        while seen.len() < 4 && Instant::now() < end {
            watch
                .read(|folder, name, change| {
                    assert_eq!(folder, &*id);
                    let seen = seen.entry(name.to_str().unwrap().to_owned()).or_default();
                    seen.came |= change.came;
                    seen.went |= change.went;
                    seen.content |= change.content;
                    seen.closed |= change.closed;
                    seen.attributes |= change.attributes;
                    seen.folder |= change.folder;
                })
                .unwrap();
        }
        let none = EntryChange::default();
        assert!(seen["made"].came && seen["made"].went && seen["made"].closed);
        assert_eq!(seen["folder"], EntryChange { came: true, folder: true, ..none });
        assert!(seen["moved"].came && seen["moved"].attributes && !seen["moved"].went);
        assert_eq!(seen["own"], EntryChange { went: true, ..none }, "not that it was made");
    }
}

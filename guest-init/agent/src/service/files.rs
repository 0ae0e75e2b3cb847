//! Files pushed and pulled without a shell, with the rights and the view of the session that they are in.
//!
//! The session may change its files meanwhile; it can be misled by that, and nobody else, since nothing is
//! done here that it could not do itself.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use cabana_protocol::{Cause, Entry, Failed, Kind, ProtocolError, Reply};

use super::refuse;
use crate::exec::{ExecError, Link};
use crate::session::Session;

/// The bits of a mode that are carried over.
const PERMISSIONS: u32 = 0o777;

/// Why a transfer ended early: the connection, or the files, which the host is told.
enum Stop {
    Connection(ExecError),
    Files(io::Error),
}

impl From<ExecError> for Stop {
    fn from(error: ExecError) -> Self {
        Self::Connection(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Files(error)
    }
}

/// Sends a file or a folder to the host.
pub(super) fn pull(
    link: Link,
    session: Option<&Session>,
    path: &[u8],
    about: &str,
) -> Result<(), ExecError> {
    transfer(link, session, about, |link| {
        send(link, Path::new(std::ffi::OsStr::from_bytes(path)))?;
        link.send(&Entry::End)?;
        Ok(())
    })
}

/// Writes what the host sends.
pub(super) fn push(
    link: Link,
    session: Option<&Session>,
    path: &[u8],
    about: &str,
) -> Result<(), ExecError> {
    transfer(link, session, about, |link| {
        let received = receive(link, Path::new(std::ffi::OsStr::from_bytes(path)));
        if let Err(Stop::Files(_)) = &received {
            // The host hears of it when it has sent everything, if not before.
            while !link.receive(is_end)? {}
        }
        received
    })
}

fn transfer(
    mut link: Link,
    session: Option<&Session>,
    about: &str,
    work: impl FnOnce(&mut Link) -> Result<(), Stop> + Send,
) -> Result<(), ExecError> {
    let result = match session {
        None => work(&mut link),
        Some(session) => match session.as_user(|| work(&mut link)) {
            Ok(result) => result,
            Err(error) => return refuse(&mut link, error.answer(about)),
        },
    };
    match result {
        Ok(()) => link.finish(&Reply::Done),
        Err(Stop::Connection(error)) => Err(error),
        Err(Stop::Files(error)) => {
            let cause = match error.kind() {
                io::ErrorKind::NotFound => Cause::NotFound,
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Cause::Denied
                }
                io::ErrorKind::InvalidInput => Cause::Invalid,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Cause::Exhausted,
                _ => Cause::Other,
            };
            refuse(&mut link, Failed { cause, message: format!("{about}: {error}") })
        }
    }
}

/// Sends a file, or a folder with all that is in it. Only what was asked for itself may be reached by a
/// link.
fn send(link: &mut Link, base: &Path) -> Result<(), Stop> {
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let is_base = path.as_os_str().is_empty();
        let full = if is_base { base.to_owned() } else { base.join(&path) };
        let metadata = if is_base { fs::metadata(&full)? } else { fs::symlink_metadata(&full)? };
        let name = path.clone().into_os_string().into_vec();
        if metadata.is_dir() {
            link.send(&Entry::Folder { path: name, mode: metadata.mode() & PERMISSIONS })?;
            for entry in fs::read_dir(&full)? {
                waiting.push(path.join(entry?.file_name()));
            }
        } else if metadata.is_symlink() {
            let target = fs::read_link(&full)?.into_os_string().into_vec();
            link.send(&Entry::Link { path: name, target })?;
        } else if metadata.is_file() {
            let follow = if is_base { 0 } else { libc::O_NOFOLLOW };
            // A fifo that has just taken its place must not hold us.
            let flags = libc::O_NONBLOCK | follow;
            let file = OpenOptions::new().read(true).custom_flags(flags).open(&full)?;
            let metadata = file.metadata()?;
            if metadata.is_file() {
                let modified_ns =
                    metadata.mtime().saturating_mul(1_000_000_000) + metadata.mtime_nsec();
                let mode = metadata.mode() & PERMISSIONS;
                link.send(&Entry::File { path: name, mode, modified_ns })?;
                send_bytes(link, &file)?;
            }
        } else if is_base {
            let what = "it is neither a file nor a folder";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what).into());
        }
        link.drain()?;
    }
    Ok(())
}

fn send_bytes(link: &mut Link, file: &File) -> Result<(), Stop> {
    loop {
        link.drain()?;
        let read = link.send_data(Kind::Data, |room| rustix::io::read(file, room))?;
        match read {
            Ok(0) => return Ok(link.send_end()?),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
    }
}

/// What a frame asks for.
enum Asked {
    Entry(Entry),
    /// Bytes were written.
    Written,
    /// A file has come to its end.
    FileEnd,
}

fn receive(link: &mut Link, base: &Path) -> Result<(), Stop> {
    let mut file: Option<(File, SystemTime)> = None;
    // A folder that its owner may not write in gets its permissions when it is full.
    let mut folders: Vec<(PathBuf, u32)> = Vec::new();
    loop {
        let asked = link.receive(|frame| match (frame.kind, &mut file) {
            (Kind::Entry, None) => frame.message().map(|entry| Ok(Asked::Entry(entry))),
            (Kind::Data, Some(_)) if frame.payload.is_empty() => Ok(Ok(Asked::FileEnd)),
            (Kind::Data, Some((file, _))) => {
                Ok(file.write_all(frame.payload).map(|()| Asked::Written))
            }
            (other, _) => Err(ProtocolError::UnexpectedKind(other)),
        })?;
        match asked? {
            Asked::Written => {}
            Asked::FileEnd => {
                if let Some((file, modified)) = file.take() {
                    file.set_modified(modified)?;
                }
            }
            Asked::Entry(Entry::File { path, mode, modified_ns }) => {
                let path = target(base, &path)?;
                make_parents(&path)?;
                let opened = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(mode & PERMISSIONS)
                    .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                    .open(&path)?;
                if !opened.metadata()?.is_file() {
                    let what = "something that is no file has this name";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, what).into());
                }
                opened.set_permissions(fs::Permissions::from_mode(mode & PERMISSIONS))?;
                file = Some((opened, time(modified_ns)));
            }
            Asked::Entry(Entry::Folder { path, mode }) => {
                let path = target(base, &path)?;
                make_parents(&path)?;
                match DirBuilder::new().mode(0o700).create(&path) {
                    Ok(()) => folders.push((path, mode & PERMISSIONS)),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Asked::Entry(Entry::Link { path, target: says }) => {
                let path = target(base, &path)?;
                make_parents(&path)?;
                symlink(std::ffi::OsStr::from_bytes(&says), path)?;
            }
            Asked::Entry(Entry::End) => break,
        }
    }
    for (path, mode) in folders.into_iter().rev() {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Whether a frame is the end of what the host sends.
fn is_end(frame: cabana_protocol::Frame<'_>) -> Result<bool, ProtocolError> {
    match frame.kind {
        Kind::Entry => Ok(frame.message::<Entry>()? == Entry::End),
        Kind::Data => Ok(false),
        other => Err(ProtocolError::UnexpectedKind(other)),
    }
}

/// Where an entry goes.
fn target(base: &Path, path: &[u8]) -> io::Result<PathBuf> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    if path.as_os_str().is_empty() {
        return Ok(base.to_owned());
    }
    if !path.components().all(|component| matches!(component, Component::Normal(_))) {
        let what = "an entry's path has to be relative, without `.` and `..`";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    Ok(base.join(path))
}

fn make_parents(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
            fs::create_dir_all(parent)
        }
        _ => Ok(()),
    }
}

fn time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let time = if ns < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) };
    time.unwrap_or(epoch)
}

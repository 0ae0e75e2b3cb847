//! Files between host and guest.
//!
//! What is read and what is written on the host may lie in a folder that a guest changes meanwhile, so
//! folders are entered by handles and no link in them is followed. What comes from a guest is its word:
//! paths, kinds and permissions are checked.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use cabana_api::Copied;
use cabana_os::tree::{self, Handle, InodeKind};
use cabana_protocol::{Entry, ProtocolError};
use cabana_sandbox::{Pull, Pulled, Push};

use crate::Error;

/// The bits of a mode that are carried over: no set-ID bits.
const PERMISSIONS: u32 = 0o777;

/// What is copied into a guest.
#[derive(Debug)]
pub(crate) enum Source {
    File(PathBuf, File),
    Folder(PathBuf, Handle),
}

impl Source {
    /// Opens it, links to it followed, and says where in the guest it is to go.
    pub(crate) fn open(host: &Path, guest: &str) -> Result<(Self, String), Error> {
        let failed = open_failed("the source", host);
        let metadata = host.metadata().map_err(failed)?;
        let failed = open_failed("the source", host);
        let source = if metadata.is_dir() {
            Self::Folder(host.to_owned(), Handle::of_directory(host).map_err(failed)?)
        } else if metadata.is_file() {
            Self::File(host.to_owned(), File::open(host).map_err(failed)?)
        } else {
            return Err(Error::Invalid(format!("{} is neither file nor folder", host.display())));
        };
        if !guest.ends_with('/') {
            return Ok((source, guest.to_owned()));
        }
        // `.` and `..` have names, too.
        let named = host.canonicalize().ok().and_then(|host| Some(host.file_name()?.to_owned()));
        let name = named.as_deref().and_then(|name| name.to_str()).ok_or_else(|| {
            let host = host.display();
            Error::Invalid(format!("{host} has no plain name; say what it is to be called"))
        })?;
        Ok((source, format!("{guest}{name}")))
    }
}

/// Sends a source to its end.
pub(crate) fn send(source: &Source, mut push: Push) -> Result<Copied, Error> {
    let mut copied = Copied::default();
    match source {
        Source::File(path, file) => send_file(&mut push, Path::new(""), path, file, &mut copied)?,
        Source::Folder(path, folder) => send_folder(&mut push, path, folder, &mut copied)?,
    }
    push.finish()?;
    Ok(copied)
}

fn send_folder(
    push: &mut Push,
    root: &Path,
    handle: &Handle,
    copied: &mut Copied,
) -> Result<(), Error> {
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let full = root.join(&path);
        let read = || -> io::Result<(Handle, u32, Vec<CString>)> {
            let folder = handle.beneath(&path)?;
            let (mode, names) = (folder.stat()?.mode, tree::names(&folder)?);
            Ok((folder, mode, names))
        };
        let (folder, mode, names) = read().map_err(open_failed("the folder", &full))?;
        let entry = Entry::Folder { path: bytes(&path), mode: mode & PERMISSIONS };
        push.entry(&entry, &mut io::empty())?;
        copied.entries += 1;
        for name in names {
            let entry = tree::Entry { directory: &folder, name: &name };
            let path = path.join(tree::path_from_bytes(name.as_bytes()));
            let full = root.join(&path);
            let stat = entry.stat().map_err(open_failed("the entry", &full))?;
            match stat.map(|stat| stat.kind) {
                Some(InodeKind::Directory) => waiting.push(path),
                Some(InodeKind::Regular) => {
                    let file = entry.open().map_err(open_failed("the file", &full))?;
                    send_file(push, &path, &full, &file, copied)?;
                }
                Some(InodeKind::Symlink) => {
                    let says = entry.handle().and_then(|link| link.read_link());
                    let target = says.map_err(open_failed("the link", &full))?;
                    let entry = Entry::Link { path: bytes(&path), target };
                    push.entry(&entry, &mut io::empty())?;
                    copied.entries += 1;
                }
                // Sockets and fifos are nothing without their processes; what is gone is gone.
                Some(InodeKind::Special) | None => {}
            }
        }
    }
    Ok(())
}

/// A reader that counts, and remembers why it failed.
struct Noting<'a> {
    file: &'a File,
    bytes: u64,
    failed: Option<io::Error>,
}

impl Read for Noting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buffer) {
            Ok(count) => {
                self.bytes += count as u64;
                Ok(count)
            }
            Err(error) => {
                self.failed = Some(error);
                Err(io::ErrorKind::Other.into())
            }
        }
    }
}

fn send_file(
    push: &mut Push,
    path: &Path,
    full: &Path,
    file: &File,
    copied: &mut Copied,
) -> Result<(), Error> {
    let stat = tree::stat(file).map_err(open_failed("the file", full))?;
    let modified_ns = stat.modified.nanoseconds() as i64;
    let mode = stat.mode & PERMISSIONS;
    let mut reader = Noting { file, bytes: 0, failed: None };
    let sent = push.entry(&Entry::File { path: bytes(path), mode, modified_ns }, &mut reader);
    if let Some(source) = reader.failed {
        return Err(Error::Open { what: "the file", path: full.to_owned(), source });
    }
    sent?;
    copied.entries += 1;
    copied.bytes += reader.bytes;
    Ok(())
}

/// Where something of a guest's is written on the host.
#[derive(Debug)]
pub(crate) struct Target {
    /// The folder that it stands in.
    parent: Handle,
    /// Its name there.
    name: PathBuf,
    /// All of its path, for people.
    full: PathBuf,
}

impl Target {
    pub(crate) fn open(guest: &str, host: &Path) -> Result<Self, Error> {
        let slash = tree::path_bytes(host).ends_with(b"/");
        let full = if slash || host.is_dir() {
            let name = Path::new(guest).file_name().ok_or_else(|| {
                Error::Invalid(format!("{guest:?} has no plain name; say what it is to be called"))
            })?;
            host.join(name)
        } else {
            host.to_owned()
        };
        let nameless = || Error::Invalid(format!("{} is no name for a copy", host.display()));
        let name = full.file_name().ok_or_else(nameless)?.into();
        let folder = match full.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let parent = Handle::of_directory(folder).map_err(open_failed("the folder", folder))?;
        Ok(Self { parent, name, full })
    }

    /// Does something at a path of the guest's, where that is on the host.
    fn at<T>(
        &self,
        path: &[u8],
        work: impl FnOnce(&tree::Entry<'_>) -> io::Result<T>,
    ) -> Result<T, Error> {
        let path = tree::path_from_bytes(path);
        let inner = |part| matches!(part, Component::Normal(_));
        // A leading or trailing slash is none of ours either.
        let plain: PathBuf = path.components().collect();
        if !path.components().all(inner) || plain.as_os_str() != path.as_os_str() {
            let broken = ProtocolError::OutOfTurn("a path that leaves what was asked for");
            return Err(cabana_sandbox::Error::Protocol(broken).into());
        }
        // The empty path would add a slash.
        let below =
            if path.as_os_str().is_empty() { self.name.clone() } else { self.name.join(&path) };
        let done = || -> io::Result<T> {
            let folder = below.parent().unwrap_or(Path::new(""));
            let folder = self.parent.beneath(folder)?;
            let name = tree::c_name(&below)?;
            work(&tree::Entry { directory: &folder, name: &name })
        };
        let full = self.full.parent().unwrap_or(Path::new("")).join(&below);
        done().map_err(|source| Error::Write { path: full, source })
    }
}

/// Writes what comes to its end.
pub(crate) fn receive(target: &Target, mut pull: Pull) -> Result<Copied, Error> {
    let mut copied = Copied::default();
    let mut file: Option<(File, i64, Vec<u8>)> = None;
    // A folder that its owner may not write in gets its permissions when it is full.
    let mut folders: Vec<(Vec<u8>, u32)> = Vec::new();
    while let Some(piece) = pull.next_piece()? {
        let entry = match (piece, &mut file) {
            (Pulled::Bytes(b""), Some((done, modified, path))) => {
                let modified = time(*modified);
                target.at(path, |_| done.set_modified(modified))?;
                file = None;
                continue;
            }
            (Pulled::Bytes(bytes), Some((file, _, path))) => {
                copied.bytes += bytes.len() as u64;
                target.at_open(path, file.write_all(bytes))?;
                continue;
            }
            (Pulled::Entry(entry), None) => entry,
            (Pulled::Bytes(_) | Pulled::Entry(_), _) => {
                let broken = ProtocolError::OutOfTurn("bytes of no file");
                return Err(cabana_sandbox::Error::Protocol(broken).into());
            }
        };
        copied.entries += 1;
        match entry {
            Entry::File { path, mode, modified_ns } => {
                let made = target.at(&path, |entry| {
                    make_room(entry)?;
                    let made = entry.create()?;
                    tree::set_permissions(&made, mode & PERMISSIONS)?;
                    Ok(made)
                })?;
                file = Some((made, modified_ns, path));
            }
            Entry::Folder { path, mode } => {
                let new = target.at(&path, |entry| match entry.make_folder(0o700) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        match entry.stat()?.map(|stat| stat.kind) {
                            Some(InodeKind::Directory) => Ok(false),
                            _ => Err(error),
                        }
                    }
                    made => made.map(|()| true),
                })?;
                if new {
                    folders.push((path, mode & PERMISSIONS));
                }
            }
            Entry::Link { path, target: says } => target.at(&path, |entry| {
                make_room(entry)?;
                entry.make_link(&CString::new(says.clone())?)
            })?,
            Entry::End => {}
        }
    }
    for (path, mode) in folders.into_iter().rev() {
        target.at(&path, |entry| entry.set_mode(mode))?;
    }
    Ok(copied)
}

impl Target {
    /// An error of what is open at a path of the guest's, with its name on the host.
    fn at_open<T>(&self, path: &[u8], done: io::Result<T>) -> Result<T, Error> {
        done.map_err(|source| {
            let path = self.full.join(tree::path_from_bytes(path));
            Error::Write { path, source }
        })
    }
}

/// Removes a file or a link that has the name.
fn make_room(entry: &tree::Entry<'_>) -> io::Result<()> {
    match entry.stat()?.map(|stat| stat.kind) {
        Some(InodeKind::Directory) => Err(io::ErrorKind::IsADirectory.into()),
        // A copy is no reason to lose a device.
        Some(InodeKind::Special) => Err(io::ErrorKind::AlreadyExists.into()),
        Some(InodeKind::Regular | InodeKind::Symlink) => entry.remove(),
        None => Ok(()),
    }
}

/// The time as files have it: nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as i64
}

fn time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let time = if ns < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) };
    time.unwrap_or(epoch)
}

fn bytes(path: &Path) -> Vec<u8> {
    tree::path_bytes(path).into_owned()
}

fn open_failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Open { what, path, source }
}

//! Where the sockets of background machines stand, and who holds one.
//!
//! A machine that is up has three files in `$XDG_RUNTIME_DIR/cabana`: `NAME.lock`, which its holder has
//! locked for as long as it lives, `NAME.sock`, and `NAME.log` with what its holder had to say. A holder
//! that was killed leaves the files and not the lock: they are stale, and whoever finds them so removes
//! them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// The folder of sockets of this user's.
#[derive(Clone, Debug)]
pub struct Place {
    folder: PathBuf,
}

/// A name that this process holds; dropping it removes its socket.
#[derive(Debug)]
pub struct Taken {
    socket: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

/// Why a socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The folder or a file in it.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The folder belongs to somebody else, or others may look into it.
    #[error("{} is not this user's alone; remove it or set XDG_RUNTIME_DIR", path.display())]
    NotOurs {
        /// The folder.
        path: PathBuf,
    },
    /// Another process holds the name.
    #[error("machine {0} is up already")]
    Taken(String),
    /// A name that is none.
    #[error("{0:?} is no name for a machine; use letters, digits, `.`, `_` and `-`")]
    Name(String),
    /// No process holds the name.
    #[error("machine {0} is not up; `cabana up {0}` starts it")]
    NotUp(String),
}

impl Place {
    /// `$XDG_RUNTIME_DIR/cabana`, else `cabana-UID` in the system's folder of temporary files. Made when
    /// missing, for this user alone.
    pub fn open() -> Result<Self, PlaceError> {
        let uid = rustix::process::geteuid().as_raw();
        let folder = match std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty()) {
            Some(folder) => PathBuf::from(folder).join("cabana"),
            None => std::env::temp_dir().join(format!("cabana-{uid}")),
        };
        Self::open_at(folder)
    }

    /// The same in another folder.
    pub fn open_at(folder: PathBuf) -> Result<Self, PlaceError> {
        let made = DirBuilder::new().mode(0o700).create(&folder);
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(&folder)(error));
            }
            _ => {}
        }
        let metadata = fs::symlink_metadata(&folder).map_err(failed(&folder))?;
        let ours = metadata.uid() == rustix::process::geteuid().as_raw();
        if !metadata.is_dir() || !ours || metadata.permissions().mode() & 0o077 != 0 {
            return Err(PlaceError::NotOurs { path: folder });
        }
        Ok(Self { folder })
    }

    /// Takes a name, and listens under it.
    pub fn take(&self, name: &str) -> Result<(Taken, UnixListener), PlaceError> {
        check(name)?;
        let (socket, lock_path) = (self.socket(name), self.file(name, "lock"));
        let lock = self.lock(name)?.ok_or_else(|| PlaceError::Taken(name.to_owned()))?;
        // Whose it was is gone.
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).map_err(failed(&socket))?;
        Ok((Taken { socket, lock_path, _lock: lock }, listener))
    }

    /// Connects to the holder of a name.
    pub fn connect(&self, name: &str) -> Result<UnixStream, PlaceError> {
        check(name)?;
        if let Ok(stream) = UnixStream::connect(self.socket(name)) {
            return Ok(stream);
        }
        self.clean(name);
        Err(PlaceError::NotUp(name.to_owned()))
    }

    /// Waits until the holder of a name has gone, and removes what it left.
    pub fn wait_gone(&self, name: &str) -> Result<(), PlaceError> {
        check(name)?;
        let path = self.file(name, "lock");
        let file = match File::options().write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let _ = fs::remove_file(self.log(name));
                return Ok(());
            }
            Err(error) => return Err(failed(&path)(error)),
        };
        flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(&path)(error.into()))?;
        drop(file);
        self.clean(name);
        let _ = fs::remove_file(self.log(name));
        Ok(())
    }

    /// Names whose holders live; what dead ones left is removed.
    pub fn names(&self) -> Result<Vec<String>, PlaceError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed(&self.folder))? {
            let file = entry.map_err(failed(&self.folder))?.file_name();
            let Some(name) = file.to_str().and_then(|file| file.strip_suffix(".sock")) else {
                continue;
            };
            if self.connect(name).is_ok() {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Where the holder of a name says what it has to say.
    pub fn log(&self, name: &str) -> PathBuf {
        self.file(name, "log")
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.file(name, "sock")
    }

    fn file(&self, name: &str, ending: &str) -> PathBuf {
        self.folder.join(format!("{name}.{ending}"))
    }

    /// Removes what a dead holder left.
    fn clean(&self, name: &str) {
        if let Ok(Some(_lock)) = self.lock(name) {
            for ending in ["sock", "log", "lock"] {
                let _ = fs::remove_file(self.file(name, ending));
            }
        }
    }

    /// The name's lock; `None` if its holder lives.
    fn lock(&self, name: &str) -> Result<Option<File>, PlaceError> {
        let path = self.file(name, "lock");
        loop {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).map_err(failed(&path))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(failed(&path)(error.into())),
            }
            // Somebody may have removed it between the two calls.
            let held = file.metadata().map_err(failed(&path))?;
            if fs::metadata(&path).is_ok_and(|named| named.ino() == held.ino()) {
                return Ok(Some(file));
            }
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        for file in [&self.socket, &self.lock_path] {
            let _ = fs::remove_file(file);
        }
    }
}

/// A name is a single harmless component of a path.
fn check(name: &str) -> Result<(), PlaceError> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && name.bytes().all(inner) { Ok(()) } else { Err(PlaceError::Name(name.to_owned())) }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> PlaceError + '_ {
    move |source| PlaceError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_holder_and_nothing_stays_of_a_dead_one() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::open_at(folder.path().join("run")).unwrap();
        let mode = fs::metadata(folder.path().join("run")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(matches!(place.connect("m"), Err(PlaceError::NotUp(_))));
        for bad in ["", "../m", ".m", "a/b"] {
            assert!(matches!(place.connect(bad), Err(PlaceError::Name(_))), "{bad}");
            assert!(matches!(place.take(bad), Err(PlaceError::Name(_))), "{bad}");
        }
        let (taken, listener) = place.take("m").unwrap();
        assert!(matches!(place.take("m"), Err(PlaceError::Taken(_))));
        assert_eq!(place.names().unwrap(), ["m"]);
        // Killed: the socket stays, nobody listens, the lock is free.
        let Taken { socket, _lock: lock, .. } = &taken;
        assert!(socket.exists());
        flock(lock, FlockOperation::Unlock).unwrap();
        drop(listener);
        std::mem::forget(taken);
        assert_eq!(place.names().unwrap(), [] as [&str; 0]);
        assert_eq!(fs::read_dir(folder.path().join("run")).unwrap().count(), 0);
        // And the name is free.
        let (taken, _listener) = place.take("m").unwrap();
        drop(taken);
        assert_eq!(fs::read_dir(folder.path().join("run")).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_others_may_look_into_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("open");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(Place::open_at(path), Err(PlaceError::NotOurs { .. })));
    }
}

//! Where the sockets of background machines stand, and who holds one.
//!
//! A machine that is up has three files in `$XDG_RUNTIME_DIR/cabana`: `NAME.lock`, which its holder has
//! locked for as long as it lives, `NAME.sock`, and `NAME.log` with what its holder had to say. A holder
//! that was killed leaves the files and not the lock: they are stale, and whoever finds them so removes
//! them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use cabana_os::file::{is_same, lock, private_folder, try_lock};
use cabana_os::{LocalListener, LocalStream, process};

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
    /// `$XDG_RUNTIME_DIR/cabana`, else a folder of this user's among the system's temporary files. Made when
    /// missing, for this user alone.
    pub fn open() -> Result<Self, PlaceError> {
        let folder = match std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty()) {
            Some(folder) => PathBuf::from(folder).join("cabana"),
            None => std::env::temp_dir().join(format!("cabana{}", process::user_suffix())),
        };
        Self::open_at(folder)
    }

    /// The same in another folder.
    pub fn open_at(folder: PathBuf) -> Result<Self, PlaceError> {
        match private_folder(&folder) {
            Ok(true) => Ok(Self { folder }),
            Ok(false) => Err(PlaceError::NotOurs { path: folder }),
            Err(error) => Err(failed(&folder)(error)),
        }
    }

    /// Takes a name, and listens under it.
    pub fn take(&self, name: &str) -> Result<(Taken, LocalListener), PlaceError> {
        check(name)?;
        let (socket, lock_path) = (self.socket(name), self.file(name, "lock"));
        let lock = self.lock(name)?.ok_or_else(|| PlaceError::Taken(name.to_owned()))?;
        // Whose it was is gone.
        let _ = LocalListener::remove(&socket);
        let listener = LocalListener::bind(&socket).map_err(failed(&socket))?;
        Ok((Taken { socket, lock_path, _lock: lock }, listener))
    }

    /// Connects to the holder of a name.
    pub fn connect(&self, name: &str) -> Result<LocalStream, PlaceError> {
        check(name)?;
        if let Ok(stream) = LocalStream::connect(self.socket(name)) {
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
        lock(&file).map_err(failed(&path))?;
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
            let Some(name) = file.to_str().and_then(|file| file.strip_suffix(".lock")) else {
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
            let mut options = File::options();
            options.write(true).create(true).truncate(false);
            let file = options.open(&path).map_err(failed(&path))?;
            if !try_lock(&file).map_err(failed(&path))? {
                return Ok(None);
            }
            // Somebody may have removed it between the two calls.
            if File::open(&path).and_then(|named| is_same(&named, &file)).unwrap_or(false) {
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
        assert!(matches!(place.connect("m"), Err(PlaceError::NotUp(_))));
        for bad in ["", "../m", ".m", "a/b"] {
            assert!(matches!(place.connect(bad), Err(PlaceError::Name(_))), "{bad}");
            assert!(matches!(place.take(bad), Err(PlaceError::Name(_))), "{bad}");
        }
        let (taken, listener) = place.take("m").unwrap();
        assert!(matches!(place.take("m"), Err(PlaceError::Taken(_))));
        assert_eq!(place.names().unwrap(), ["m"]);
        drop((taken, listener));
        assert_eq!(fs::read_dir(folder.path().join("run")).unwrap().count(), 0);
        // Killed: its files stay, nobody listens, the lock is free.
        for file in ["m.lock", "m.log", "m.sock"] {
            fs::write(folder.path().join("run").join(file), "").unwrap();
        }
        assert_eq!(place.names().unwrap(), [] as [&str; 0]);
        assert_eq!(fs::read_dir(folder.path().join("run")).unwrap().count(), 0);
        // And the name is free.
        let (taken, _listener) = place.take("m").unwrap();
        drop(taken);
        assert_eq!(fs::read_dir(folder.path().join("run")).unwrap().count(), 0);
    }
}

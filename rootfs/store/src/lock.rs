//! A lock between processes that vanishes with its owner and leaves no file behind.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use cabana_os::{file, tree};

/// A locked file. Dropping it removes the file and then the lock; a killed owner leaves the file,
/// unlocked, for the next to take.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock at `path`; `None` if another process has it and `wait` is not set.
    pub(crate) fn take(path: &Path, wait: bool) -> io::Result<Option<Self>> {
        loop {
            let file = File::options().write(true).create(true).truncate(false).open(path)?;
            if wait {
                file::lock(&file)?;
            } else if !file::try_lock(&file)? {
                return Ok(None);
            }
            // The owner before may have removed the file between our open and our lock; then
            // what we hold guards nothing.
            match tree::look(path) {
                Ok(there) if there.is_of(&tree::stat(&file)?) => {
                    file::adopt(path);
                    return Ok(Some(Self { path: path.to_path_buf(), _file: file }));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file is only a name for the lock: if it stays, the next owner takes it over.
        let _ = fs::remove_file(&self.path);
    }
}

//! A file that appears whole, in place of an older one or of none.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::sys::file::{let_have_holes, sync_folder};

/// A file in the making. Until [`Replacement::commit`] the path leads to what it led to before, also when
/// this process is killed.
#[derive(Debug)]
pub struct Replacement {
    file: File,
    path: PathBuf,
    /// Its name until then.
    temporary: PathBuf,
}

impl Replacement {
    /// An empty file that is to stand at `path`.
    pub fn new(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
        let name = format!(".{name}.{}-unfinished", std::process::id());
        let temporary = path.with_file_name(name);
        let _ = std::fs::remove_file(&temporary);
        let file = File::options().read(true).write(true).create_new(true).open(&temporary)?;
        let_have_holes(&file)?;
        Ok(Self { file, path: path.to_owned(), temporary })
    }

    /// The file, to be filled.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes the file last and puts it at its path.
    pub fn commit(self) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, &self.path)?;
        sync_folder(&self.path)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // After a commit there is nothing of this name.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

//! A file that appears whole, in place of an older one or of none.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::sys::unix::files::{folder, sync_folder};

/// A file in the making. Until [`Replacement::commit`] the path leads to what it led to before, also when
/// this process is killed.
#[derive(Debug)]
pub struct Replacement {
    file: File,
    path: PathBuf,
    /// Its name until then, on file systems that have no files without a name.
    temporary: Option<PathBuf>,
}

impl Replacement {
    /// An empty file that is to stand at `path`.
    pub fn new(path: &Path) -> io::Result<Self> {
        let path = path.to_owned();
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(folder(&path), flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => Ok(Self { file: fd.into(), path, temporary: None }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let temporary = beside(&path)?;
                let _ = std::fs::remove_file(&temporary);
                let file =
                    File::options().read(true).write(true).create_new(true).open(&temporary)?;
                Ok(Self { file, path, temporary: Some(temporary) })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The file, to be filled.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes the file last and puts it at its path.
    pub fn commit(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        let temporary = beside(&self.path)?;
        if self.temporary.is_none() {
            let _ = std::fs::remove_file(&temporary);
            let handle = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            rustix::fs::linkat(CWD, handle, CWD, &temporary, AtFlags::SYMLINK_FOLLOW)?;
            self.temporary = Some(temporary.clone());
        }
        std::fs::rename(&temporary, &self.path)?;
        self.temporary = None;
        sync_folder(&self.path)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// A name in the same folder that begins with a dot and is this process's own.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let name = name.to_string_lossy();
    Ok(folder(path).join(format!(".{name}.{}-unfinished", std::process::id())))
}

//! The writable disk of a machine, opened for its worker.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use cabana_os::file;

use crate::Error;

/// A copy of `template` without a name, in `folder`: it vanishes with the machine.
pub(crate) fn vanishing(template: &Path, folder: &Path) -> Result<File, Error> {
    let made = File::open(template).and_then(|from| {
        let disk = file::unnamed(folder)?;
        file::copy_sparse(&from, &disk)?;
        Ok(disk)
    });
    let path = folder.to_owned();
    made.map_err(|source| Error::Open { what: "a disk in", path, source })
}

/// A file without a name in `folder` for the memory of a machine that is suspended; `None` where it would be in
/// memory again.
pub(crate) fn for_memory(bytes: u64, folder: &Path) -> io::Result<Option<File>> {
    let file = file::unnamed(folder)?;
    if file::is_in_memory(&file)? {
        return Ok(None);
    }
    file.set_len(bytes)?;
    Ok(Some(file))
}

/// The disk at `path`, made from `template` when missing.
pub(crate) fn kept(path: &Path, template: &Path) -> Result<File, Error> {
    if !path.exists() {
        File::open(template)
            .and_then(|from| file::create_whole(path, |disk| file::copy_sparse(&from, disk)))
            .map_err(|source| cabana_sandbox::Error::MakeDisk { path: path.to_owned(), source })?;
    }
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|source| Error::Open { what: "the disk", path: path.to_owned(), source })
}

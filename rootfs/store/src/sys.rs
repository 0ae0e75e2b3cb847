//! What the store asks of files beyond the standard library.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use cabana_os::{file, tree};

use crate::manifest::Run;

/// What changes when a file's content changes: size, and modification and status-change times in ns.
///
/// Device and inode are left out on purpose: they differ between mounts of the same disk (9p,
/// overlays, a reboot), and a file that took another's place has another status-change time anyway.
pub(crate) fn times(stat: &tree::Stat) -> (u64, i128, i128) {
    (stat.size, stat.modified.nanoseconds(), stat.changed.nanoseconds())
}

/// Makes a folder and those above it.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), make_folder)?;
    match fs::create_dir(path) {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => {
            // Images are built by root, often in the store of the user who called sudo, who could neither remove
            // what was built nor build anything else.
            file::adopt(path);
            Ok(())
        }
    }
}

/// Where a file has data, in order. A file system that knows no holes reports one run of all.
pub(crate) fn data_runs(file: &File) -> io::Result<Vec<Run>> {
    let mut runs = Vec::new();
    file::for_each_data(file, 0..file.metadata()?.len(), |part| {
        runs.push(Run(part.start, part.end - part.start));
        Ok(())
    })?;
    Ok(runs)
}

//! Everything that is measured, on a file system in memory.
//!
//! In the lab files come from the host, and opening one, or only following a symbolic link, waits for
//! the host even when the content is cached. On the instruction clock such a wait is idle time, which
//! jumps from timer to timer. So this process moves into a root of its own, in memory, with copies of
//! all that is needed under their own paths.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cabana_store::Store;
use rustix::mount::mount_bind_recursive;
use rustix::process::{chdir, chroot};

use crate::Error;
use crate::process;

/// What programs read when they start, besides libraries: the linker's cache, microvm's firmware.
const ALSO: [&str; 2] = ["/etc/ld.so.cache", "/usr/share/qemu/qboot.rom"];

/// What the new root has in common with the old one.
const SHARED: [&str; 4] = ["/dev", "/proc", "/sys", "/tmp"];

/// Makes the dynamic linker list a program's libraries in place of running it (ld.so(8)).
const LIST_LIBRARIES: &str = "LD_TRACE_LOADED_OBJECTS";

/// The kinds of artifacts that `cabana run` opens.
const ARTIFACTS: [&str; 3] = ["kernel", "agent", "image"];

/// Copies programs, their libraries and the user's store into `root`, a folder on a tmpfs, and makes
/// that this process's root for good. Needs to be root, and leaves mounts behind: for the lab.
pub fn enter(root: &Path, programs: &[&Path]) -> Result<(), Error> {
    for file in ALSO.iter().map(Path::new).filter(|file| file.exists()) {
        place(root, file)?;
    }
    for program in programs {
        place(root, program)?;
        for file in libraries(program)? {
            place(root, &file)?;
        }
    }
    copy_store(root)?;
    for folder in SHARED {
        let target = inside(root, Path::new(folder));
        fs::create_dir_all(&target).map_err(Error::file(&target))?;
        mount_bind_recursive(folder, &target)
            .map_err(|error| Error::file(&target)(error.into()))?;
    }
    let moved = chroot(root).and_then(|()| chdir("/"));
    moved.map_err(|error| Error::file(root)(error.into()))
}

/// Copies a program and its libraries into a folder.
pub fn copy_with_libraries(program: &Path, folder: &Path) -> Result<(), Error> {
    for file in libraries(program)?.iter().map(PathBuf::as_path).chain([program]) {
        let to = folder.join(file.file_name().unwrap_or_default());
        fs::copy(file, to).map_err(Error::file(file))?;
    }
    Ok(())
}

fn libraries(program: &Path) -> Result<Vec<PathBuf>, Error> {
    let listed = process::run(Command::new(program).env(LIST_LIBRARIES, "1"), 0)?;
    Ok(listed.stdout.lines().filter_map(library).collect())
}

fn copy_store(root: &Path) -> Result<(), Error> {
    let store = Store::open().map_err(|error| {
        let path = env::var_os("CABANA_HOME").map(PathBuf::from).unwrap_or_default();
        Error::Content { path, why: error.to_string() }
    })?;
    for kind in ARTIFACTS {
        let from = store.path().join(kind).join("default");
        let to = inside(root, &store.path().join(kind));
        fs::create_dir_all(&to).map_err(Error::file(&to))?;
        // Its scratch disk is sparse.
        process::run(Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to), 0)?;
    }
    Ok(())
}

/// Copies a file to where it is under another root; what a link points to, in place of the link.
fn place(root: &Path, file: &Path) -> Result<(), Error> {
    let target = inside(root, file);
    let folder = target.parent().unwrap_or(root);
    fs::create_dir_all(folder).map_err(Error::file(folder))?;
    fs::copy(file, &target).map(drop).map_err(Error::file(file))
}

/// An absolute path under another root.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The file of a line such as `libc.so.6 => /lib/libc.so.6 (0x7f00)` or `/lib64/ld.so (0x7f00)`.
fn library(line: &str) -> Option<PathBuf> {
    let (names, _) = line.rsplit_once(" (")?;
    let path = names.split_once(" => ").map_or(names, |(_, path)| path).trim();
    path.starts_with('/').then(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_that_are_files() {
        assert_eq!(library("\tlinux-vdso.so.1 (0x7ffc)"), None);
        assert_eq!(library("\tlibc.so.6 => /lib/libc.so.6 (0x7f)"), Some("/lib/libc.so.6".into()));
        assert_eq!(library("\t/lib64/ld.so (0x7f)"), Some("/lib64/ld.so".into()));
        assert_eq!(library("\tlibgone.so => not found"), None);
    }

    #[test]
    fn this_programs_libraries_are_placed_under_their_own_paths() {
        let own = env::current_exe().unwrap();
        let listed = process::run(Command::new(own).env(LIST_LIBRARIES, "1"), 0).unwrap().stdout;
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<_> = listed.lines().filter_map(library).collect();
        assert!(files.iter().any(|file| file.to_string_lossy().contains("libc.so")), "{listed}");
        for file in files {
            place(folder.path(), &file).unwrap();
            let placed = folder.path().join(file.strip_prefix("/").unwrap());
            assert!(placed.symlink_metadata().unwrap().is_file(), "{}", placed.display());
        }
    }
}

//! Everything that is measured, on a file system in memory.
//!
//! In the lab files come from the host, and opening one waits for the host even when its content is
//! cached. On the instruction clock such a wait is idle time, which jumps to the next timer. So
//! programs, their libraries and the store are copied into memory first; copies of what has its place
//! are mounted over it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cabana_store::Store;

use crate::Error;
use crate::process;

/// What else the programs read when they start: the linker's cache, and microvm's firmware.
const ALSO: [&str; 2] = ["/etc/ld.so.cache", "/usr/share/qemu/bios-microvm.bin"];

/// Makes the dynamic linker list a program's libraries in place of running it (ld.so(8)).
const LIST_LIBRARIES: (&str, &str) = ("LD_TRACE_LOADED_OBJECTS", "1");

/// The kinds of artifacts that `cabana run` opens.
const ARTIFACTS: [&str; 3] = ["kernel", "agent", "image"];

/// Puts the programs with their libraries in memory, under `folder`, in the places where they are.
/// Needs the right to mount; the mounts last as long as the lab.
pub fn programs(programs: &[&Path], folder: &Path) -> Result<(), Error> {
    let mut files: Vec<PathBuf> = ALSO.iter().map(PathBuf::from).collect();
    for program in programs {
        files.push(program.to_path_buf());
        let (name, value) = LIST_LIBRARIES;
        let listed = process::run(Command::new(program).env(name, value), 0)?;
        files.extend(listed.stdout.lines().filter_map(library));
    }
    files.retain(|file| file.exists());
    for file in &mut files {
        *file = file.canonicalize().map_err(Error::file(&*file))?;
    }
    files.sort();
    files.dedup();
    for (index, file) in files.iter().enumerate() {
        let copy = folder.join(index.to_string());
        fs::copy(file, &copy).map_err(Error::file(file))?;
        rustix::mount::mount_bind(&copy, file).map_err(|error| Error::file(file)(error.into()))?;
    }
    Ok(())
}

/// Copies the default artifacts of the user's store into `folder`, sparse as they are.
pub fn store(folder: &Path) -> Result<(), Error> {
    let store = Store::open().map_err(|error| {
        let path = env::var_os("CABANA_HOME").map(PathBuf::from).unwrap_or_default();
        Error::Content { path, why: error.to_string() }
    })?;
    for kind in ARTIFACTS {
        let (from, to) = (store.path().join(kind).join("default"), folder.join(kind));
        fs::create_dir_all(&to).map_err(Error::file(&to))?;
        process::run(Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to), 0)?;
    }
    Ok(())
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
    fn this_programs_libraries_are_found() {
        let own = env::current_exe().unwrap();
        let (name, value) = LIST_LIBRARIES;
        let listed = process::run(Command::new(own).env(name, value), 0).unwrap().stdout;
        let files: Vec<_> = listed.lines().filter_map(library).collect();
        assert!(files.iter().any(|file| file.to_string_lossy().contains("libc.so")), "{listed}");
        assert!(files.iter().all(|file| file.exists()), "{listed}");
    }
}

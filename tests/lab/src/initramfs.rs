//! The outer machine's initramfs: init, the modules and the list of writable folders, as a cpio
//! archive (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst, "newc").

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::Error;

/// Where init finds the modules; their names sort in the order in which they load.
pub const MODULES: &str = "/lab/modules";

/// Where init finds the writable folders: absolute paths, a zero byte after each.
pub const WRITABLE: &str = "/lab/writable";

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// Puts the archive together.
pub(crate) fn build(
    init: &Path,
    modules: &[PathBuf],
    writable: &[PathBuf],
) -> Result<Vec<u8>, Error> {
    let mut archive = Archive::default();
    archive.add("dev", DIRECTORY, &[]);
    archive.add("lab", DIRECTORY, &[]);
    archive.add(MODULES, DIRECTORY, &[]);
    for (number, module) in modules.iter().enumerate() {
        archive.add(&format!("{MODULES}/{number:02}.ko"), FILE, &read(module)?);
    }
    let mut list = Vec::new();
    for path in writable {
        list.extend_from_slice(path.as_os_str().as_bytes());
        list.push(0);
    }
    archive.add(WRITABLE, FILE, &list);
    archive.add("init", EXECUTABLE, &read(init)?);
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(Error::file(path))
}

/// A "newc" archive in the making.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds an entry owned by root; directories come before what they hold.
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        let name = name.trim_start_matches('/');
        self.entries += 1;
        let (length, name_length) = (content.len() as u32, name.len() as u32 + 1);
        self.bytes.extend_from_slice(b"070701");
        // Inode, mode, user, group, links, time, size, device (2), special device (2), name, check.
        for field in [self.entries, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0] {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Ends the archive.
    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_reads_the_archive() {
        let folder = tempfile::tempdir().unwrap();
        let init = folder.path().join("program");
        fs::write(&init, b"#!").unwrap();
        let archive = build(&init, std::slice::from_ref(&init), &["/a b".into()]).unwrap();
        let cpio = Command::new("cpio")
            .args(["--list", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut cpio) = cpio else {
            println!("skipped: cpio is not installed");
            return;
        };
        cpio.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        let names = String::from_utf8(output.stdout).unwrap();
        assert_eq!(names, "dev\nlab\nlab/modules\nlab/modules/00.ko\nlab/writable\ninit\n");
        assert!(archive.windows(5).any(|bytes| bytes == b"/a b\0"));
    }

    #[test]
    fn a_missing_init_is_named() {
        let error = build(Path::new("/nonexistent/init"), &[], &[]).unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/init: "), "{error}");
    }
}

//! The initial RAM file system that holds the agent: a `newc` cpio archive (the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! This runs on the host. The archive is uncompressed, since unpacking costs the guest more than the
//! host's copy, and depends on nothing but the agent's bytes.

use crate::init::{IMAGE, NEW_ROOT, SCRATCH};

/// File types of `st_mode`.
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;

/// The archive's size is a multiple of this, as `cpio` has it.
const BLOCK: usize = 512;

/// Makes an initramfs whose `/init` is the agent.
pub fn pack(agent: &[u8]) -> Vec<u8> {
    pack_with(agent, &[])
}

/// The same with more files, in folders that the archive has.
pub fn pack_with(agent: &[u8], files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Archive { bytes: Vec::with_capacity(agent.len() + 4096), entries: 0 };
    for directory in ["/dev", "/proc", "/sys", IMAGE, SCRATCH, NEW_ROOT] {
        archive.entry(directory, DIRECTORY | 0o755, (0, 0), &[]);
    }
    // The kernel opens the console as the agent's standard streams, before the agent can mount /dev.
    // Without it Rust's runtime opens /dev/null in its place.
    archive.entry("/dev/console", CHARACTER_DEVICE | 0o600, (5, 1), &[]);
    archive.entry("/dev/null", CHARACTER_DEVICE | 0o666, (1, 3), &[]);
    archive.entry("/init", REGULAR | 0o755, (0, 0), agent);
    for (path, content) in files {
        archive.entry(path, REGULAR | 0o644, (0, 0), content);
    }
    archive.finish()
}

struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a file of root's, made at the epoch.
    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        self.entries += 1;
        let name = path.trim_start_matches('/');
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        self.record(self.entries, mode, links, (major, minor), name, content);
    }

    fn record(
        &mut self,
        inode: u32,
        mode: u32,
        links: u32,
        (major, minor): (u32, u32),
        name: &str,
        content: &[u8],
    ) {
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        // After the magic: inode, mode, owner, group, links, modification time, size, device of the
        // file system, device of a node, size of the name with its zero, and no checksum.
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(content);
        self.pad(4);
    }

    fn pad(&mut self, alignment: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(alignment), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.record(0, 0, 1, (0, 0), "TRAILER!!!", &[]);
        self.pad(BLOCK);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_archive_has_the_layout_of_the_format() {
        let archive = pack(b"agent");
        assert_eq!(archive.len() % BLOCK, 0);
        assert_eq!(&archive[..14], b"07070100000001");
        assert_eq!(&archive[14..22], format!("{:08x}", 0o040_755).as_bytes());
        assert_eq!(&archive[110..114], b"dev\0");
        let init = archive.windows(9).position(|window| window == b"init\0\0age").unwrap();
        assert_eq!(init % 4, 2, "the name stands 110 bytes after a multiple of four");
        assert_eq!(&archive[init + 6..init + 14], b"agent\0\0\0");
        assert_eq!(archive, pack(b"agent"));
    }

    #[test]
    fn cpio_reads_it() {
        let cpio = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut cpio = match cpio {
            Ok(cpio) => cpio,
            Err(error) => return println!("skipped: cpio does not run here: {error}"),
        };
        cpio.stdin.take().unwrap().write_all(&pack(&[7; 5000])).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        let list = String::from_utf8(output.stdout).unwrap();
        let has = |start: &str, end: &str| {
            list.lines().any(|line| line.starts_with(start) && line.ends_with(end))
        };
        assert!(has("drwxr-xr-x   2 0        0", " dev"), "{list}");
        assert!(
            has("crw-------   1 0        0          5,   1 Jan  1  1970", " dev/console"),
            "{list}"
        );
        assert!(
            has("crw-rw-rw-   1 0        0          1,   3 Jan  1  1970", " dev/null"),
            "{list}"
        );
        assert!(has("-rwxr-xr-x   1 0        0            5000 Jan  1  1970", " init"), "{list}");
        assert_eq!(list.lines().count(), 9, "{list}");
    }
}

//! The template of a machine's writable disk: a large, empty, nearly unallocated ext4.
//!
//! It is copied for every machine, data alone, so each block that it really has counts. Whatever a
//! fresh file can promise to be zero is left a hole: inode tables, bitmaps of unused groups, the
//! journal. The inode tables are marked as zeroed, so that the guest's kernel does not set out to
//! zero (and thereby allocate) a quarter of a gigabyte in the background.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::BuildError;
use crate::error::Context;
use crate::process::Tool;

/// Writes the file system.
pub(crate) const MKFS: Tool = Tool { name: "mkfs.ext4", package: "e2fsprogs" };
/// Adds the quota, which has to count what mkfs put in.
pub(crate) const TUNE2FS: Tool = Tool { name: "tune2fs", package: "e2fsprogs" };
/// Sets the times that mkfs takes from the clock.
pub(crate) const DEBUGFS: Tool = Tool { name: "debugfs", package: "e2fsprogs" };

/// The template's file name in the artifact.
pub const SCRATCH: &str = "scratch.ext4";

/// The disk's size in bytes.
pub const SCRATCH_SIZE: u64 = 16 << 30;

/// The folders at its root: what an overlay needs.
const FOLDERS: [&str; 2] = ["upper", "work"];

/// Everything that decides the layout, so that the host's `mke2fs.conf` does not.
pub(crate) const OPTIONS: &[&str] = &[
    "-q",
    "-F",
    "-b",
    "4096",
    // An inode for each 16 KiB: a million, enough for many small files.
    "-i",
    "16384",
    "-I",
    "256",
    "-m",
    "0",
    // The metadata of all 128 groups together at the front.
    "-G",
    "128",
    "-J",
    "size=16",
    // One superblock is enough for a disk that is made anew from its template. Projects are for the quotas
    // of the agent's sessions.
    "-O",
    "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super2,large_file,\
     huge_file,metadata_csum,dir_nlink,extra_isize,project",
    "-U",
    "cabaca6a-0000-8000-8000-000000000001",
    "-E",
    "hash_seed=cabaca6a-0000-8000-8000-000000000002,assume_storage_prezeroed=1,num_backup_sb=0,\
     root_owner=0:0",
];

/// Quotas of projects alone.
pub(crate) const QUOTA: &[&str] = &["-Q", "prjquota"];

/// The time of all that is in it, 2023-06-10, for the tools' clock and for debugfs.
const TIME: &str = "1686355200";

/// Writes the template to `image`, with `work` for what is needed on the way.
pub(crate) fn write(image: &Path, work: &Path, cancel: &AtomicBool) -> Result<(), BuildError> {
    let tree = work.join("scratch");
    for folder in FOLDERS {
        let path = tree.join(folder);
        fs::create_dir_all(&path).context("make the folder", &path)?;
    }
    let config = work.join("mke2fs.conf");
    let text =
        "[defaults]\n\tbase_features = none\n[fs_types]\n\text4 = {\n\t\tfeatures = none\n\t}\n";
    fs::write(&config, text).context("write", &config)?;
    let file = File::create(image).context("make", image)?;
    file.set_len(SCRATCH_SIZE).context("size", image)?;

    let mut command = MKFS.command();
    command.env("E2FSPROGS_FAKE_TIME", TIME).env("MKE2FS_CONFIG", &config);
    command.args(OPTIONS).arg("-d").arg(&tree).arg(image);
    MKFS.run(command, work, cancel, &mut |_| {})?;

    let mut command = TUNE2FS.command();
    command.env("E2FSPROGS_FAKE_TIME", TIME).args(QUOTA).arg(image);
    TUNE2FS.run(command, work, cancel, &mut |_| {})?;

    // The copied folders have the times of their originals.
    let script = work.join("debugfs.script");
    let mut text = String::new();
    for inode in ["<2>"].iter().chain(&FOLDERS) {
        for field in ["atime", "ctime", "mtime"] {
            let _ = writeln!(text, "set_inode_field {inode} {field} @{TIME}");
            let _ = writeln!(text, "set_inode_field {inode} {field}_extra 0");
        }
    }
    fs::write(&script, text).context("write", &script)?;
    let mut command = DEBUGFS.command();
    command.env("E2FSPROGS_FAKE_TIME", TIME).arg("-w").arg("-f").arg(&script).arg(image);
    DEBUGFS.run(command, work, cancel, &mut |_| {})
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn the_scratch_disk_is_small_sound_and_always_the_same() {
        if let Err(error) = MKFS.check().and(TUNE2FS.check()).and(DEBUGFS.check()) {
            eprintln!("skipped: {error}");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let (image, work) = (folder.path().join(name), folder.path().join("work"));
            fs::create_dir(&work).unwrap();
            write(&image, &work, &AtomicBool::new(false)).unwrap();
            fs::remove_dir_all(work).unwrap();
            image
        };
        let first = make("first");
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let second = make("second");

        // All its metadata is in the first 256 MiB.
        let hash = |image: &Path| {
            let mut hasher = Sha256::new();
            let mut front = std::io::Read::take(File::open(image).unwrap(), 256 << 20);
            std::io::copy(&mut front, &mut hasher).unwrap();
            crate::flavour::hex(&hasher.finalize())
        };
        assert_eq!(hash(&first), hash(&second));
        let metadata = fs::metadata(&first).unwrap();
        assert_eq!(metadata.len(), SCRATCH_SIZE);
        assert!(metadata.blocks() * 512 <= 256 << 10, "{} bytes", metadata.blocks() * 512);

        let output = |tool: Tool, arguments: &[&str]| {
            let output = tool.command().args(arguments).arg(&first).output().unwrap();
            (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let fsck = Tool { name: "e2fsck", package: "e2fsprogs" };
        let (status, text) = output(fsck, &["-f", "-n"]);
        assert_eq!(status, Some(0), "{text}");
        let (_, list) = output(DEBUGFS, &["-R", "ls -l"]);
        assert!(list.contains(" upper\n") && list.contains(" work\n"), "{list}");
        let dump = Tool { name: "dumpe2fs", package: "e2fsprogs" };
        let (_, groups) = output(dump, &[]);
        let zeroed = groups.matches("ITABLE_ZEROED").count();
        assert_eq!(zeroed, groups.matches(": (Blocks ").count());
    }
}

//! The root file system as a folder: made by mmdebstrap, then stripped and completed.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::UNIX_EPOCH;

use cabana_os::tree::set_permissions;

use crate::error::Context;
use crate::flavour::host_architecture;
use crate::foreign::Foreign;
use crate::process::Tool;
use crate::progress::{Progress, Reader};
use crate::{Base, BuildError, Flavour};

/// Makes the tree.
pub(crate) const MMDEBSTRAP: Tool = Tool { name: "mmdebstrap", package: "mmdebstrap" };

/// Paths that are not unpacked. Later entries take precedence; licences stay.
pub(crate) const EXCLUDED: &[&str] = &[
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/bug/*",
];

/// The clock of the maintainer scripts, for dates that they write into files (the last change of a
/// password): the day on which Debian 12 came out.
const SCRIPT_EPOCH: &str = "1686355200";

/// Folders whose files are logs, caches and state of the build's own moment.
const VOLATILE: [&str; 10] = [
    "boot",
    "dev",
    "run",
    "tmp",
    "var/cache/apt",
    "var/cache/ldconfig",
    "var/lib/apt/lists",
    "var/log",
    "var/tmp",
    "etc/apt/sources.list.d",
];

/// Files that say where or when the image was built, and backup copies that some of the tools make.
/// The mirror's address is among them: it may hold a password, and a guest reaches another one.
const REMOVED: [&str; 16] = [
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/apt/sources.list",
    "etc/group-",
    "etc/gshadow-",
    "etc/hostname",
    "etc/machine-id",
    "etc/passwd-",
    "etc/resolv.conf",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "linuxrc",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/status-old",
];

/// Folders that the guest's agent relies on, with their permissions.
const FOLDERS: [(&str, u32); 12] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sessions", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/tmp", 0o1777),
];

/// Files that every image has.
const FILES: [(&str, &str); 4] = [
    ("etc/hostname", "cabana\n"),
    ("etc/hosts", "127.0.0.1\tlocalhost cabana\n::1\tlocalhost ip6-localhost ip6-loopback\n"),
    ("etc/machine-id", ""),
    ("etc/resolv.conf", ""),
];

/// Files that Debian's base packages would bring.
const BUSYBOX_FILES: [(&str, &str); 2] = [
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    ),
];

/// Has mmdebstrap make the tree at `root`. `work` gets files of its own: the sources, and for a
/// busybox the names of the packages.
pub(crate) fn bootstrap(
    flavour: &Flavour,
    sources: &str,
    work: &Path,
    root: &Path,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), BuildError> {
    let sources_file = work.join("debian.sources");
    fs::write(&sources_file, sources).context("write", &sources_file)?;

    let is_foreign = flavour.architecture != host_architecture();
    let foreign = is_foreign.then(|| Foreign::prepare(&flavour.architecture)).transpose()?;
    let mut command = match &foreign {
        None => MMDEBSTRAP.isolated_command(),
        Some(foreign) => foreign.command(MMDEBSTRAP),
    };
    if is_foreign {
        // It asks for programs and a table of the host's, which ours need not.
        command.arg("--skip=check/qemu");
    }
    command.env("SOURCE_DATE_EPOCH", SCRIPT_EPOCH).env("DEBS", work.join("debs"));
    // What it leaves when it is killed goes with the rest of the work.
    command.env("TMPDIR", work);
    command.args(["--verbose", "--mode=root", "--format=directory"]);
    command.arg(format!("--architectures={}", flavour.architecture));
    for package in &flavour.packages {
        command.arg(format!("--include={package}"));
    }
    command.arg("--aptopt=Acquire::Languages \"none\"");
    command.args(host_apt_options().iter().map(|option| format!("--aptopt={option}")));
    // A build that dies is thrown away, so nothing has to reach the disk on the way.
    command.arg("--dpkgopt=force-unsafe-io");
    command.args(EXCLUDED.iter().map(|option| format!("--dpkgopt={option}")));
    match flavour.base {
        Base::Debian => command.arg("--variant=apt"),
        Base::Busybox => command.args([
            "--variant=extract",
            "--setup-hook=cd \"$1\" && mkdir -p bin sbin usr/bin usr/sbin proc sys",
            "--extract-hook=ls \"$1/var/cache/apt/archives\" >\"$DEBS\"",
            "--extract-hook=chroot \"$1\" /bin/busybox --install -s",
        ]),
    };
    command.arg(&flavour.suite).arg(root).arg(&sources_file);

    let mut reader = Reader::default();
    let result = MMDEBSTRAP.run(command, work, cancel, &mut |line| {
        if let Some(now) = reader.line(line) {
            progress(now);
        }
    });
    result.map_err(|error| explain(error, flavour))
}

/// Settings of the host's apt that reaching its mirror may need.
fn host_apt_options() -> Vec<String> {
    const PREFIXES: [&str; 5] = [
        "Acquire::http::",
        "Acquire::https::",
        "Acquire::Check-Valid-Until ",
        "Acquire::Check-Date ",
        "Acquire::Retries ",
    ];
    let output = Command::new("apt-config").arg("dump").output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .filter(|line| PREFIXES.iter().any(|prefix| line.starts_with(prefix)))
        .filter(|line| !line.ends_with("\"\";"))
        .map(str::to_owned)
        .collect()
}

/// Finds the cause that a user can repair in what apt said.
fn explain(error: BuildError, flavour: &Flavour) -> BuildError {
    const NETWORK: [&str; 6] = [
        "Could not resolve",
        "Temporary failure resolving",
        "Could not connect",
        "Unable to connect",
        "Connection failed",
        "Failed to fetch",
    ];
    let BuildError::Failed { log, .. } = &error else { return error };
    if let Some((_, rest)) = log.split_once("Unable to locate package ") {
        return BuildError::NoPackage {
            suite: flavour.suite.clone(),
            package: rest.lines().next().unwrap_or_default().to_owned(),
            flavour: flavour.name.clone(),
        };
    }
    match log.lines().find(|line| NETWORK.iter().any(|words| line.contains(words))) {
        Some(line) => {
            let detail = line.trim_start_matches(['E', 'W', 'r', ':', ' ']).to_owned();
            BuildError::Network { detail }
        }
        None => error,
    }
}

/// Removes what the build left behind and adds what the guest's agent relies on.
pub(crate) fn finish(root: &Path, base: Base) -> Result<(), BuildError> {
    for folder in VOLATILE {
        let path = root.join(folder);
        // Package managers expect the folders below these to exist; nobody expects a file.
        let keep_folders = folder.starts_with("var/");
        empty(&path, keep_folders).context("empty", &path)?;
    }
    for file in REMOVED {
        let path = root.join(file);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context("remove", &path);
            }
            _ => {}
        }
    }
    for (folder, mode) in FOLDERS {
        let path = root.join(folder);
        fs::create_dir_all(&path)
            .and_then(|()| set_mode(&path, mode))
            .context("make the folder", &path)?;
    }
    let more: &[_] = if base == Base::Busybox { &BUSYBOX_FILES } else { &[] };
    for (file, text) in FILES.iter().chain(more) {
        let path = root.join(file);
        fs::write(&path, text).and_then(|()| set_mode(&path, 0o644)).context("write", &path)?;
    }
    Ok(())
}

/// Removes the files below a folder, and the folders too unless they are to stay.
fn empty(path: &Path, keep_folders: bool) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        match (entry.file_type()?.is_dir(), keep_folders) {
            (true, true) => empty(&entry.path(), true)?,
            (true, false) => fs::remove_dir_all(entry.path())?,
            (false, _) => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// The modification time, in seconds since 1970, of the newest file that came out of a package:
/// the newest before `started`. What the build itself wrote is later, and differs each time.
pub(crate) fn newest(root: &Path, started: i64) -> Result<i64, BuildError> {
    let mut newest = 0;
    for entry in fs::read_dir(root).context("list", root)? {
        let entry = entry.context("list", root)?;
        let metadata = entry.metadata().context("look at", entry.path())?;
        let time = if metadata.is_dir() {
            self::newest(&entry.path(), started)?
        } else {
            modified(&metadata)
        };
        if time < started {
            newest = newest.max(time);
        }
    }
    Ok(newest)
}

/// When a file's content last changed, in seconds since 1970.
fn modified(metadata: &fs::Metadata) -> i64 {
    let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_secs() as i64)
}

/// Sets the permissions of a file or a folder.
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    set_permissions(&File::open(path)?, mode)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::time::{Duration, SystemTime};

    use super::*;

    fn failed(log: &str) -> BuildError {
        let flavour = Flavour::find("default").unwrap();
        let status = std::process::ExitStatus::from_raw(25 << 8);
        let (reason, log) = (String::new(), log.to_owned());
        explain(BuildError::Failed { tool: "mmdebstrap", status, reason, log }, &flavour)
    }

    #[test]
    fn causes_are_found_in_the_log() {
        let error = failed("I: x\nE: Unable to locate package nodejz\nE: apt failed").to_string();
        assert!(error.contains("no package 'nodejz'"), "{error}");
        let error = failed("Err:1 http://m.test bookworm InRelease\n  Could not connect to m.test");
        assert!(matches!(&error, BuildError::Network { detail } if detail.starts_with("Could")));
        assert!(matches!(failed("E: dpkg broke"), BuildError::Failed { .. }));
    }

    #[test]
    fn a_tree_is_stripped_and_completed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for path in [
            "dev/pts/x",
            "run/lock/x",
            "var/cache/apt/archives/partial/x",
            "var/log/apt/term.log",
            "etc/apt/sources.list.d/mirror.sources",
            "etc/passwd-",
            "usr/bin/git",
        ] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        std::os::unix::fs::symlink("/etc/outside", root.join("etc/resolv.conf")).unwrap();
        finish(root, Base::Busybox).unwrap();

        let entries = |path: &str| fs::read_dir(root.join(path)).unwrap().count();
        assert_eq!((entries("dev"), entries("run"), entries("etc/apt/sources.list.d")), (0, 0, 0));
        assert_eq!((entries("var/cache/apt/archives/partial"), entries("var/log/apt")), (0, 0));
        assert!(root.join("usr/bin/git").exists() && !root.join("etc/passwd-").exists());
        assert!(root.join("sessions").is_dir() && root.join("proc").is_dir());
        let resolv = fs::symlink_metadata(root.join("etc/resolv.conf")).unwrap();
        assert!(resolv.is_file() && resolv.len() == 0);
        let tmp = fs::metadata(root.join("tmp")).unwrap();
        assert_eq!(tmp.permissions().mode() & 0o7777, 0o1777);
        assert!(fs::read_to_string(root.join("etc/passwd")).unwrap().starts_with("root:"));
    }

    #[test]
    fn the_newest_file_of_a_package_is_older_than_the_build() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("usr")).unwrap();
        for (name, time) in [("a", 100), ("usr/b", 300), ("c", 200), ("made-now", 1000)] {
            let file = fs::File::create(folder.path().join(name)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(time)).unwrap();
        }
        assert_eq!(newest(folder.path(), 1000).unwrap(), 300);
    }
}

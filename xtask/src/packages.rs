//! Debian's packages that building and testing Cabana needs, each with its reason.

use std::process::{Command, Stdio};

use crate::failure::{Failure, succeed};
use crate::progress::say;

/// A package and why it is needed.
type Package = (&'static str, &'static str);

/// What nothing works without.
const PACKAGES: [Package; 20] = [
    ("bc", "the kernel's build computes time constants with it"),
    ("binutils", "links and strips the kernel"),
    ("bison", "the kernel's configuration parser"),
    ("busybox-static", "the shell in the initramfs with which a test boots Debian's kernel"),
    ("cpio", "a test reads our initramfs archives with it"),
    ("debian-archive-keyring", "the keys that the image's packages are signed with"),
    ("e2fsprogs", "mkfs.ext4 and debugfs, for the image's writable disk"),
    ("erofs-utils", "mkfs.erofs, for the root image"),
    ("flex", "the kernel's configuration scanner"),
    ("gcc", "compiles the kernel and links Rust"),
    ("libc6-dev", "the host's C library, to link against"),
    ("libelf-dev", "the kernel's objtool reads objects with it"),
    ("linux-source-6.12", "the guest kernel's source"),
    ("make", "drives the kernel's build"),
    ("mmdebstrap", "lays the image's packages out"),
    ("python3-pip", "brings Node.js for the tests of its package"),
    ("qemu-system-common", "QEMU 7.2 keeps virtiofsd here, which gives the lab the host's files"),
    ("qemu-system-x86", "the lab's software CPU"),
    ("xz-utils", "unpacks the kernel's source and the lab kernel's modules"),
    ("zstd", "unpacks the lab's kernel"),
];

/// What one suite, test or benchmark alone needs, and says so.
const OPTIONAL: [Package; 9] = [
    ("device-tree-compiler", "a test reads our device trees with it"),
    ("gcc-aarch64-linux-gnu", "compiles the guest kernel for arm64, and what C `cabana` has"),
    ("gcc-mingw-w64-x86-64", "links the tests for Windows"),
    ("iperf3", "the benchmark of the network in a guest"),
    ("libc6-dev-arm64-cross", "the headers of what C `cabana` has, for arm64"),
    ("passt", "what the network in a guest is measured beside"),
    ("qemu-system-arm", "the Arm lab's software CPU"),
    (
        "qemu-user-static",
        "runs the unit tests for arm64, and the scripts of its packages for the root image",
    ),
    ("wine64", "runs the tests for Windows"),
];

/// Installs what is missing; needs root or sudo only then.
pub(crate) fn install_missing() -> Result<(), Failure> {
    let (needed, optional) = (missing(&PACKAGES)?, missing(&OPTIONAL)?);
    if needed.is_empty() && optional.is_empty() {
        return Ok(());
    }
    for (package, reason) in PACKAGES.iter().chain(&OPTIONAL) {
        if needed.contains(package) || optional.contains(package) {
            say(&format!("packages: {package} is missing: {reason}"));
        }
    }
    let updated = apt(&["update"]);
    if !needed.is_empty() {
        updated?;
        install(&needed)?;
    }
    for package in optional {
        if let Err(failure) = install(&[package]) {
            say(&format!("packages: SKIPPED {package}, and what needs it: {failure}"));
        }
    }
    Ok(())
}

fn install(packages: &[&str]) -> Result<(), Failure> {
    let install = ["install", "--yes", "--no-install-recommends"];
    apt(&[&install[..], packages].concat())
}

/// The packages that are not installed, by one look at dpkg's status.
fn missing(packages: &[Package]) -> Result<Vec<&'static str>, Failure> {
    let names: Vec<_> = packages.iter().map(|(package, _)| *package).collect();
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${db:Status-Status} ${Package}\n"])
        .args(&names)
        .stderr(Stdio::null())
        .output()
        .map_err(|_| {
            Failure::Sentence(format!(
                "this is not a Debian machine (no dpkg-query); install what corresponds to these \
                 packages yourself: {}",
                names.join(" ")
            ))
        })?;
    Ok(not_installed(packages, &String::from_utf8_lossy(&output.stdout)))
}

/// The packages that no line of `status` calls installed.
fn not_installed(packages: &[Package], status: &str) -> Vec<&'static str> {
    let installed: Vec<_> =
        status.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    let names = packages.iter().map(|(package, _)| *package);
    names.filter(|package| !installed.contains(package)).collect()
}

/// Runs apt-get, with sudo unless we are root, asking nothing.
fn apt(arguments: &[&str]) -> Result<(), Failure> {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("env")
    } else {
        let mut command = Command::new("sudo");
        command.arg("env");
        command
    };
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"]).args(arguments);
    // apt's words are progress, not our output.
    command.stdout(io_stderr());
    succeed(&mut command)
}

/// Standard error, for a child to write to as its standard output.
fn io_stderr() -> Stdio {
    use std::os::fd::AsFd;
    std::io::stderr().as_fd().try_clone_to_owned().map_or_else(|_| Stdio::null(), Stdio::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dpkg_does_not_call_installed_is_missing() {
        let all: String =
            PACKAGES.iter().fold(String::new(), |all, (name, _)| all + "installed " + name + "\n");
        assert!(not_installed(&PACKAGES, &all).is_empty());
        let without = all.replace("installed zstd\n", "config-files zstd\n");
        assert_eq!(not_installed(&PACKAGES, &without), ["zstd"]);
        assert_eq!(not_installed(&PACKAGES, "").len(), PACKAGES.len());
    }

    #[test]
    fn the_lists_are_in_alphabetical_order() {
        assert!(PACKAGES.is_sorted() && OPTIONAL.is_sorted());
    }
}

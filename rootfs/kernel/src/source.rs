//! The kernel's source: Debian's tarball, what identifies it, and unpacking it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::Error;
use crate::compile::run;

/// The Debian package that has the source.
pub const SOURCE_PACKAGE: &str = "linux-source-6.12";

/// Where that package puts it.
pub const DEFAULT_SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";

/// Drivers of hardware that no virtual machine has, and other processors' boards: more than half of
/// the source, never read. Their Kconfig files stay, because the configuration system wants them.
const UNUSED: [&str; 9] = [
    "*/drivers/gpu/drm/*.[ch]",
    "*/drivers/infiniband/*.[ch]",
    "*/drivers/media/*.[ch]",
    "*/drivers/net/wireless/*.[ch]",
    "*/drivers/staging/*.[ch]",
    "*/sound/*.[ch]",
    "*/arch/*/boot/dts/*",
    "*/Documentation/*/*",
    "*/tools/testing/*",
];

/// Checks that the tarball is there.
pub(crate) fn find(path: &Path) -> Result<(), Error> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(_) => Err(Error::Io {
            action: "use as the kernel's source",
            path: path.to_path_buf(),
            source: io::Error::other("it is not a file"),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::SourceMissing { path: path.to_path_buf(), package: SOURCE_PACKAGE })
        }
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// What identifies the source: the package's version for Debian's own file, the content's hash for
/// any other (hashing takes seconds, asking the package manager none).
pub(crate) fn identity(path: &Path) -> Result<String, Error> {
    find(path)?;
    if path == Path::new(DEFAULT_SOURCE)
        && let Some(version) = package_version()
    {
        return Ok(format!("{SOURCE_PACKAGE} {version}"));
    }
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash).map_err(Error::io("read", path))?;
    Ok(format!("sha256 {:x}", hash.finalize()))
}

/// The installed version of the package, or `None` where there is no such package or no dpkg.
fn package_version() -> Option<String> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Abbrev}${Version}", SOURCE_PACKAGE])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.strip_prefix("ii ")?.trim();
    (output.status.success() && !version.is_empty()).then(|| version.to_owned())
}

/// Unpacks the tarball into the folder `root`, without its own first folder.
pub(crate) fn unpack(tarball: &Path, root: &Path, lock: &File, log: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(root).map_err(Error::io("create", root))?;
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--file").arg(tarball).arg("--directory").arg(root);
    tar.args(["--strip-components=1", "--no-same-owner", "--wildcards"]);
    tar.args(UNUSED.map(|pattern| format!("--exclude={pattern}")));
    run("unpacking the kernel's source", &mut tar, lock, log, &mut |_| {})?;
    let makefile = root.join("Makefile");
    if makefile.is_file() {
        Ok(())
    } else {
        Err(Error::BadResult { path: makefile, reason: "the tarball holds no kernel".to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock() -> File {
        File::open("/dev/null").unwrap()
    }

    #[test]
    fn a_missing_tarball_is_an_error_that_names_the_package() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none.tar.xz");
        for error in [find(&path).unwrap_err(), identity(&path).unwrap_err()] {
            assert!(matches!(error, Error::SourceMissing { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains("apt-get install linux-source-6.12"), "{text}");
            assert!(text.contains("none.tar.xz"), "{text}");
        }
    }

    #[test]
    fn a_folder_is_no_tarball() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(find(folder.path()), Err(Error::Io { .. })));
    }

    #[test]
    fn another_tarball_is_known_by_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("linux.tar");
        std::fs::write(&path, "one").unwrap();
        let one = identity(&path).unwrap();
        std::fs::write(&path, "two").unwrap();
        assert_ne!(one, identity(&path).unwrap());
        assert!(one.starts_with(
            "sha256 7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
        ));
    }

    #[test]
    fn a_file_that_is_no_tarball_fails_with_what_tar_said() {
        let folder = tempfile::tempdir().unwrap();
        let tarball = folder.path().join("linux.tar.xz");
        std::fs::write(&tarball, "not a tarball at all").unwrap();
        let error =
            unpack(&tarball, &folder.path().join("linux"), &lock(), &folder.path().join("log"))
                .unwrap_err();
        let Error::Failed { step, tail, .. } = &error else { panic!("{error}") };
        assert_eq!(*step, "unpacking the kernel's source");
        assert!(tail.contains("tar:"), "{tail}");
    }

    #[test]
    fn a_tarball_without_a_kernel_is_refused_and_a_kernel_is_unpacked_without_its_unused_parts() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("linux-source-6.12");
        let pack = |name: &str| {
            let tarball = folder.path().join(name);
            let done = Command::new("tar")
                .arg("--create")
                .arg("--file")
                .arg(&tarball)
                .arg("--directory")
                .arg(folder.path())
                .arg("linux-source-6.12")
                .status()
                .unwrap();
            assert!(done.success());
            tarball
        };
        std::fs::create_dir_all(tree.join("tools/testing/selftests")).unwrap();
        std::fs::create_dir_all(tree.join("kernel")).unwrap();
        std::fs::write(tree.join("tools/testing/selftests/a.c"), "").unwrap();
        std::fs::write(tree.join("kernel/fork.c"), "").unwrap();
        let log = folder.path().join("log");
        let error =
            unpack(&pack("empty.tar"), &folder.path().join("a"), &lock(), &log).unwrap_err();
        assert!(matches!(error, Error::BadResult { .. }), "{error}");

        std::fs::write(tree.join("Makefile"), "VERSION = 6\n").unwrap();
        let root = folder.path().join("b");
        unpack(&pack("kernel.tar"), &root, &lock(), &log).unwrap();
        assert!(root.join("kernel/fork.c").is_file());
        assert!(!root.join("tools/testing/selftests/a.c").exists());
    }
}

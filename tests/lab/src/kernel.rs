//! The outer machine's kernel: Debian's cloud kernel, taken from its package without installing it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Error;
use crate::apt::Apt;
use crate::architecture::Architecture;

/// Metapackages that name the newest 6.12 cloud kernel, in bookworm-security and in trixie, but for the
/// processor's name. KVM inside a software CPU was proven with this series.
const METAPACKAGES: [&str; 2] = ["linux-image-6.12-cloud", "linux-image-cloud"];

/// A kernel that QEMU can boot, and its modules.
#[derive(Clone, Debug)]
pub(crate) struct OuterKernel {
    /// What QEMU boots, uncompressed: on x86-64 an ELF file with its PVH entry, on arm64 the `Image`.
    pub(crate) vmlinux: PathBuf,
    /// The kernel as Debian ships it, for the tests that boot it.
    pub(crate) vmlinuz: PathBuf,
    /// The modules in the order in which they load, uncompressed.
    pub(crate) modules: Vec<PathBuf>,
    /// Those that are kept for guests of the same kernel.
    guest_modules: Vec<PathBuf>,
    architecture: Architecture,
}

impl OuterKernel {
    /// The kernel in the cache folder; when there is none, downloads the newest. `report` is told what
    /// takes long.
    pub(crate) fn prepare(
        architecture: Architecture,
        cache: &Path,
        report: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        let folder = cache.join(architecture.kernel_folder());
        let kernel = Self::in_folder(architecture, &folder);
        if kernel.is_whole() {
            return Ok(kernel);
        }
        fs::create_dir_all(cache).map_err(Error::file(cache))?;
        let work = tempfile::Builder::new()
            .prefix("outer-kernel.")
            .tempdir_in(cache)
            .map_err(Error::file(cache))?;
        let apt = Apt::new(architecture, cache)?;
        let package = newest_package(&apt, architecture, report)?;
        report(&format!("downloading {package} for {}", architecture.debian()));
        let unpacked = apt.download(&package, work.path())?;
        report(&format!("unpacking {package}"));
        let whole = work.path().join("whole");
        fs::create_dir(&whole).map_err(Error::file(&whole))?;
        Self::in_folder(architecture, &whole).extract(&unpacked)?;
        if folder.exists() && !kernel.is_whole() {
            // Of an earlier version, which kept less.
            fs::remove_dir_all(&folder).map_err(Error::file(&folder))?;
        }
        match fs::rename(&whole, &folder) {
            // Somebody else was faster; theirs is as good.
            Err(_) if kernel.is_whole() => Ok(kernel),
            renamed => renamed.map(|()| kernel).map_err(Error::file(folder)),
        }
    }

    /// Names the files that a whole folder has.
    fn in_folder(architecture: Architecture, folder: &Path) -> Self {
        let file_name = |module: &&str| folder.join(module.rsplit('/').next().unwrap_or(module));
        let vmlinux = match architecture {
            Architecture::X86_64 => "vmlinux",
            Architecture::Arm64 => "vmlinuz",
        };
        Self {
            vmlinux: folder.join(vmlinux),
            vmlinuz: folder.join("vmlinuz"),
            modules: architecture.modules().iter().map(file_name).collect(),
            guest_modules: architecture.guest_modules().iter().map(file_name).collect(),
            architecture,
        }
    }

    /// Whether all files are there. A folder appears by a rename, but may be of an earlier version.
    fn is_whole(&self) -> bool {
        let modules = self.modules.iter().chain(&self.guest_modules);
        [&self.vmlinux, &self.vmlinuz].into_iter().chain(modules).all(|file| file.exists())
    }

    /// Makes the files out of an unpacked package.
    fn extract(&self, unpacked: &Path) -> Result<(), Error> {
        let vmlinuz = only_entry(&unpacked.join("boot"), "vmlinuz-")?;
        let image = fs::read(&vmlinuz).map_err(Error::file(&vmlinuz))?;
        fs::write(&self.vmlinuz, &image).map_err(Error::file(&self.vmlinuz))?;
        if self.architecture == Architecture::X86_64 {
            let payload = zstd_payload(&image).ok_or_else(|| Error::File {
                path: vmlinuz,
                source: std::io::Error::other("no bzImage with a zstd payload"),
            })?;
            let vmlinux = filter(Command::new("zstd").args(["-dcq"]), payload, "zstd")?;
            fs::write(&self.vmlinux, vmlinux).map_err(Error::file(&self.vmlinux))?;
        }

        // Merged and unmerged /usr.
        let modules = ["usr/lib/modules", "lib/modules"].map(|path| unpacked.join(path));
        let modules = modules.iter().find(|path| path.exists()).unwrap_or(&modules[0]);
        let tree = only_entry(modules, "")?.join("kernel");
        let own = self.architecture.modules().iter().zip(&self.modules);
        let guests = self.architecture.guest_modules().iter().zip(&self.guest_modules);
        for (source, target) in own.chain(guests) {
            let source = tree.join(format!("{source}.xz"));
            let packed = fs::read(&source).map_err(Error::file(&source))?;
            let module = filter(Command::new("xz").args(["-dc"]), &packed, "xz-utils")?;
            fs::write(target, module).map_err(Error::file(target))?;
        }
        Ok(())
    }
}

/// Asks apt for the newest kernel package, with fresh lists if it does not know one.
fn newest_package(
    apt: &Apt,
    architecture: Architecture,
    report: &mut dyn FnMut(&str),
) -> Result<String, Error> {
    let names = METAPACKAGES.map(|name| format!("{name}-{}", architecture.debian()));
    let newest = || names.iter().find_map(|name| apt.dependency(name, "linux-image-6.12."));
    if let Some(package) = newest() {
        return Ok(package);
    }
    report("asking apt for fresh package lists");
    apt.update();
    newest().ok_or_else(|| Error::Missing {
        what: format!("Debian's package {}", names[0]),
        advice: "run `apt-get update`; it is in Debian 12's security archive and in Debian 13"
            .into(),
    })
}

/// The compressed kernel inside a bzImage (Documentation/arch/x86/boot.rst: `setup_sects`,
/// `payload_offset`, `payload_length`), without the length that the kernel's build appends.
fn zstd_payload(image: &[u8]) -> Option<&[u8]> {
    let word =
        |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    let setup = (usize::from(*image.get(0x1f1)?) + 1) * 512;
    let start = setup.checked_add(word(0x248)?)?;
    let payload = image.get(start..start.checked_add(word(0x24c)?)?)?;
    let payload = payload.get(..payload.len().checked_sub(4)?)?;
    payload.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]).then_some(payload)
}

/// The entry of a folder whose name starts with `prefix`.
pub(crate) fn only_entry(folder: &Path, prefix: &str) -> Result<PathBuf, Error> {
    let entries = fs::read_dir(folder).map_err(Error::file(folder))?;
    let mut entries = entries.flatten();
    let found = entries.find(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    found.map(|entry| entry.path()).ok_or_else(|| Error::File {
        path: folder.join(prefix),
        source: std::io::ErrorKind::NotFound.into(),
    })
}

/// Runs a tool to its success.
pub(crate) fn run(command: &mut Command) -> Result<(), Error> {
    let output = command.output().map_err(|_| missing_program(command, "apt and dpkg"))?;
    succeeded(command, &output)
}

/// Runs a tool over bytes.
fn filter(command: &mut Command, input: &[u8], package: &str) -> Result<Vec<u8>, Error> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|_| missing_program(command, package))?;
    let mut stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        // A tool that stops reading says why by its status.
        scope.spawn(move || stdin.as_mut().map(|pipe| pipe.write_all(input)));
        child.wait_with_output()
    });
    let output = output.map_err(Error::system("wait for a decompressor"))?;
    succeeded(command, &output)?;
    Ok(output.stdout)
}

fn succeeded(command: &Command, output: &std::process::Output) -> Result<(), Error> {
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Tool {
        command: format!("{command:?}").replace('"', ""),
        status: output.status.to_string(),
        stderr,
    })
}

fn missing_program(command: &Command, package: &str) -> Error {
    Error::Missing {
        what: format!("the program {}", command.get_program().to_string_lossy()),
        advice: format!("on Debian, `apt-get install {package}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage of one setup sector with `payload` as its payload.
    fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(&[0; 16]);
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_payload_is_found_without_its_appended_length() {
        let image = bz_image(b"\x28\xb5\x2f\xfddata\x10\0\0\0");
        assert_eq!(zstd_payload(&image), Some(b"\x28\xb5\x2f\xfddata".as_slice()));
    }

    #[test]
    fn a_truncated_or_foreign_image_has_no_payload() {
        let image = bz_image(b"\x28\xb5\x2f\xfddata\x10\0\0\0");
        assert_eq!(zstd_payload(&image[..image.len() - 1]), None);
        assert_eq!(zstd_payload(&image[..0x200]), None);
        assert_eq!(zstd_payload(&bz_image(b"\x1f\x8b\x08\0gzip")), None);
        assert_eq!(zstd_payload(&bz_image(b"\0")), None);
    }

    #[test]
    fn a_failing_tool_is_quoted() {
        let error = run(Command::new("sh").args(["-c", "echo no space >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.ends_with("no space"), "{text}");
    }

    #[test]
    fn a_missing_tool_names_its_package() {
        let error = filter(&mut Command::new("/nonexistent/zstd"), b"", "zstd").unwrap_err();
        assert!(error.to_string().ends_with("`apt-get install zstd`"), "{error}");
    }
}

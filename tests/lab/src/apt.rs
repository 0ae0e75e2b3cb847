//! Debian's package manager, asked for packages of one processor; nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Error;
use crate::architecture::Architecture;
use crate::kernel::{only_entry, run};

/// apt, for one processor's packages.
#[derive(Debug)]
pub(crate) struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// The host's own lists of packages, or for another processor's packages lists of their own in `folder`,
    /// so that the host's stay as they are.
    pub(crate) fn new(architecture: Architecture, folder: &Path) -> Result<Self, Error> {
        let mut options = vec!["APT::Sandbox::User=root".to_owned()];
        if architecture != Architecture::default() {
            let name = architecture.debian();
            let folder = folder.join(format!("apt-{name}"));
            for part in ["state/lists/partial", "cache/archives/partial"] {
                let path = folder.join(part);
                fs::create_dir_all(&path).map_err(Error::file(path))?;
            }
            let status = folder.join("status");
            fs::write(&status, "").map_err(Error::file(&status))?;
            options.extend([
                format!("APT::Architecture={name}"),
                format!("APT::Architectures={name}"),
                format!("Dir::State={}", folder.join("state").display()),
                format!("Dir::State::status={}", status.display()),
                format!("Dir::Cache={}", folder.join("cache").display()),
            ]);
        }
        Ok(Self { options })
    }

    /// One of apt's programs.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.arg("-q");
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    /// Fetches fresh lists. Without the right to do so they stay as they are.
    pub(crate) fn update(&self) {
        let _ = self.program("apt-get").arg("update").output();
    }

    /// The package whose name begins with `prefix` on which `metapackage` depends.
    pub(crate) fn dependency(&self, metapackage: &str, prefix: &str) -> Option<String> {
        let output = self
            .program("apt-cache")
            .args(["depends", "--important", metapackage])
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        names.find(|name| name.starts_with(prefix)).map(str::to_owned)
    }

    /// Downloads a package into a folder and unpacks it there; installs nothing.
    pub(crate) fn download(&self, package: &str, folder: &Path) -> Result<PathBuf, Error> {
        run(self.program("apt-get").args(["download", package]).current_dir(folder))?;
        let file = only_entry(folder, package)?;
        let unpacked = folder.join("unpacked");
        run(Command::new("dpkg").arg("-x").arg(file).arg(&unpacked))?;
        Ok(unpacked)
    }
}

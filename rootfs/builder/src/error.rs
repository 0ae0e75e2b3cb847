//! What can go wrong while an image is built, each as one sentence for a person.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use cabana_store::StoreError;

/// An error of the builder. Its text says what failed, on what, why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No such flavour.
    #[error("there is no flavour '{name}'; there are {known}, and paths of .list files")]
    NoFlavour {
        /// What was asked for.
        name: String,
        /// The flavours that come with Cabana.
        known: String,
    },

    /// A flavour's definition cannot be understood.
    #[error("line {line} of the flavour '{flavour}' {problem}")]
    BadFlavour {
        /// The flavour.
        flavour: String,
        /// The line's number, from 1; 0 for the definition as a whole.
        line: usize,
        /// What is wrong, as the rest of a sentence.
        problem: String,
    },

    /// A program that the builder runs is not installed.
    #[error(
        "building an image needs {tool}, which is not installed: sudo apt-get install {package}"
    )]
    MissingTool {
        /// The program or file.
        tool: String,
        /// The Debian package that has it.
        package: &'static str,
    },

    /// The image is for another processor, whose programs do not run here.
    #[error(
        "an image for {architecture} cannot be built here, since its programs do not run ({why}); that takes \
         Linux 6.7 and QEMU's user mode: sudo apt-get install qemu-user-static"
    )]
    Foreign {
        /// Debian's name of the processor.
        architecture: String,
        /// What does not work.
        why: String,
    },

    /// Images are made with tools of Linux.
    #[error(
        "images are built on Linux: build it there, and copy the folder image/NAME of that store into the \
         store here (cabana doctor says where it is)"
    )]
    NotLinux,

    /// Packages can only be unpacked, with their owners and permissions, by root.
    #[error("building an image needs root, to unpack packages with their owners: use sudo -E")]
    NeedsRoot,

    /// The host's apt has no source of the suite that is signed by Debian.
    #[error(
        "apt's configuration has no source of Debian's {suite} (looked in {searched}); give a \
         sources file that has one"
    )]
    NoSource {
        /// The suite that is needed.
        suite: String,
        /// Which files were read.
        searched: String,
    },

    /// The packages cannot be fetched.
    #[error(
        "Debian's packages cannot be fetched ({detail}); check the network, the proxy settings \
         and apt's sources"
    )]
    Network {
        /// What apt said.
        detail: String,
    },

    /// The suite does not have a package of the flavour.
    #[error("Debian's {suite} has no package '{package}', which the flavour '{flavour}' names")]
    NoPackage {
        /// The suite.
        suite: String,
        /// The missing package.
        package: String,
        /// The flavour that names it.
        flavour: String,
    },

    /// No room left.
    #[error(
        "the disk is full: no room to build in {}; free some space, or set CABANA_HOME to a \
         folder on a larger disk", .0.display()
    )]
    Full(PathBuf),

    /// A tool failed for another reason.
    #[error("{tool} failed ({status}): {reason}")]
    Failed {
        /// The program.
        tool: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The line of its output that says why.
        reason: String,
        /// The end of its output.
        log: String,
    },

    /// The caller asked to stop.
    #[error("the build was stopped")]
    Cancelled,

    /// The store refused something.
    #[error(transparent)]
    Store(#[from] StoreError),

    /// Any other failure of the file system.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Attaches the action and the path to a failed system call.
pub(crate) trait Context<T> {
    /// Gives the error of an `action` on a `path`.
    fn context(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, BuildError>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, BuildError> {
        self.map_err(|source| {
            let path = path.as_ref().to_path_buf();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BuildError::Full(path),
                _ => BuildError::Io { action, path, source },
            }
        })
    }
}

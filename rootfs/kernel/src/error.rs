//! What can go wrong, in sentences for the person who waits for the kernel.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source tarball is not installed.
    #[error(
        "the kernel's source {path} is missing; install it with: apt-get install {package}",
        path = path.display()
    )]
    SourceMissing {
        /// Where it was looked for.
        path: PathBuf,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// Programs that the build needs are not installed.
    #[error(
        "the kernel cannot be built without {}; install with: apt-get install {}",
        programs.join(", "),
        packages.join(" ")
    )]
    ToolsMissing {
        /// The missing programs and headers.
        programs: Vec<String>,
        /// The Debian packages that have them.
        packages: Vec<String>,
    },
    /// A line of a fragment is neither an option nor a comment.
    #[error("{fragment}, line {line}: `{text}` is not of the form CONFIG_NAME=value")]
    BadFragment {
        /// The fragment's name.
        fragment: String,
        /// The line, from 1.
        line: usize,
        /// What it says.
        text: String,
    },
    /// The kernel's configuration system did not take what the fragments ask for.
    #[error(
        "the kernel's configuration dropped {} option(s) for unmet dependencies: {}",
        unmet.len(),
        unmet.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    OptionsDropped {
        /// Each option that does not hold.
        unmet: Vec<Unmet>,
    },
    /// Another build is at work in the same work folder.
    #[error("another kernel build uses {}; wait for it or choose another folder", .0.display())]
    Busy(PathBuf),
    /// A program of the build failed.
    #[error(
        "{step} failed ({status}); all of its output is in {log}, the end of it:\n{tail}",
        log = log.display()
    )]
    Failed {
        /// What was being done.
        step: &'static str,
        /// How the program ended.
        status: String,
        /// The file with everything that it wrote.
        log: PathBuf,
        /// The last lines that it wrote.
        tail: String,
    },
    /// The build ran but a file that it should have made is not there or not what it should be.
    #[error("the kernel build left no usable {path}: {reason}", path = path.display())]
    BadResult {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or folder could not be read or written.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

/// An option that a fragment asks for and the final configuration does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    /// Its name, with `CONFIG_`.
    pub option: String,
    /// The value asked for.
    pub wanted: String,
    /// The value that it has (`n` where it is not set).
    pub found: String,
    /// The fragment that asks.
    pub fragment: String,
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { option, wanted, found, fragment } = self;
        write!(f, "{option}={wanted} of {fragment} became {found}")
    }
}

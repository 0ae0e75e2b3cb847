//! Why a task could not be done, as a sentence.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

/// The exit status of a task that could not be done, as `cabana` itself uses it.
const OWN_FAILURE: u8 = 125;

/// Why a task could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The lab.
    #[error(transparent)]
    Lab(#[from] cabana_lab::Error),
    /// The store of artifacts.
    #[error(transparent)]
    Store(#[from] cabana_store::StoreError),
    /// The guest kernel's build.
    #[error("the guest kernel: {0}")]
    Kernel(#[from] cabana_kernel::Error),
    /// The root image's build.
    #[error("the root image: {0}")]
    Image(#[from] cabana_builder::BuildError),
    /// A program could not be started.
    #[error("cannot run `{program}`: {source}")]
    Start {
        /// Its name.
        program: String,
        /// What the system says.
        source: io::Error,
    },
    /// A program failed; what it says has been shown.
    #[error("`{command}` failed ({status})")]
    Tool {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// A file.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// Anything that one sentence says best.
    #[error("{0}")]
    Sentence(String),
}

impl Failure {
    /// For `map_err`: the file that was in work.
    pub(crate) fn file(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { path: path.as_ref().into(), source }
    }

    /// The exit status to end with: a shell's for a command that was not found, else 125.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Lab(cabana_lab::Error::NotStarted(failed)) => failed.kind.shell_code(),
            _ => OWN_FAILURE,
        })
    }
}

/// Runs a program to its success, its output going where ours goes.
pub(crate) fn succeed(command: &mut Command) -> Result<(), Failure> {
    let status = command.status().map_err(|source| start(command, source))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::Tool { command: words(command), status })
}

/// Runs a program to its success and returns its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String, Failure> {
    let output = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|source| start(command, source))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Failure::Tool { command: words(command), status: output.status })
}

fn start(command: &Command, source: io::Error) -> Failure {
    Failure::Start { program: command.get_program().to_string_lossy().into_owned(), source }
}

fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_is_named_with_its_arguments() {
        let failure = succeed(Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert_eq!(failure.to_string(), "`sh -c exit 3` failed (exit status: 3)");
        let failure = output(&mut Command::new("/nonexistent/tool")).unwrap_err();
        assert!(failure.to_string().starts_with("cannot run `/nonexistent/tool`: "), "{failure}");
    }
}

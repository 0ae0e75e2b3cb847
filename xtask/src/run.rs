//! `cargo xtask run`: `cabana run`, wherever it can run.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use cabana_lab::Options;

use crate::failure::Failure;
use crate::progress::say;
use crate::{in_lab, kvm, setup};

/// Sets up, then runs `cabana run` with these arguments: in this process's place where KVM can run
/// Linux, else in the lab.
pub(crate) fn run(arguments: Vec<OsString>) -> Result<ExitCode, Failure> {
    let cabana = setup::cabana()?;
    let Err(why) = kvm::runs_linux() else {
        let source = Command::new(&cabana).arg("run").args(&arguments).exec();
        return Err(Failure::Start { program: cabana.display().to_string(), source });
    };
    say(&format!("xtask: running in the lab, because {why}"));
    let mut writable = shared_folders(&arguments);
    writable.extend(in_lab::current_folder());
    let options = Options { writable, ..Options::default() };
    let mut argv = vec![cabana.into_os_string(), "run".into()];
    argv.extend(arguments);
    in_lab::run(&options, &argv)
}

/// The host folders of the `--share HOST[:GUEST][:ro]` options, which must be writable in the lab.
/// What is no folder is left to `cabana`, which says so.
fn shared_folders(arguments: &[OsString]) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut options = arguments.iter().take_while(|argument| *argument != "--");
    while let Some(argument) = options.next() {
        let share = match argument.as_bytes().strip_prefix(b"--share") {
            Some(b"") => options.next().map(|value| value.as_bytes()),
            Some([b'=', value @ ..]) => Some(value),
            _ => None,
        };
        let host = share.and_then(|share| share.split(|byte| *byte == b':').next());
        folders.extend(host.map(|host| PathBuf::from(OsStr::from_bytes(host))));
    }
    folders.retain(|folder| folder.is_dir());
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(line: &str) -> Vec<PathBuf> {
        shared_folders(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn shares_are_found_in_both_spellings() {
        let expected = [PathBuf::from("."), PathBuf::from("/usr"), PathBuf::from("/etc")];
        assert_eq!(folders("--share .:/src -it --share=/usr:ro --share /etc -- ls"), expected);
    }

    #[test]
    fn the_command_and_what_is_no_folder_are_left_alone() {
        assert!(folders("-- ls --share /usr").is_empty());
        assert!(folders("--share /nonexistent:/x --share").is_empty());
    }
}

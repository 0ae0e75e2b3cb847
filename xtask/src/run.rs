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
    let mut writable = written_folders(&arguments);
    writable.extend(in_lab::current_folder());
    let options = Options { writable, ..Options::default() };
    let mut argv = vec![cabana.into_os_string(), "run".into()];
    argv.extend(arguments);
    in_lab::run(cabana_lab::Architecture::default(), &options, &argv)
}

/// The folders that `cabana run` may write to, and which must therefore be writable in the lab: those
/// of `--share HOST[:GUEST][:ro]`, and those in which the files of `--disk` and `--trace-boot` stand.
/// What is no folder is left to `cabana`, which says so.
fn written_folders(arguments: &[OsString]) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut options = arguments.iter().take_while(|argument| *argument != "--");
    while let Some(argument) = options.next() {
        let (name, value) = match split_at_equals(argument) {
            Some((name, value)) => (name, Some(value)),
            None => (argument.as_bytes(), None),
        };
        if !matches!(name, b"--share" | b"--disk" | b"--trace-boot") {
            continue;
        }
        let Some(value) = value.or_else(|| options.next().map(|value| value.as_bytes())) else {
            continue;
        };
        let path = |bytes| PathBuf::from(OsStr::from_bytes(bytes));
        folders.extend(match name {
            b"--share" => value.split(|byte| *byte == b':').next().map(path),
            _ => path(value).parent().map(PathBuf::from),
        });
    }
    folders.retain(|folder| folder.is_dir());
    folders
}

fn split_at_equals(argument: &OsStr) -> Option<(&[u8], &[u8])> {
    let bytes = argument.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=')?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(line: &str) -> Vec<PathBuf> {
        written_folders(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn shares_are_found_in_both_spellings() {
        let expected = [PathBuf::from("."), PathBuf::from("/usr"), PathBuf::from("/etc")];
        assert_eq!(folders("--share .:/src -it --share=/usr:ro --share /etc -- ls"), expected);
    }

    #[test]
    fn files_that_are_written_need_their_folders() {
        let expected = [PathBuf::from("/etc"), PathBuf::from("/usr")];
        assert_eq!(folders("--disk /etc/work.disk --trace-boot=/usr/boot.json -- ls"), expected);
        assert!(folders("--disk here.disk --disk").is_empty());
    }

    #[test]
    fn the_command_and_what_is_no_folder_are_left_alone() {
        assert!(folders("-- ls --share /usr").is_empty());
        assert!(folders("--share /nonexistent:/x --share").is_empty());
    }
}

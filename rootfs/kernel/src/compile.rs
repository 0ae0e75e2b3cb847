//! Running the programs of the build: their output line by line, into a log and to the caller.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::Error;

/// Lines of output that an error shows.
const TAIL_LINES: usize = 25;

/// A child that does not outlive its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program in a clean environment (the caller's PATH, C locale, and what `command` sets
/// itself) until it ends; its standard output and error go line by line to `log` and `on_line`.
///
/// Its standard input is the lock on the work folder: should this process be killed, the folder
/// stays taken until the program, which then fails at its next line of output, is gone too.
pub(crate) fn run(
    step: &'static str,
    command: &mut Command,
    lock: &File,
    log: &Path,
    on_line: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    let mut log_file = File::create(log).map_err(Error::io("create", log))?;
    let own: Vec<_> = command
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    command.env_clear().envs(own).env("LC_ALL", "C").env("TZ", "UTC");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }

    let failed =
        |status: String, tail: String| Error::Failed { step, status, log: log.to_path_buf(), tail };
    let cannot = |error: io::Error| failed("could not run".to_owned(), error.to_string());
    let (reader, writer) = io::pipe().map_err(cannot)?;
    let second_writer = writer.try_clone().map_err(cannot)?;
    let lock = lock.try_clone().map_err(cannot)?;
    command.stdin(lock).stdout(writer).stderr(second_writer);
    let mut child = Running(command.spawn().map_err(cannot)?);
    // The command keeps its ends of the pipe otherwise, and the output never ends.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());

    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    let mut reader = BufReader::new(reader);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(cannot)? == 0 {
            break;
        }
        log_file.write_all(&bytes).map_err(Error::io("write", log))?;
        let line = String::from_utf8_lossy(&bytes);
        let line = line.trim_end();
        on_line(line);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line.to_owned());
    }
    let status = child.0.wait().map_err(cannot)?;
    if status.success() {
        Ok(())
    } else {
        Err(failed(status.to_string(), Vec::from(tail).join("\n")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock() -> File {
        File::open("/dev/null").unwrap()
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_and_errors_arrive_line_by_line_and_in_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut lines = Vec::new();
        run(
            "a step",
            &mut shell("echo one; echo two >&2; printf three"),
            &lock(),
            &log,
            &mut |line| {
                lines.push(line.to_owned());
            },
        )
        .unwrap();
        assert_eq!(lines, ["one", "two", "three"]);
        assert_eq!(std::fs::read_to_string(log).unwrap(), "one\ntwo\nthree");
    }

    #[test]
    fn a_failure_shows_the_status_and_the_end_of_the_output() {
        let folder = tempfile::tempdir().unwrap();
        let script = "for i in $(seq 100); do echo line $i; done; exit 3";
        let error =
            run("a step", &mut shell(script), &lock(), &folder.path().join("log"), &mut |_| {})
                .unwrap_err();
        let Error::Failed { step, status, tail, .. } = error else { panic!("{error}") };
        assert_eq!((step, status.as_str()), ("a step", "exit status: 3"));
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("line 100"), "{tail}");
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("/nonexistent/make");
        let error = run("a step", &mut command, &lock(), &folder.path().join("log"), &mut |_| {});
        assert!(matches!(error, Err(Error::Failed { .. })));
    }

    #[test]
    fn the_callers_environment_does_not_reach_the_build() {
        let folder = tempfile::tempdir().unwrap();
        let mut lines = Vec::new();
        let mut command = shell("env | sed 's/=.*//' | sort");
        command.env("KBUILD_BUILD_USER", "cabana");
        run("a step", &mut command, &lock(), &folder.path().join("log"), &mut |line| {
            lines.push(line.to_owned());
        })
        .unwrap();
        lines.retain(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(&name.as_str()));
        assert_eq!(lines, ["KBUILD_BUILD_USER", "LC_ALL", "PATH", "TZ"]);
    }
}

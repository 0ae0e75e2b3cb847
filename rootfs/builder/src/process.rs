//! Running the tools: their output line by line, stopped on request, and dead when we are.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::BuildError;

/// Lines of a tool's output that are kept for an error.
const LOG_LINES: usize = 60;
/// How often a running tool's caller is asked whether to stop.
const CANCEL_INTERVAL: Duration = Duration::from_millis(100);
/// Where administrators' programs are, which an ordinary user's PATH may lack.
const MORE_PATHS: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// A program that the builder runs, and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
}

impl Tool {
    /// A command that runs the program in a plain environment.
    ///
    /// The program dies with the thread that starts it, however that ends.
    pub(crate) fn command(self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", self.name]);
        plain(&mut command);
        command
    }

    /// Like [`Self::command`], in process and mount namespaces of its own where the host allows
    /// that: then nothing that it starts and nothing that it mounts outlives it.
    pub(crate) fn isolated_command(self) -> Command {
        const NAMESPACES: [&str; 5] = ["unshare", "--pid", "--mount", "--fork", "--kill-child"];
        let mut probe = Command::new(NAMESPACES[0]);
        probe.args(&NAMESPACES[1..]).arg("true").stdout(Stdio::null()).stderr(Stdio::null());
        if !probe.status().is_ok_and(|status| status.success()) {
            return self.command();
        }
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(NAMESPACES).arg(self.name);
        plain(&mut command);
        command
    }

    /// Says which package is missing if the program is.
    pub(crate) fn check(self) -> Result<(), BuildError> {
        self.find().map(drop)
    }

    /// Where it is; the same if it is nowhere.
    pub(crate) fn find(self) -> Result<PathBuf, BuildError> {
        let path = search_path();
        let mut places = env::split_paths(&path).map(|folder| folder.join(self.name));
        let missing =
            || BuildError::MissingTool { tool: self.name.to_owned(), package: self.package };
        places.find(|place| place.is_file()).ok_or_else(missing)
    }

    /// Runs a command to its end, handing each line of its output to `on_line`.
    ///
    /// `room` is the folder that it writes to, for the error of a full disk.
    pub(crate) fn run(
        self,
        mut command: Command,
        room: &Path,
        cancel: &AtomicBool,
        on_line: &mut dyn FnMut(&str),
    ) -> Result<(), BuildError> {
        let failed =
            |source| BuildError::Io { action: "run", path: PathBuf::from(self.name), source };
        let (child, reader) = start(&mut command).map_err(failed)?;
        // The command holds the write end of the pipe: without this the output would never end.
        drop(command);
        let mut child = Guard(child);

        let (sender, lines) = mpsc::channel();
        let thread = thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                // Of a line that was written over, the last state counts.
                let line = line.trim_end().rsplit('\r').next().unwrap_or_default();
                if sender.send(line.to_owned()).is_err() {
                    return;
                }
            }
        });
        let mut log = VecDeque::new();
        loop {
            match lines.recv_timeout(CANCEL_INTERVAL) {
                Ok(line) => {
                    on_line(&line);
                    log.push_back(line);
                    if log.len() > LOG_LINES {
                        log.pop_front();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if cancel.load(Ordering::Relaxed) {
                return Err(BuildError::Cancelled);
            }
        }
        let _ = thread.join();
        let status = child.0.wait().map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        let log: Vec<_> = log.into();
        if log.iter().any(|line| line.contains("No space left on device")) {
            return Err(BuildError::Full(room.to_path_buf()));
        }
        let reason = log.iter().find(|line| line.starts_with("E: ")).or(log.last());
        let reason = reason.map_or("it said nothing", |line| line.trim_start_matches("E: "));
        let reason = reason.to_owned();
        Err(BuildError::Failed { tool: self.name, status, reason, log: log.join("\n") })
    }
}

/// Starts a command with its output and its errors in one pipe.
fn start(command: &mut Command) -> io::Result<(Child, io::PipeReader)> {
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    Ok((command.spawn()?, reader))
}

/// Gives a command an environment that does not depend on the user's, but for proxies.
pub(crate) fn plain(command: &mut Command) {
    command.env_clear().env("PATH", search_path()).env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
    for (name, value) in env::vars_os() {
        if name.to_string_lossy().to_ascii_lowercase().ends_with("_proxy") {
            command.env(name, value);
        }
    }
    // ^C on the terminal is ours to handle.
    cabana_os::process::set_apart(command);
}

fn search_path() -> std::ffi::OsString {
    let mut path = env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    path.push(OsStr::new(":"));
    path.push(MORE_PATHS);
    path
}

/// Kills the process on drop, if it still runs.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const SHELL: Tool = Tool { name: "sh", package: "dash" };
    static GO_ON: AtomicBool = AtomicBool::new(false);

    fn run(script: &str, cancel: &AtomicBool) -> (Result<(), BuildError>, Vec<String>) {
        let mut lines = Vec::new();
        let mut command = SHELL.isolated_command();
        command.args(["-c", script]);
        let result = SHELL.run(command, Path::new("/room"), cancel, &mut |line| {
            lines.push(line.to_owned());
        });
        (result, lines)
    }

    #[test]
    fn output_and_errors_come_line_by_line() {
        let (result, lines) = run("echo one; printf '10%%\\r20%%\\n' >&2; echo three", &GO_ON);
        result.unwrap();
        assert_eq!(lines, ["one", "20%", "three"]);
    }

    #[test]
    fn failures_are_told_apart() {
        let (result, _) = run("echo 'I: x'; echo 'E: because'; echo 'E: failed'; exit 25", &GO_ON);
        let error = result.unwrap_err();
        assert_eq!(error.to_string(), "sh failed (exit status: 25): because");
        let (result, _) = run("echo 'cp: x: No space left on device'; exit 1", &GO_ON);
        let error = result.unwrap_err();
        assert!(matches!(error, BuildError::Full(_)), "{error}");
        let missing = Tool { name: "cabana-no-such-tool", package: "none" };
        assert!(matches!(missing.check(), Err(BuildError::MissingTool { .. })));
        SHELL.check().unwrap();
    }

    #[test]
    fn a_cancelled_tool_dies_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("alive");
        let script = format!("(while :; do date +%N >{}; done) & sleep 60", file.display());
        let cancel = AtomicBool::new(false);
        let start = Instant::now();
        let result = thread::scope(|scope| {
            let running = scope.spawn(|| run(&script, &cancel).0);
            while !file.exists() && start.elapsed().as_secs() < 20 {
                thread::sleep(Duration::from_millis(10));
            }
            cancel.store(true, Ordering::Relaxed);
            running.join().unwrap()
        });
        assert!(matches!(result, Err(BuildError::Cancelled)), "{result:?}");
        assert!(start.elapsed().as_secs() < 20);
        // Without namespaces (no CAP_SYS_ADMIN) only the tool itself is killed.
        let namespaces = Command::new("unshare").args(["--pid", "--fork", "true"]).output();
        if !namespaces.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped in part: namespaces need root");
            return;
        }
        std::fs::remove_file(&file).unwrap();
        thread::sleep(Duration::from_millis(200));
        assert!(!file.exists(), "a grandchild lives on");
    }
}

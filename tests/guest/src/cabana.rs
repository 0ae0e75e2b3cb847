//! Calls of the `cabana` command: what they print, how they end, and that they leave nothing behind.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::process::ExitStatusExt;
use tempfile::TempDir;

use crate::LIMIT;

/// The variable that marks what a call has started.
const MARK: &str = "CABANA_TEST_CALL";

/// A call in the making.
#[derive(Debug)]
pub struct Call {
    command: Command,
    input: Option<Vec<u8>>,
    mark: String,
    temporary: TempDir,
}

impl Call {
    /// A call of another program than the host's `cabana`, such as a copy of it.
    pub fn of_program<A: AsRef<OsStr>>(
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        Self::of(command)
    }

    /// The same call through another program, such as `unshare -m`, that runs its arguments.
    #[must_use]
    pub fn through<A: AsRef<OsStr>>(self, words: impl IntoIterator<Item = A>) -> Self {
        let mut words = words.into_iter();
        let program = words.next().expect("a program");
        let mut command = Command::new(program);
        command.args(words).arg(self.command.get_program()).args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        if let Some(folder) = self.command.get_current_dir() {
            command.current_dir(folder);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { command, ..self }
    }

    fn of(mut command: Command) -> Self {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        let number = CALLS.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}-{number}", std::process::id());
        let temporary = tempfile::tempdir().expect("a folder for temporary files");
        command
            .env(MARK, &mark)
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self { command, input: None, mark, temporary }
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets the folder.
    #[must_use]
    pub fn folder(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Gives it these bytes as its standard input.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self.open_input()
    }

    /// Gives it a standard input that [`Running::type_in`] writes to.
    #[must_use]
    pub fn open_input(mut self) -> Self {
        self.command.stdin(Stdio::piped());
        self
    }

    /// Gives it these as all of its standard streams.
    #[must_use]
    pub fn streams(mut self, streams: impl Fn() -> Stdio) -> Self {
        self.command.stdin(streams()).stdout(streams()).stderr(streams());
        self
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        let start = Instant::now();
        let mut child = self.command.spawn().expect("the program starts");
        // Our copies of what it was given would keep readers from the end.
        self.command = Command::new("");
        let mut stdin = child.stdin.take();
        if let Some(bytes) = self.input.take()
            && let Some(mut pipe) = stdin.take()
        {
            // A command that does not want its input is no failure.
            thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        let stdout = follow(child.stdout.take());
        let stderr = follow(child.stderr.take());
        let (mark, temporary) = (self.mark, self.temporary);
        let seen = Vec::new();
        Running { child, stdin, stdout, seen, stderr, mark, temporary, start, ended: false }
    }

    /// Starts it and waits for its end.
    pub fn end(self) -> Ended {
        self.start().end()
    }
}

/// A call that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Receiver<Vec<u8>>,
    seen: Vec<u8>,
    stderr: Receiver<Vec<u8>>,
    mark: String,
    temporary: TempDir,
    start: Instant,
    ended: bool,
}

impl Running {
    /// Waits until its standard output has this in it; returns all of the output so far.
    pub fn wait_for(&mut self, text: &str) -> String {
        let end = Instant::now() + LIMIT;
        loop {
            let seen = String::from_utf8_lossy(&self.seen);
            if seen.contains(text) {
                return seen.into_owned();
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.stdout.recv_timeout(left) {
                Ok(line) => self.seen.extend(line),
                Err(error) => {
                    let seen = seen.into_owned();
                    let _ = self.child.kill();
                    let errors = gather(&self.stderr, Vec::new());
                    let errors = String::from_utf8_lossy(&errors);
                    panic!("no {text:?} ({error}) in {seen:?}; on stderr {errors:?}");
                }
            }
        }
    }

    /// Writes to its standard input.
    pub fn type_in(&mut self, bytes: impl AsRef<[u8]>) {
        let stdin = self.stdin.as_mut().expect("an open input");
        stdin.write_all(bytes.as_ref()).expect("it takes input");
    }

    /// Ends its standard input.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// Closes our end of its standard output: nobody reads on.
    pub fn close_output(&mut self) {
        self.stdout = mpsc::channel().1;
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it still runs");
    }

    /// Waits for its end, and makes sure that nothing of it is left.
    pub fn end(self) -> Ended {
        self.end_within(LIMIT)
    }

    /// The same for what takes long.
    pub fn end_within(mut self, limit: Duration) -> Ended {
        let end = Instant::now() + limit;
        self.stdin = None;
        let status = loop {
            match self.child.try_wait().expect("its status") {
                Some(status) => break status,
                None if Instant::now() > end => {
                    let _ = self.child.kill();
                    let output = gather(&self.stdout, std::mem::take(&mut self.seen));
                    let errors = gather(&self.stderr, Vec::new());
                    panic!(
                        "it does not end; it said {:?} and {:?}",
                        String::from_utf8_lossy(&output),
                        String::from_utf8_lossy(&errors)
                    );
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        self.ended = true;
        let took = self.start.elapsed();
        let stdout = gather(&self.stdout, std::mem::take(&mut self.seen));
        let stderr = String::from_utf8_lossy(&gather(&self.stderr, Vec::new())).into_owned();
        assert_eq!(processes(&self.mark), Vec::<PathBuf>::new(), "processes are left; {stderr}");
        let files: Vec<_> = fs::read_dir(self.temporary.path()).expect("it is ours").collect();
        assert!(files.is_empty(), "temporary files are left: {files:?}; {stderr}");
        Ended { status, stdout, stderr, took }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A call that has ended.
#[derive(Debug)]
pub struct Ended {
    status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// And to standard error.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Ended {
    /// Its exit status; 1000 + n if signal n ended `cabana` itself.
    pub fn status(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 1000 + self.status.signal().unwrap_or(0))
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Insists on status 0 and silence on standard error; returns standard output.
    pub fn succeeded(self) -> String {
        let text = self.text();
        assert_eq!(self.status(), 0, "stdout {text:?}, stderr {:?}", self.stderr);
        assert_eq!(self.stderr, "", "stdout {text:?}");
        text
    }

    /// Insists on a status, no output, and one sentence on standard error with all of these words in
    /// it; returns the sentence.
    pub fn failed_with(self, status: i32, words: &[&str]) -> String {
        assert_eq!(self.text(), "", "output of a failure: {self:?}");
        self.complained_with(status, words)
    }

    /// As [`Self::failed_with`], whatever came on standard output.
    pub fn complained_with(self, status: i32, words: &[&str]) -> String {
        println!("{} after {:?}: {}", self.status(), self.took, self.stderr.trim_end());
        assert_eq!(self.status(), status, "{self:?}");
        let sentence = self.stderr.trim_end();
        assert!(sentence.starts_with("cabana: "), "{sentence:?}");
        assert!(!sentence.contains('\n'), "more than one line: {sentence:?}");
        for word in words {
            assert!(sentence.contains(word), "no {word:?} in {sentence:?}");
        }
        self.stderr
    }
}

/// Everything that is still to come, after what is there.
fn gather(lines: &Receiver<Vec<u8>>, mut bytes: Vec<u8>) -> Vec<u8> {
    while let Ok(more) = lines.recv_timeout(Duration::from_secs(5)) {
        bytes.extend(more);
    }
    bytes
}

/// Reads a pipe on a thread of its own.
fn follow(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (send, receive) = mpsc::sync_channel(64);
    if let Some(pipe) = pipe {
        thread::spawn(move || {
            let mut pipe = BufReader::with_capacity(64 << 10, pipe);
            loop {
                let bytes = match pipe.fill_buf() {
                    Ok([]) => return,
                    Ok(bytes) => bytes.to_vec(),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => return,
                };
                pipe.consume(bytes.len());
                if send.send(bytes).is_err() {
                    return;
                }
            }
        });
    }
    receive
}

/// Processes that carry a call's mark, once those that are just ending have had time to do so.
fn processes(mark: &str) -> Vec<PathBuf> {
    let wanted = format!("{MARK}={mark}");
    let marked = |process: &Path| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
    };
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        let entries = fs::read_dir("/proc").expect("/proc");
        let paths = entries.flatten().map(|entry| entry.path());
        let left: Vec<_> = paths.filter(|path| marked(path)).collect();
        if left.is_empty() || Instant::now() > end {
            return left;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

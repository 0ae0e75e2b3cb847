//! A process from just before its start to its end, on the monotonic clock.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::Error;

/// How long the kernel may take to take apart what a process has left behind, such as a VM; the next one is not to pay for it.
const REST: Duration = Duration::from_millis(50);

/// The monotonic clock: in the lab's instruction clock one nanosecond an instruction.
pub fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A process that ran to its end.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Just before it was started.
    pub start: Duration,
    /// When its first byte of output was read, if there was one.
    pub first_output: Option<Duration>,
    /// When its end was seen.
    pub end: Duration,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A process that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    start: Duration,
    child: Child,
    program: String,
}

/// Starts a process without input.
pub fn start(command: &mut Command) -> Result<Running, Error> {
    let program = name(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = now();
    match command.spawn() {
        Ok(child) => Ok(Running { start, child, program }),
        Err(source) => Err(Error::Start { program, source }),
    }
}

/// Runs a process to its end, which has to be this exit code.
pub fn run(command: &mut Command, code: i32) -> Result<Ended, Error> {
    let ended = start(command)?.finish()?;
    if ended.status.code() == Some(code) {
        return Ok(ended);
    }
    let what = format!("ended with {} in place of exit status {code}", ended.status);
    Err(Error::Behaviour { program: name(command), what, said: ended.stderr })
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

impl Running {
    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its next byte of output.
    pub fn next_byte(&mut self) -> Result<(), Error> {
        let failed = |source| Error::Start { program: self.program.clone(), source };
        let mut byte = [0];
        let stdout = self.child.stdout.as_mut();
        let count = stdout.map_or(Ok(0), |stdout| stdout.read(&mut byte)).map_err(failed)?;
        if count == 1 {
            return Ok(());
        }
        let mut said = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            let _ = stderr.read_to_string(&mut said);
        }
        let what = "ended without more output".to_owned();
        Err(Error::Behaviour { program: self.program.clone(), what, said })
    }

    fn finish(mut self) -> Result<Ended, Error> {
        let failed = |source| Error::Start { program: self.program.clone(), source };
        let stderr = self.child.stderr.take();
        // Little and late if at all, so that this thread sleeps through what is measured.
        let errors = thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.map(|mut stderr| stderr.read_to_end(&mut text));
            String::from_utf8_lossy(&text).into_owned()
        });
        let (mut stdout, mut first_output) = (Vec::new(), None);
        if let Some(mut pipe) = self.child.stdout.take() {
            let mut buffer = [0; 4096];
            loop {
                let count = pipe.read(&mut buffer).map_err(failed)?;
                if count == 0 {
                    break;
                }
                first_output.get_or_insert_with(now);
                stdout.extend_from_slice(&buffer[..count]);
            }
        }
        let status = self.child.wait().map_err(failed)?;
        let end = now();
        thread::sleep(REST);
        let stderr = errors.join().unwrap_or_default();
        let stdout = String::from_utf8_lossy(&stdout).into_owned();
        Ok(Ended { start: self.start, first_output, end, status, stdout, stderr })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// Milliseconds from the start to a moment.
    pub fn ms_to(&self, moment: Duration) -> f64 {
        moment.saturating_sub(self.start).as_secs_f64() * 1e3
    }

    /// Milliseconds from the start to the end.
    pub fn ms(&self) -> f64 {
        self.ms_to(self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_come_in_order_and_output_is_kept() {
        let mut command = Command::new("sh");
        let ended = run(command.args(["-c", "echo out; sleep 0.05; echo err >&2"]), 0).unwrap();
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("out\n", "err\n"));
        let first = ended.first_output.unwrap();
        assert!(ended.start < first && first + Duration::from_millis(40) < ended.end);
    }

    #[test]
    fn another_exit_status_is_an_error_with_the_last_words() {
        let error = run(Command::new("sh").args(["-c", "echo why >&2; exit 3"]), 0).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains("why"), "{text}");
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let mut running = start(Command::new("sh").args(["-c", "echo up; sleep 60"])).unwrap();
        running.next_byte().unwrap();
        let proc = format!("/proc/{}", running.id());
        drop(running);
        assert!(!std::path::Path::new(&proc).exists());
    }
}

//! A benchmark in the lab: begun once more where it says nothing any more.

use std::ffi::OsString;
use std::io::{self, Read};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;

use cabana_lab::{Lab, Options, Parts};

use super::Clock;
use crate::cargo;
use crate::failure::Failure;
use crate::lines::follow;
use crate::progress::say;

/// No figure takes as long. It is more likely the lab's software processor that hangs.
const SILENCE: Duration = Duration::from_secs(10 * 60);

/// Runs a command in the lab and returns its standard output.
pub(super) fn run(argv: &[OsString], clock: Clock) -> Result<Vec<u8>, Failure> {
    let parts = Parts::prepare(&mut |step| say(&format!("lab: {step}")))?;
    // The programs to measure lie there, perhaps under `/tmp`, of which the machine has its own.
    let writable = vec![cargo::target_folder()];
    let instruction_clock = clock == Clock::Instructions;
    let options = Options { instruction_clock, writable, ..Options::default() };
    for _ in 0..2 {
        let lab = Lab::start(&parts, &options)?;
        if let Some(output) = once(&lab, argv, SILENCE)? {
            return Ok(output);
        }
        say(&format!("bench: the lab's machine is stuck; its autopsy:\n{}", lab.autopsy()));
    }
    let minutes = SILENCE.as_secs() / 60;
    Err(Failure::Sentence(format!(
        "the benchmark in the lab said nothing for {minutes} minutes, twice"
    )))
}

/// The same in a lab that is there. `None` if it falls silent: what it is at goes on until the lab ends.
fn once(lab: &Lab, argv: &[OsString], silence: Duration) -> Result<Option<Vec<u8>>, Failure> {
    let (mut output, stdout) = io::pipe().map_err(Failure::file("a pipe"))?;
    let (progress, stderr) = io::pipe().map_err(Failure::file("a pipe"))?;
    let command = cabana_lab::Command::new(argv).cwd("/").stdout(stdout).stderr(stderr);
    let running = lab.spawn(command)?;
    let figures = thread::spawn(move || {
        let mut figures = Vec::new();
        output.read_to_end(&mut figures).map(|_| figures)
    });
    let progress = follow(progress);
    loop {
        match progress.recv_timeout(silence) {
            Ok(line) => say(&line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                // To wait for it would be to wait for ever.
                std::mem::forget(running);
                return Ok(None);
            }
        }
    }
    let figures = figures.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    match running.wait()?.shell_code() {
        0 => Ok(Some(figures.map_err(Failure::file("a pipe"))?)),
        status => Err(Failure::Sentence(format!("the benchmark in the lab ended with {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_nothing_is_given_up_and_what_speaks_is_not() {
        let parts = Parts::prepare(&mut |_| {}).unwrap();
        let lab = Lab::start(&parts, &Options::default()).unwrap();
        let run = |script: &str| {
            let argv = ["/bin/sh", "-c", script].map(OsString::from);
            once(&lab, &argv, Duration::from_secs(10))
        };
        let speaks = "for i in 1 2 3; do sleep 5; echo still there >&2; done; echo 42";
        assert_eq!(run(speaks).unwrap(), Some(b"42\n".to_vec()));
        assert_eq!(run("sleep 300").unwrap(), None);
        assert!(run("exit 3").unwrap_err().to_string().contains("ended with 3"));
    }
}

//! Runs one test binary, here or in the lab.

use std::cell::RefCell;
use std::io;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use cabana_lab::{Architecture, Lab};

use super::build::Binary;
use super::cross::Interpreter;
use super::libtest::Report;
use crate::failure::{Failure, succeed};
use crate::lines::follow;
use crate::progress::say;

/// A binary that says nothing for this long hangs: libtest speaks at each test's end. The slowest
/// test boots a guest in the lab some dozens of times.
const SILENCE: Duration = Duration::from_secs(15 * 60);

/// In the lab this is enough, and more likely it is the lab's software processor that hangs.
const LAB_SILENCE: Duration = Duration::from_secs(5 * 60);

/// Where a binary runs.
pub(super) enum Place {
    /// On this machine.
    Here,
    /// On this machine, by what runs programs for another.
    Through(Interpreter),
    /// In the lab of a processor, whose machine is replaced when it hangs.
    Lab(Architecture, RefCell<Lab>),
}

impl Place {
    /// For people.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Through(interpreter) => interpreter.name,
            Self::Lab(Architecture::X86_64, _) => "lab",
            Self::Lab(Architecture::Arm64, _) => "Arm lab",
        }
    }
}

/// Runs a binary, says in a line what came of it, and shows what failing tests printed. Returns what it printed,
/// too.
pub(super) fn run(binary: &Binary, place: &Place, long: bool) -> Result<(Report, String), Failure> {
    let name = if binary.is_integration_test {
        format!("{}::{}", binary.package, binary.target)
    } else {
        binary.package.clone()
    };
    let mut arguments = vec!["--show-output"];
    if long {
        arguments.push("--include-ignored");
    }
    let start = Instant::now();
    let ended = match place {
        Place::Here => here(Command::new(&binary.executable), binary, &arguments)?,
        Place::Through(interpreter) => {
            let run = || {
                if let [program, arguments @ ..] = interpreter.before {
                    let mut before = Command::new(program);
                    succeed(before.args(arguments).envs(interpreter.environment.iter().cloned()))?;
                }
                let mut command = Command::new(interpreter.program);
                command.arg(&binary.executable).envs(interpreter.environment.iter().cloned());
                command.args(interpreter.unable.iter().flat_map(|(test, _)| ["--skip", test]));
                here(command, binary, &arguments)
            };
            match run()? {
                // Libtest speaks before its first test.
                ended if ended.output.is_empty() => {
                    let how = ended.how;
                    say(&format!("{name}: did not start in {} ({how}); once more", place.name()));
                    run()?
                }
                ended => ended,
            }
        }
        Place::Lab(architecture, lab) => {
            in_lab_or_anew(*architecture, lab, &name, binary, &arguments)?
        }
    };
    let report = Report::read(&name, &ended.output).filter(|report| {
        // A binary that fails after its last test has failed all the same.
        report.failed > 0 || ended.how == "exit status: 0"
    });
    let report = report.unwrap_or_else(|| Report {
        failed: 1,
        failures: vec![format!("{name}: came to no proper end ({})", ended.how)],
        ..Report::default()
    });
    if report.failed > 0 {
        say(&ended.output);
    }
    if report != Report::default() {
        let seconds = start.elapsed().as_secs_f64();
        let Report { passed, failed, skipped, .. } = &report;
        say(&format!(
            "{name}: {passed} passed, {failed} failed, {skipped} skipped ({seconds:.1} s)"
        ));
    }
    Ok((report, ended.output))
}

/// A binary that ran.
struct Ended {
    output: String,
    /// Its exit status in words.
    how: String,
}

/// Runs a binary on this machine, by this command.
fn here(mut command: Command, binary: &Binary, arguments: &[&str]) -> Result<Ended, Failure> {
    let (reader, writer) = io::pipe().map_err(Failure::file("a pipe"))?;
    let both = writer.try_clone().map_err(Failure::file("a pipe"))?;
    command
        .args(arguments)
        .current_dir(&binary.folder)
        .env("CARGO_MANIFEST_DIR", &binary.folder)
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(both);
    let mut child = command.spawn().map_err(Failure::file(&binary.executable))?;
    // Our copies of the pipe's writing end would keep its reader from the end.
    drop(command);
    let (output, hung) = collect(&follow(reader), SILENCE);
    if hung {
        let _ = child.kill();
    }
    let status = child.wait().map_err(Failure::file(&binary.executable))?;
    Ok(Ended { output, how: if hung { hung_for(SILENCE) } else { status.to_string() } })
}

/// Runs a binary in the lab. If it falls silent, a new machine takes the lab's place and the binary
/// runs once more; a second silence is a failure.
fn in_lab_or_anew(
    architecture: Architecture,
    lab: &RefCell<Lab>,
    name: &str,
    binary: &Binary,
    arguments: &[&str],
) -> Result<Ended, Failure> {
    let first = in_lab(&lab.borrow(), binary, arguments)?;
    if let Some(ended) = first {
        return Ok(ended);
    }
    let minutes = LAB_SILENCE.as_secs() / 60;
    say(&format!("{name}: silent in the lab for {minutes} minutes; once more in a new machine"));
    lab.replace(super::start_lab(architecture)?);
    let second = in_lab(&lab.borrow(), binary, arguments)?;
    Ok(second.unwrap_or_else(|| Ended { output: String::new(), how: hung_for(LAB_SILENCE) }))
}

/// Runs a binary in the lab, one test at a time: its machine has one processor. `None` if it falls
/// silent.
fn in_lab(lab: &Lab, binary: &Binary, arguments: &[&str]) -> Result<Option<Ended>, Failure> {
    let (reader, writer) = io::pipe().map_err(Failure::file("a pipe"))?;
    let both = writer.try_clone().map_err(Failure::file("a pipe"))?;
    let command = cabana_lab::Command::new([binary.executable.as_os_str()])
        .args(arguments)
        .args(["--test-threads=1"])
        .cwd(&binary.folder)
        .env("CARGO_MANIFEST_DIR", binary.folder.as_os_str())
        .env("CABANA_LAB", "1")
        .stdout(writer)
        .stderr(both);
    let running = lab.spawn(command)?;
    let (output, hung) = collect(&follow(reader), LAB_SILENCE);
    if hung {
        say(&output);
        say(&format!("the lab's machine is stuck; its autopsy:\n{}", lab.autopsy()));
        // To wait for it would be to wait for ever; its machine is about to be ended.
        std::mem::forget(running);
        return Ok(None);
    }
    let how = match running.wait()? {
        cabana_lab::ExitStatus::Code(code) => format!("exit status: {code}"),
        cabana_lab::ExitStatus::Signal(signal) => format!("signal: {signal}"),
        cabana_lab::ExitStatus::TimedOut => "time over".to_owned(),
    };
    Ok(Some(Ended { output, how }))
}

fn hung_for(silence: Duration) -> String {
    format!("it said nothing for {} minutes", silence.as_secs() / 60)
}

/// Gathers lines to their end, or until none comes any more; whether it was so.
fn collect(lines: &Receiver<String>, silence: Duration) -> (String, bool) {
    let mut output = String::new();
    loop {
        match lines.recv_timeout(silence) {
            Ok(line) => {
                output.push_str(&line);
                output.push('\n');
            }
            Err(RecvTimeoutError::Disconnected) => return (output, false),
            Err(RecvTimeoutError::Timeout) => return (output, true),
        }
    }
}

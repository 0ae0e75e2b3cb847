//! Commands in a machine of the engine's API.

use std::thread;

use cabana_sandbox::{Command, Error, Machine, Process, ProcessEvent};

/// A command that has run.
#[derive(Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its exit status as a shell has it.
    pub status: u8,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// And to standard error.
    pub stderr: Vec<u8>,
}

impl Ran {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Insists on status 0; returns standard output.
    pub fn succeeded(self) -> String {
        let errors = String::from_utf8_lossy(&self.stderr);
        assert_eq!(self.status, 0, "stdout {:?}, stderr {errors:?}", self.text());
        self.text()
    }

    /// Insists on another status; returns standard error.
    pub fn failed(self) -> String {
        assert_ne!(self.status, 0, "stdout {:?}", self.text());
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// Runs a command to its end.
pub fn exec(machine: &Machine, command: &Command) -> Result<Ran, Error> {
    finish(&mut machine.exec(command)?)
}

/// Runs a command with this standard input to its end.
pub fn exec_with(machine: &Machine, command: &Command, input: Vec<u8>) -> Result<Ran, Error> {
    let mut process = machine.exec(&Command { stdin: true, ..command.clone() })?;
    let stdin = process.input();
    thread::scope(|scope| {
        scope.spawn(move || {
            stdin.write_stdin(&input);
            stdin.close_stdin();
        });
        finish(&mut process)
    })
}

/// Runs these words as a command to its end.
pub fn run<A: Into<Vec<u8>>>(machine: &Machine, words: impl IntoIterator<Item = A>) -> Ran {
    exec(machine, &Command::new(words)).expect("the machine runs commands")
}

/// Runs a script of the shell to its end.
pub fn sh(machine: &Machine, script: &str) -> Ran {
    run(machine, ["sh", "-ec", script])
}

/// Follows a command to its end.
pub fn finish(process: &mut Process) -> Result<Ran, Error> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match process.next_event()? {
            ProcessEvent::Started(_) => {}
            ProcessEvent::Stdout(bytes) => stdout.extend_from_slice(bytes),
            ProcessEvent::Stderr(bytes) => stderr.extend_from_slice(bytes),
            ProcessEvent::Exited(status) => {
                return Ok(Ran { status: status.shell_code(), stdout, stderr });
            }
            ProcessEvent::Detached => panic!("nobody has detached"),
        }
    }
}

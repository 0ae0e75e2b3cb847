//! What whole machines take of the host's memory, and how soon they give it back.

use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::process::{self, now};
use crate::report::{Report, Row, Summary};
use crate::{Error, memory, stage};

/// How long a machine is left alone before it is looked at.
const SETTLE: Duration = Duration::from_secs(10);

/// What a guest fills and frees.
const FILLED_MIB: u64 = 1024;
/// How much of it has to be back.
const BACK: f64 = 0.95;
/// How often is looked, and how long at most.
const STEP: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(60);

/// Targets.
const IDLE_MIB: f64 = 40.0;
const BACK_MS: f64 = 2000.0;

/// A byte when memory is full, a second later another one when it is free again.
const FILL_AND_FREE: &str = "
import sys, time
kept = bytearray(b'\\1') * (FILLED << 20)
print(end='f', flush=True)
time.sleep(1)
del kept
print(end='e', flush=True)
time.sleep(3600)
";

/// What is measured and with what.
#[derive(Debug)]
pub struct MachineMemory {
    /// The `cabana` program.
    pub cabana: PathBuf,
    /// A folder for files, on a file system in memory.
    pub work: PathBuf,
    /// Move into a root in memory first; see [`stage::enter`].
    pub stage: bool,
    /// How often memory is freed.
    pub runs: usize,
    /// The clock's name in the report.
    pub clock: String,
}

impl MachineMemory {
    /// Measures, with `progress` told what comes.
    pub fn measure(&self, progress: &dyn Fn(&str)) -> Result<Report, Error> {
        if self.stage {
            progress("copying everything into memory");
            stage::enter(&self.work.join("root"), &[&self.cabana])?;
        }
        progress("idle machines");
        let default = self.idle(&[])?;
        let ceiling = self.idle(&["--cpus", "4", "--memory", "4G"])?;
        let back = (1..=self.runs).map(|run| {
            progress(&format!("a machine that fills and frees memory, {run} of {}", self.runs));
            self.back()
        });
        let back = back.collect::<Result<Vec<f64>, Error>>()?;
        let row = |figure, unit, clock: &str, values: &[f64]| {
            Row::new(figure, unit, clock).values(Summary::of(values), None)
        };
        let rows = vec![
            row("an idle machine of 512 MiB and one vCPU: PSS in all", "MiB", "–", &[default]),
            row("an idle machine of 4 GiB and four vCPUs: PSS in all", "MiB", "–", &[ceiling])
                .target(IDLE_MIB),
            row("1 GiB freed in a guest: until 95 % is the host's", "ms", &self.clock, &back)
                .target(BACK_MS),
        ];
        Ok(Report { rows, ..Report::default() })
    }

    /// All of an idle machine's memory, in MiB.
    fn idle(&self, options: &[&str]) -> Result<f64, Error> {
        let mut command = Command::new(&self.cabana);
        command.arg("run").args(options);
        let idle = ["--", "sh", "-c", "echo up; exec sleep 3600"];
        let mut machine = process::start(command.args(idle))?;
        machine.next_byte()?;
        thread::sleep(SETTLE);
        memory::pss(&machine.id().to_string())
    }

    /// Milliseconds from the moment at which the guest has freed its memory.
    fn back(&self) -> Result<f64, Error> {
        let program = FILL_AND_FREE.replace("FILLED", &FILLED_MIB.to_string());
        let mut command = Command::new(&self.cabana);
        command.args(["run", "--memory", "1536M", "--", "python3", "-c", &program]);
        let mut machine = process::start(&mut command)?;
        let process = machine.id().to_string();
        machine.next_byte()?;
        let full = memory::pss(&process)?;
        machine.next_byte()?;
        let start = now();
        while full - memory::pss(&process)? < FILLED_MIB as f64 * BACK {
            if now().saturating_sub(start) > PATIENCE {
                let what = format!("has not given {FILLED_MIB} MiB back after {PATIENCE:?}");
                let program = self.cabana.display().to_string();
                return Err(Error::Behaviour { program, what, said: String::new() });
            }
            thread::sleep(STEP);
        }
        Ok(now().saturating_sub(start).as_secs_f64() * 1e3)
    }
}

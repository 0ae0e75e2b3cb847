//! What whole machines take of the host's memory, and how soon they give it back.

use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::process::{self, now};
use crate::report::{Moment, Report, Row, Series, Summary, middle};
use crate::sampler::{Point, Sampler, ms_since};
use crate::trace::of_runs;
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
/// How often is looked while memory is filled, and how long after it is back: for the picture alone.
const COARSE_STEP: Duration = Duration::from_millis(50);
const AFTERWARDS: Duration = Duration::from_secs(1);

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

/// One machine that filled and freed memory.
struct FilledAndFreed {
    /// Milliseconds until most of it was the host's.
    back_ms: f64,
    points: Vec<Point>,
    moments: Vec<Moment>,
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
        let runs = (1..=self.runs).map(|run| {
            progress(&format!("a machine that fills and frees memory, {run} of {}", self.runs));
            self.fill_and_free(FILLED_MIB)
        });
        let runs = runs.collect::<Result<Vec<FilledAndFreed>, Error>>()?;
        let back: Vec<f64> = runs.iter().map(|run| run.back_ms).collect();
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
        let series = middle(&runs, |run| run.back_ms).map(|run| Series {
            of: of_runs("a machine whose guest fills and frees 1 GiB, PSS", self.runs),
            clock: self.clock.clone(),
            unit: "MiB".to_owned(),
            points: run.points.clone(),
            moments: run.moments.clone(),
        });
        Ok(Report { rows, series: series.into_iter().collect(), ..Report::default() })
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

    /// One machine, from its start until a moment after its memory is back.
    fn fill_and_free(&self, filled_mib: u64) -> Result<FilledAndFreed, Error> {
        let program = FILL_AND_FREE.replace("FILLED", &filled_mib.to_string());
        let mut command = Command::new(&self.cabana);
        command.args(["run", "--memory", "1536M", "--", "python3", "-c", &program]);
        let begun = now();
        let mut machine = process::start(&mut command)?;
        let process = machine.id().to_string();
        let sampler = Sampler::start(&process, begun, COARSE_STEP);
        machine.next_byte()?;
        let full_ms = ms_since(begun);
        let full = memory::pss(&process)?;
        machine.next_byte()?;
        let start = now();
        let freed_ms = ms_since(begun);
        // From here on this thread looks itself, and alone: what it looks for is measured.
        let mut points = sampler.finish();
        let mut look = || {
            let mib = memory::pss(&process)?;
            points.push((ms_since(begun), mib));
            Ok::<f64, Error>(mib)
        };
        while full - look()? < filled_mib as f64 * BACK {
            if now().saturating_sub(start) > PATIENCE {
                let what = format!("has not given {filled_mib} MiB back after {PATIENCE:?}");
                let program = self.cabana.display().to_string();
                return Err(Error::Behaviour { program, what, said: String::new() });
            }
            thread::sleep(STEP);
        }
        let back_ms = ms_since(start);
        let end = now() + AFTERWARDS;
        while now() < end {
            thread::sleep(COARSE_STEP);
            look()?;
        }
        let moment = |name: &str, ms| Moment { name: name.to_owned(), ms };
        let moments = vec![
            moment("the guest has filled it", full_ms),
            moment("the guest has freed it", freed_ms),
            moment("95 % of it is the host's", freed_ms + back_ms),
        ];
        Ok(FilledAndFreed { back_ms, points, moments })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Runs the command of a `cabana run` as a process of this machine, which takes and frees memory, too.
    const WITHOUT_A_MACHINE: &str =
        "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done; shift; exec \"$@\"\n";

    #[test]
    fn what_is_filled_and_freed_is_in_the_curve_and_its_moments() {
        let folder = tempfile::tempdir().unwrap();
        let cabana = folder.path().join("cabana");
        fs::write(&cabana, WITHOUT_A_MACHINE).unwrap();
        fs::set_permissions(&cabana, Permissions::from_mode(0o755)).unwrap();
        let work = folder.path().to_owned();
        let memory =
            MachineMemory { cabana, work, stage: false, runs: 1, clock: "ordinary".to_owned() };
        let run = memory.fill_and_free(64).unwrap();
        let [filled, freed, back] = &run.moments[..] else { panic!("{:?}", run.moments) };
        assert!((back.ms - freed.ms - run.back_ms).abs() < 1e-9);
        // It keeps it for a second.
        assert!(freed.ms - filled.ms > 500.0, "{:?}", run.moments);
        assert!(run.points.is_sorted_by(|one, next| one.0 < next.0), "{:?}", run.points);
        let between = |from: f64, to: f64| {
            let within = run.points.iter().filter(move |point| from < point.0 && point.0 < to);
            within.map(|point| point.1).collect::<Vec<_>>()
        };
        let (kept, after) = (between(filled.ms, freed.ms), between(back.ms, f64::INFINITY));
        assert!(kept.len() > 2 && after.len() > 2, "{:?}", run.points);
        // Word of what has happened may come a little later than a look at it.
        let (kept, after) = (kept[kept.len() / 2], after[after.len() / 2]);
        assert!(kept - after > 64.0 * BACK, "{kept} and {after} in {:?}", run.points);
    }
}

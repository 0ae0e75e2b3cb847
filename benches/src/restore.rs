//! Machines out of a snapshot: how soon they answer, and what many of them take together.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use cabana_sandbox::{Command as GuestCommand, Machine, ProcessEvent, RestoreConfig, Timeline};

use crate::Error;
use crate::kvm_trace::KvmTrace;
use crate::process::{self, Running, now};
use crate::report::{self, ExitTable, Report, Row, Summary};
use crate::trace::{TraceExits, TracedStart};
use crate::{memory, stage};

/// Runs that are made and thrown away: in the first every file comes into the page cache.
const COLD_RUNS: usize = 2;
/// Machines that stand side by side.
const FORKS: usize = 10;
/// How long they are left alone before they are looked at.
const SETTLE: Duration = Duration::from_secs(5);

/// Targets, each for the median.
const RESTORE_MS: f64 = 6.0;
const FORK_MS: f64 = 3.0;
const FORK_MIB: f64 = 5.0;

/// What is measured and with what.
#[derive(Debug)]
pub struct Restore {
    /// The `cabana` program.
    pub cabana: PathBuf,
    /// A folder for files, on a file system in memory.
    pub work: PathBuf,
    /// Move into a root in memory first; see [`stage::enter`].
    pub stage: bool,
    /// Runs of each kind, besides the cold ones.
    pub runs: usize,
    /// The clock's name in the report.
    pub clock: String,
}

impl Restore {
    /// Measures, with `progress` told what comes.
    pub fn measure(&self, progress: &dyn Fn(&str)) -> Result<Report, Error> {
        if self.stage {
            progress("copying everything into memory");
            stage::enter(&self.work.join("root"), &[&self.cabana])?;
        }
        let snapshot = self.work.join("warm");
        progress("a snapshot of a machine that has run a command");
        let mut save = Command::new(&self.cabana);
        save.args(["snapshot", "save"]).arg(&snapshot);
        process::run(save.args(["--", "sh", "-c", "echo warm"]), 0)?;
        let mut rows = Vec::new();
        progress("starts from it, and cold ones");
        rows.extend(self.starts(&snapshot)?);
        progress("what a start is made of");
        let (phases, timeline) = self.phases(&snapshot)?;
        rows.extend(phases);
        progress("machines of one process");
        rows.extend(self.forks(&snapshot)?);
        progress("memory of machines side by side");
        rows.extend(self.memory(&snapshot)?);
        let mut exits = Vec::new();
        if let Some(trace) = KvmTrace::open() {
            progress("exits by kind");
            let mut command = self.from(&snapshot);
            command.args(["--", "echo", "here"]);
            let (_, counted) = trace.exits(|| process::run(&mut command, 0))?;
            let of = "cabana run --from -- echo, to its end".to_owned();
            exits.push(ExitTable { of, by_reason: counted.by_reason, to_user: counted.to_user });
        }
        Ok(Report { rows, exits, timelines: timeline.into_iter().collect(), ..Report::default() })
    }

    fn from(&self, snapshot: &Path) -> Command {
        let mut command = Command::new(&self.cabana);
        command.args(["run", "--from"]).arg(snapshot);
        command
    }

    fn starts(&self, snapshot: &Path) -> Result<Vec<Row>, Error> {
        let measure = |command: &dyn Fn() -> Command| {
            let run = || process::run(command().args(["--", "echo", "here"]), 0);
            let ended = self.warm(run)?;
            let first =
                ended.iter().map(|ended| ended.ms_to(ended.first_output.unwrap_or(ended.end)));
            let first: Vec<f64> = first.collect();
            let whole: Vec<f64> = ended.iter().map(process::Ended::ms).collect();
            Ok::<_, Error>((Summary::of(&first), Summary::of(&whole)))
        };
        let (restored, restored_end) = measure(&|| self.from(snapshot))?;
        let (cold, cold_end) = measure(&|| {
            let mut command = Command::new(&self.cabana);
            command.arg("run");
            command
        })?;
        Ok(vec![
            self.row("cabana run --from: process start to first output", "ms", restored)
                .target(RESTORE_MS),
            self.row("– to the process's end", "ms", restored_end),
            self.row("cabana run, cold: process start to first output", "ms", cold),
            self.row("– to the process's end", "ms", cold_end),
        ])
    }

    /// The marks of the timeline, each as the time since the one before.
    fn phases(&self, snapshot: &Path) -> Result<(Vec<Row>, Option<report::Timeline>), Error> {
        let file = self.work.join("trace.json");
        let starts = self.warm(|| TracedStart::run(&mut self.from(snapshot), &file))?;
        let timeline = TracedStart::timeline(&starts, "cabana run --from a snapshot", &self.clock);
        let traces = || starts.iter().map(|start| &start.trace);
        let Some(first) = traces().next() else { return Ok((Vec::new(), None)) };
        let mut rows = Vec::new();
        for (index, mark) in first.marks.iter().enumerate().skip(1) {
            let took = traces().filter_map(|trace| {
                let (before, this) = (trace.marks.get(index - 1)?, trace.marks.get(index)?);
                Some(this.ms - before.ms)
            });
            let took: Vec<f64> = took.collect();
            rows.push(self.row(&format!("– of it, to: {}", mark.name), "ms", Summary::of(&took)));
        }
        let exits = |value: fn(&TraceExits) -> Option<u64>| {
            let values = traces().filter_map(|trace| Some(value(trace.exits.as_ref()?)? as f64));
            Summary::of(&values.collect::<Vec<_>>())
        };
        rows.push(self.row("– all exits until ready", "exits", exits(|exits| exits.total)));
        let user = exits(|exits| Some(exits.to_user_space));
        rows.push(self.row("– exits to user space until ready", "exits", user));
        Ok((rows, timeline))
    }

    /// As an engine does it: the process is there already.
    fn forks(&self, snapshot: &Path) -> Result<Vec<Row>, Error> {
        let failed = |error: cabana_sandbox::Error| Error::Behaviour {
            program: "a machine of this process".to_owned(),
            what: "failed".to_owned(),
            said: error.to_string(),
        };
        let fork = || -> Result<f64, cabana_sandbox::Error> {
            let start = now();
            let machine = Machine::restore(&RestoreConfig {
                snapshot: snapshot.to_owned(),
                image: None,
                disk_folder: self.work.clone(),
                shares: Vec::new(),
                network: None,
                hostname: "fork".to_owned(),
                timeline: Arc::new(Timeline::new()),
                alone: false,
            })?;
            let mut process = machine.exec(&GuestCommand::new(["echo", "here"]))?;
            loop {
                match process.next_event()? {
                    ProcessEvent::Stdout(_) | ProcessEvent::Exited(_) => break,
                    _ => {}
                }
            }
            Ok(now().saturating_sub(start).as_secs_f64() * 1e3)
        };
        let took = self.warm(|| fork().map_err(failed))?;
        let figure = "a fork in a running process: to its command's first output";
        Ok(vec![self.row(figure, "ms", Summary::of(&took)).target(FORK_MS)])
    }

    fn memory(&self, snapshot: &Path) -> Result<Vec<Row>, Error> {
        let mut machines: Vec<Running> = Vec::new();
        let mut one = 0.0;
        while machines.len() < FORKS {
            let mut command = self.from(snapshot);
            let idle = ["--", "sh", "-c", "echo up; exec sleep 3600"];
            let mut machine = process::start(command.args(idle))?;
            machine.next_byte()?;
            machines.push(machine);
            if machines.len() == 1 {
                thread::sleep(SETTLE);
                one = pss(&machines)?;
            }
        }
        thread::sleep(SETTLE);
        let each = (pss(&machines)? - one) / (FORKS - 1) as f64;
        let single = |value: f64| Summary::of(&[value]);
        let mut rows = vec![
            self.row("an idle machine out of a snapshot: PSS in all", "MiB", single(one)),
            self.row("– each of nine more beside it", "MiB", single(each)).target(FORK_MIB),
        ];
        // No time is in these.
        for row in &mut rows {
            "–".clone_into(&mut row.clock);
        }
        Ok(rows)
    }

    fn warm<T>(&self, run: impl Fn() -> Result<T, Error>) -> Result<Vec<T>, Error> {
        for _ in 0..COLD_RUNS {
            run()?;
        }
        (0..self.runs).map(|_| run()).collect()
    }

    fn row(&self, figure: &str, unit: &str, cabana: Option<Summary>) -> Row {
        Row::new(figure, unit, &self.clock).values(cabana, None)
    }
}

/// The proportional set sizes of all of them, in MiB.
fn pss(machines: &[Running]) -> Result<f64, Error> {
    machines.iter().map(|machine| memory::pss(&machine.id().to_string())).sum()
}

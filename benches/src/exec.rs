//! Commands and sessions in a guest, beside what the guest's own kernel takes for a process.
//!
//! The measure is `fork` and `exec` of `/bin/true` by the guest's shell, without Cabana. A round trip is
//! measured on the host, from the request to the word of the command's end, so it has the way there and
//! back in it: vsock, two threads, and the agent.

use std::time::Instant;

use cabana_sandbox::{
    Command, Error as MachineError, KERNEL_FILE, Machine, MachineConfig, ProcessEvent, Scratch,
    SessionSpec,
};
use cabana_store::{Kind, Store};

use crate::Error;
use crate::memory::pss;
use crate::report::{Report, Row, Summary};

/// Processes of one run of the guest's shell.
const LOOP: u32 = 20;
/// Idle sessions whose memory is measured.
const IDLE: u32 = 100;
/// Runs of each kind that are not counted: files come from the disk, memory is touched first.
const COLD: usize = 2;

/// What the medians are to be at the most: times fork and exec, and MiB.
const CREATE_TARGET: f64 = 15.0;
const ROUND_TRIP_TARGET: f64 = 5.0;
const IDLE_TARGET: f64 = 1.0;

/// What was measured.
#[derive(Clone, Debug)]
pub struct Figures {
    /// `fork` and `exec` of `true` by the guest's shell, microseconds.
    pub spawn: Summary,
    /// A command in the machine itself, microseconds.
    pub in_machine: Summary,
    /// A command in a session that is there, microseconds.
    pub in_session: Summary,
    /// A session made, and a first command in it, microseconds.
    pub create: Summary,
    /// Removing a session, microseconds.
    pub remove: Summary,
    /// What one idle session costs the host, MiB.
    pub idle: f64,
}

/// Measures in a machine of the store's artifacts, in this process.
pub fn measure(runs: usize, tell: &dyn Fn(&str)) -> Result<Figures, Error> {
    let machine = start()?;
    tell("processes of the guest's shell");
    let spawn = repeat(runs, || spawn(&machine))?;
    tell("commands in the machine");
    let in_machine = repeat(runs, || timed(|| run(&machine, None)))?;
    tell("commands in a session");
    let guest = machine.guest();
    let named = |name: &str| SessionSpec { name: name.to_owned(), ..SessionSpec::default() };
    guest.create_session(&named("there")).map_err(failed)?;
    let in_session = repeat(runs, || timed(|| run(&machine, Some("there"))))?;
    tell("sessions with a first command");
    let mut removals = Vec::new();
    let create = repeat(runs, || {
        let made = timed(|| {
            guest.create_session(&named("fresh")).map_err(failed)?;
            run(&machine, Some("fresh"))
        })?;
        removals.push(timed(|| guest.remove_session("fresh").map_err(failed))?);
        Ok(made)
    })?;
    tell("idle sessions");
    let before = pss("self")?;
    for number in 0..IDLE {
        guest.create_session(&named(&format!("idle-{number}"))).map_err(failed)?;
    }
    let idle = (pss("self")? - before) / f64::from(IDLE);
    let remove = Summary::of(&removals[COLD..]).ok_or_else(nothing)?;
    machine.stop();
    Ok(Figures { spawn, in_machine, in_session, create, remove, idle })
}

fn start() -> Result<Machine, Error> {
    let wrong = |why: &dyn std::fmt::Display| Error::Content {
        path: "the store".into(),
        why: why.to_string(),
    };
    let store = Store::open().map_err(|error| wrong(&error))?;
    let file = |kind, name| {
        let artifact = store.find(kind, "default").map_err(|error| wrong(&error))?;
        artifact.file(name).map_err(|error| wrong(&error))
    };
    let config = MachineConfig {
        kernel: file(Kind::Kernel, KERNEL_FILE)?,
        agent: file(Kind::Agent, "agent.cpio")?,
        image: file(Kind::Image, "root.erofs")?,
        scratch: Scratch::Temporary {
            template: file(Kind::Image, "scratch.ext4")?,
            folder: std::env::temp_dir(),
        },
        ..MachineConfig::default()
    };
    Machine::start(&config).map_err(failed)
}

/// Runs `true` to its end.
fn run(machine: &Machine, session: Option<&str>) -> Result<(), Error> {
    let session = session.map(str::to_owned);
    output(machine, &Command { session, ..Command::new(["/bin/true"]) }).map(drop)
}

/// One run of the guest's shell: the microseconds of one process of its.
fn spawn(machine: &Machine) -> Result<f64, Error> {
    let script = format!(
        "b=$(date +%s%N); i=0; while [ $i -lt {LOOP} ]; do /bin/true; i=$((i+1)); done; \
         e=$(date +%s%N); echo $((e - b))"
    );
    let said = output(machine, &Command::new(["sh", "-c", &script]))?;
    let nanoseconds: f64 = said.trim().parse().map_err(|_| nothing())?;
    Ok(nanoseconds / 1e3 / f64::from(LOOP))
}

fn output(machine: &Machine, command: &Command) -> Result<String, Error> {
    let mut process = machine.exec(command).map_err(failed)?;
    let mut said = Vec::new();
    loop {
        match process.next_event().map_err(failed)? {
            ProcessEvent::Stdout(bytes) => said.extend_from_slice(bytes),
            ProcessEvent::Exited(status) if status.shell_code() == 0 => {
                return Ok(String::from_utf8_lossy(&said).into_owned());
            }
            ProcessEvent::Exited(_) | ProcessEvent::Detached => return Err(nothing()),
            ProcessEvent::Started(_) | ProcessEvent::Stderr(_) => {}
        }
    }
}

fn timed(work: impl FnOnce() -> Result<(), Error>) -> Result<f64, Error> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64() * 1e6)
}

fn repeat(runs: usize, mut measure: impl FnMut() -> Result<f64, Error>) -> Result<Summary, Error> {
    let all = (0..COLD + runs).map(|_| measure()).collect::<Result<Vec<_>, _>>()?;
    Summary::of(&all[COLD..]).ok_or_else(nothing)
}

#[allow(clippy::needless_pass_by_value, reason = "the shape of map_err")]
fn failed(error: MachineError) -> Error {
    Error::Content { path: "the machine".into(), why: error.to_string() }
}

fn nothing() -> Error {
    Error::Content { path: "the guest".into(), why: "it said nothing of use".to_owned() }
}

impl Figures {
    /// All of it, with a table of its own.
    pub fn report(&self, clock: &str) -> Report {
        let mut rows: Vec<Row> = Vec::new();
        for (what, summary, target) in self.times() {
            let row = Row::new(what, "µs", clock).values(Some(summary.clone()), None);
            rows.push(match target {
                Some(most) => row.target(most * self.spawn.median),
                None => row,
            });
        }
        let idle = Row::new(&format!("memory of one of {IDLE} idle sessions"), "MiB", "–");
        rows.push(idle.values(Summary::of(&[self.idle]), None).target(IDLE_TARGET));
        Report { rows, table: Some(self.markdown()), ..Report::default() }
    }

    /// What takes time, and how many times fork and exec it may take.
    fn times(&self) -> [(&'static str, &Summary, Option<f64>); 5] {
        [
            ("`fork` and `exec` of `true` by the guest's shell", &self.spawn, None),
            ("`true` in the machine, there and back", &self.in_machine, None),
            ("`true` in a session, there and back", &self.in_session, Some(ROUND_TRIP_TARGET)),
            ("a session made, and `true` in it", &self.create, Some(CREATE_TARGET)),
            ("a session removed", &self.remove, None),
        ]
    }

    /// A table for people.
    fn markdown(&self) -> String {
        let mut table = "| | least / median / greatest, µs | times fork and exec | target |\n\
                         |---|---|---|---|\n"
            .to_owned();
        for (what, Summary { min, median, max, .. }, target) in self.times() {
            let ratio = median / self.spawn.median;
            let target = target.map_or_else(String::new, |most| verdict(ratio, most));
            table += &format!(
                "| {what} | {min:.0} / {median:.0} / {max:.0} | {ratio:.1} | {target} |\n"
            );
        }
        let target = verdict(self.idle, IDLE_TARGET);
        table += &format!(
            "| memory of one of {IDLE} idle sessions | {:.2} MiB | | {target} |\n",
            self.idle
        );
        table
    }
}

fn verdict(value: f64, most: f64) -> String {
    format!("≤ {most} {}", if value <= most { "✓" } else { "✗" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_is_reached() {
        let of = |value| Summary::of(&[value]).unwrap();
        let figures = Figures {
            spawn: of(100.0),
            in_machine: of(150.0),
            in_session: of(600.0),
            create: of(1500.0),
            remove: of(900.0),
            idle: 0.25,
        };
        let report = figures.report("ordinary");
        let table = report.markdown();
        assert!(table.contains("| 600 / 600 / 600 | 6.0 | ≤ 5 ✗ |"), "{table}");
        assert!(table.contains("| 1500 / 1500 / 1500 | 15.0 | ≤ 15 ✓ |"), "{table}");
        assert!(table.contains("0.25 MiB | | ≤ 1 ✓"), "{table}");
        let reached: Vec<_> = report.rows.iter().map(Row::reached).collect();
        assert_eq!(reached, [None, None, Some(false), Some(true), None, Some(true)]);
    }
}

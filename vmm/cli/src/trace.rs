//! `--trace-boot`: when everything happened, as JSON for programs and as SVG for eyes.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use cabana_sandbox::{ExitCounts, Machine, Mark, Timeline};
use serde::Serialize;

use crate::Failure;

/// The mark of the command's first output, or of its end if it said nothing.
pub(crate) const FIRST_OUTPUT: &str = "first output";
const PROCESS_START: &str = "process start";
const KERNEL_DONE: &str = "agent's first instruction";
const AGENT_READY: &str = "agent is ready";

/// The process's start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start(Duration);

impl Start {
    /// To be called first of all.
    pub(crate) fn now() -> Self {
        Self(cabana_os::process::monotonic())
    }

    pub(crate) fn mark(self, timeline: &Timeline) {
        timeline.mark_at(PROCESS_START, self.0);
    }
}

/// What is known once the machine is ready, and where to write it in the end.
pub(crate) struct Recorder {
    path: PathBuf,
    start: Start,
    exits: Option<ExitCounts>,
    guest: Vec<(&'static str, Duration)>,
}

#[derive(Serialize)]
struct Report<'a> {
    /// Milliseconds since the process's start.
    marks: Vec<Event<'a>>,
    /// Exits until the agent was ready.
    exits: Option<Exits>,
}

#[derive(Serialize)]
struct Event<'a> {
    name: &'a str,
    ms: f64,
}

#[derive(Serialize)]
struct Exits {
    mmio_reads: u64,
    mmio_writes: u64,
    pio_reads: u64,
    pio_writes: u64,
    other: u64,
    to_user_space: u64,
    total: Option<u64>,
}

impl Recorder {
    /// Looks at the machine, which has just become ready.
    pub(crate) fn new(path: PathBuf, machine: &Machine, start: Start) -> Self {
        let seen = machine.observe();
        let clock = seen.and_then(|seen| seen.clock);
        let guest = clock.map_or_else(Vec::new, |clock| {
            let [agent, ready] = machine.guest_times(&clock);
            vec![(KERNEL_DONE, agent), (AGENT_READY, ready)]
        });
        Self { path, start, exits: seen.map(|seen| seen.exits), guest }
    }

    /// Writes both files.
    pub(crate) fn write(&self, timeline: &Timeline) -> Result<(), Failure> {
        for (name, at) in &self.guest {
            timeline.mark_at(name, *at);
        }
        let marks = timeline.marks();
        let exits = self.exits.map(|exits| Exits {
            mmio_reads: exits.mmio_reads,
            mmio_writes: exits.mmio_writes,
            pio_reads: exits.pio_reads,
            pio_writes: exits.pio_writes,
            other: exits.other,
            to_user_space: exits.to_user_space(),
            total: exits.total,
        });
        let events = marks.iter().map(|mark| Event { name: mark.name, ms: self.ms(mark) });
        let report = Report { marks: events.collect(), exits };
        let svg = self.svg(&marks, report.exits.as_ref());
        let failed = |path: &PathBuf, error: std::io::Error| {
            Failure::new(format!("cannot write the timeline to {}: {error}", path.display()))
        };
        let json = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(&self.path, json).map_err(|error| failed(&self.path, error))?;
        let picture = self.path.with_extension("svg");
        fs::write(&picture, svg).map_err(|error| failed(&picture, error))
    }

    fn ms(&self, mark: &Mark) -> f64 {
        mark.at.saturating_sub(self.start.0).as_secs_f64() * 1e3
    }

    /// A bar from each mark to the next, one under the other.
    fn svg(&self, marks: &[Mark], exits: Option<&Exits>) -> String {
        const ROW: usize = 26;
        const LEFT: f64 = 220.0;
        const WIDTH: f64 = 560.0;
        let total = marks.last().map_or(1.0, |mark| self.ms(mark)).max(1e-6);
        let height = ROW * (marks.len() + 2);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 900 {height}\" \
             font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"900\" height=\"{height}\" fill=\"white\"/>\n"
        );
        for (row, pair) in marks.windows(2).enumerate() {
            let (from, to) = (self.ms(&pair[0]), self.ms(&pair[1]));
            let (x, width) = (LEFT + from / total * WIDTH, ((to - from) / total * WIDTH).max(1.0));
            let y = ROW * (row + 1);
            let guest = from >= self.first_instruction(marks);
            let colour = if guest { "#3b82a0" } else { "#d08a3e" };
            let _ = writeln!(
                svg,
                "<text x=\"{:.0}\" y=\"{}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{x:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"16\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{}\">{:.2} ms</text>",
                LEFT - 10.0,
                y + 13,
                pair[1].name,
                y,
                x + width + 6.0,
                y + 13,
                to - from,
            );
        }
        let exits = exits.map_or(String::new(), |exits| {
            let total = exits.total.map_or("unknown".to_owned(), |total| total.to_string());
            format!("; exits until ready: {total}, {} to user space", exits.to_user_space)
        });
        let _ = writeln!(
            svg,
            "<text x=\"10\" y=\"{}\">{total:.2} ms in all{exits}</text>\n</svg>",
            height - 10
        );
        svg
    }

    fn first_instruction(&self, marks: &[Mark]) -> f64 {
        let first = marks.iter().find(|mark| mark.name == "first guest instruction");
        first.map_or(f64::INFINITY, |mark| self.ms(mark))
    }
}

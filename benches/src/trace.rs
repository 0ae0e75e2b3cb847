//! One start of `cabana run`, seen from outside and by its own `--trace-boot`.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

use crate::Error;
use crate::process;
use crate::report::{Moment, Timeline, middle};

/// Marks of the trace (docs/trace.md).
const PROCESS_START: &str = "process start";
const READY: &str = "ready";
const FIRST_OUTPUT: &str = "first output";
/// What the trace cannot know: its process is there, and its program not yet.
const SPAWNED: &str = "spawned";

/// What `cabana run --trace-boot` writes.
#[derive(Deserialize)]
pub(crate) struct Trace {
    pub(crate) marks: Vec<Moment>,
    pub(crate) exits: Option<TraceExits>,
}

#[derive(Deserialize)]
pub(crate) struct TraceExits {
    pub(crate) to_user_space: u64,
    pub(crate) total: Option<u64>,
}

/// A start with its trace.
pub(crate) struct TracedStart {
    pub(crate) trace: Trace,
    /// From just before the spawn to the moments, in milliseconds.
    pub(crate) ready_ms: f64,
    pub(crate) first_output_ms: f64,
    /// From there to the program's first line, from which the trace counts: the difference at the
    /// first output, which both sides see.
    loading_ms: f64,
}

impl TracedStart {
    /// Runs a command in the machine of a `cabana run` with these options, and reads its trace.
    pub(crate) fn run(cabana_run: &mut Command, file: &Path) -> Result<Self, Error> {
        cabana_run.arg("--trace-boot").arg(file).args(["--", "echo", "here"]);
        let ended = process::run(cabana_run, 0)?;
        let trace = Trace::read(file)?;
        Self::of(trace, ended.ms_to(ended.first_output.unwrap_or(ended.end))).map_err(|mark| {
            let why = format!("it has no mark `{mark}`");
            Error::Content { path: file.to_owned(), why }
        })
    }

    /// With the moment of the first output as seen from outside; the name of a mark that is missing.
    fn of(trace: Trace, first_output_ms: f64) -> Result<Self, &'static str> {
        let mark = |name| {
            let found = trace.marks.iter().find(|mark| mark.name == name);
            found.map(|mark| mark.ms).ok_or(name)
        };
        let loading_ms = (first_output_ms - mark(FIRST_OUTPUT)?).max(0.0);
        let ready_ms = mark(READY)? + loading_ms;
        Ok(Self { trace, ready_ms, first_output_ms, loading_ms })
    }

    /// The timeline of the start in the middle by its first output.
    pub(crate) fn timeline(starts: &[Self], of: &str, clock: &str) -> Option<Timeline> {
        let start = middle(starts, |start| start.first_output_ms)?;
        let marks = start.trace.marks.iter();
        let marks =
            marks.map(|mark| Moment { name: mark.name.clone(), ms: mark.ms + start.loading_ms });
        Some(Timeline {
            of: of_runs(of, starts.len()),
            clock: clock.to_owned(),
            moments: [Moment { name: SPAWNED.to_owned(), ms: 0.0 }]
                .into_iter()
                .chain(marks)
                .collect(),
        })
    }
}

impl Trace {
    fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(Error::file(path))?;
        let mut trace: Self = serde_json::from_str(&text)
            .map_err(|error| Error::Content { path: path.to_owned(), why: error.to_string() })?;
        // Before it stand moments of the machine that a snapshot was made of.
        let start = trace.marks.iter().position(|mark| mark.name == PROCESS_START);
        trace.marks.drain(..start.unwrap_or(0));
        Ok(trace)
    }
}

/// What a picture is of: one run of several, that in the middle.
pub(crate) fn of_runs(of: &str, runs: usize) -> String {
    if runs == 1 { format!("{of}: one run") } else { format!("{of}: the median of {runs} runs") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(first_output_ms: f64, marks: &[(&str, f64)]) -> Result<TracedStart, &'static str> {
        let mark = |&(name, ms): &(&str, f64)| Moment { name: name.to_owned(), ms };
        let trace = Trace { marks: marks.iter().map(mark).collect(), exits: None };
        TracedStart::of(trace, first_output_ms)
    }

    #[test]
    fn the_timeline_is_the_middle_starts_and_counts_from_the_spawn() {
        let of = |output: f64| {
            start(output + 2.5, &[("process start", 0.0), ("ready", 7.0), ("first output", output)])
        };
        let starts: Vec<_> = [30.0, 10.0, 20.0].map(of).into_iter().map(Result::unwrap).collect();
        assert!((starts[0].ready_ms - 9.5).abs() < 1e-9);
        let timeline = TracedStart::timeline(&starts, "a start", "ordinary").unwrap();
        assert_eq!(timeline.of, "a start: the median of 3 runs");
        let moments: Vec<_> = timeline.moments.iter().map(|m| (m.name.as_str(), m.ms)).collect();
        let expected =
            [("spawned", 0.0), ("process start", 2.5), ("ready", 9.5), ("first output", 22.5)];
        assert_eq!(moments, expected);
        assert!(TracedStart::timeline(&[], "a start", "ordinary").is_none());
    }

    #[test]
    fn a_mark_that_is_missing_is_named() {
        assert_eq!(start(9.0, &[("ready", 7.0)]).err(), Some("first output"));
        assert_eq!(start(9.0, &[("first output", 8.0)]).err(), Some("ready"));
    }

    #[test]
    fn moments_from_before_the_process_are_not_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        let text = r#"{ "marks": [ { "name": "agent is ready", "ms": 0.0 },
            { "name": "process start", "ms": 0.0 }, { "name": "ready", "ms": 5.0 } ], "exits": null }"#;
        fs::write(&path, text).unwrap();
        let names: Vec<_> = Trace::read(&path).unwrap().marks.into_iter().map(|m| m.name).collect();
        assert_eq!(names, ["process start", "ready"]);
        fs::write(&path, "{").unwrap();
        assert!(matches!(Trace::read(&path), Err(Error::Content { .. })));
    }
}

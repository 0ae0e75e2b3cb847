//! What figures may be at most, in a file beside the code: a change that costs more than it should fails.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::Error;
use crate::report::{Report, Row};

/// The clock on which times repeat.
pub(crate) const STEADY_CLOCK: &str = "instructions";
/// A figure below this part of what it may be has a line in the budget that says too little.
const LOOSE: f64 = 0.9;

/// The most that each figure may be, by its key.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    most: BTreeMap<String, f64>,
}

/// One figure beside its budget.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Within it.
    Kept,
    /// Within it by so much that the budget should follow.
    Loose(f64),
    /// More than it may be.
    Exceeded(f64),
    /// A time on a clock on which times do not repeat.
    NotSteady,
    /// Nobody measured it.
    Missing,
}

impl Budget {
    /// Reads the file.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is not a table `most` of numbers.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(Error::file(path))?;
        toml::from_str(&text)
            .map_err(|error| Error::Content { path: path.to_owned(), why: error.to_string() })
    }

    /// Every figure of the budget, with what it may be and what came of it.
    pub fn judge(&self, report: &Report) -> Vec<(String, f64, Verdict)> {
        let judge = |(key, &most): (&String, &f64)| {
            let row = report.rows.iter().find(|row| row.key.as_ref() == Some(key));
            (key.clone(), most, row.map_or(Verdict::Missing, |row| verdict(row, most)))
        };
        self.most.iter().map(judge).collect()
    }
}

impl Verdict {
    /// Whether it lets a change pass.
    pub fn passes(&self) -> bool {
        !matches!(self, Self::Exceeded(_) | Self::Missing)
    }

    /// In words.
    pub fn text(&self) -> String {
        match self {
            Self::Kept => "kept".to_owned(),
            Self::Loose(value) => format!("kept: {value:.1}; lower the budget to keep it there"),
            Self::Exceeded(value) => format!("EXCEEDED: {value:.1}"),
            Self::NotSteady => "not judged: times repeat on the instruction clock only".to_owned(),
            Self::Missing => "MISSING: it was not measured".to_owned(),
        }
    }
}

fn verdict(row: &Row, most: f64) -> Verdict {
    if row.unit == "ms" && row.clock != STEADY_CLOCK {
        return Verdict::NotSteady;
    }
    // The least: the end of a process sometimes waits for ticks of the host's clock, which only add.
    match row.cabana.as_ref().map(|summary| summary.min) {
        None => Verdict::Missing,
        Some(value) if value > most => Verdict::Exceeded(value),
        Some(value) if value < most * LOOSE => Verdict::Loose(value),
        Some(_) => Verdict::Kept,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Summary;

    fn report(unit: &str, clock: &str, value: Option<f64>) -> Report {
        let row = Row {
            key: Some("start".to_owned()),
            figure: "a start".to_owned(),
            unit: unit.to_owned(),
            clock: clock.to_owned(),
            cabana: value.and_then(|value| Summary::of(&[value])),
            qemu: None,
            target: None,
        };
        Report { rows: vec![row], ..Report::default() }
    }

    fn judged(report: &Report) -> Verdict {
        let budget: Budget = toml::from_str("[most]\nstart = 100").unwrap();
        let [(key, most, verdict)] = &budget.judge(report)[..] else { panic!("one line") };
        assert_eq!((key.as_str(), *most), ("start", 100.0));
        verdict.clone()
    }

    #[test]
    fn more_than_the_budget_fails_and_much_less_is_said() {
        let exits = |value| judged(&report("exits", "–", Some(value)));
        assert_eq!(exits(100.0), Verdict::Kept);
        assert_eq!(exits(100.5), Verdict::Exceeded(100.5));
        assert_eq!(exits(89.0), Verdict::Loose(89.0));
        assert!(exits(89.0).passes() && !exits(101.0).passes());
    }

    #[test]
    fn what_was_not_measured_fails() {
        let verdict = judged(&report("exits", "–", None));
        assert_eq!(verdict, Verdict::Missing);
        assert!(!verdict.passes());
        assert_eq!(judged(&Report::default()), Verdict::Missing);
    }

    #[test]
    fn times_are_judged_on_the_clock_that_repeats() {
        assert_eq!(judged(&report("ms", "ordinary", Some(500.0))), Verdict::NotSteady);
        assert_eq!(judged(&report("ms", STEADY_CLOCK, Some(500.0))), Verdict::Exceeded(500.0));
    }

    #[test]
    fn a_file_that_is_no_budget_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budget.toml");
        fs::write(&path, "[most]\nstart = \"fast\"").unwrap();
        assert!(matches!(Budget::read(&path), Err(Error::Content { .. })));
        assert!(matches!(Budget::read(folder.path()), Err(Error::File { .. })));
    }
}

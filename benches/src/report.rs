//! What was measured, as JSON for programs and as a table for people.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// Least, middle and greatest of several runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The least.
    pub min: f64,
    /// The middle one; of an even number, the mean of the two.
    pub median: f64,
    /// The greatest.
    pub max: f64,
    /// How many there were.
    pub runs: usize,
    /// All of them in the order of the runs; none in files from before they were kept.
    #[serde(default)]
    pub values: Vec<f64>,
}

/// One figure, of Cabana and where it can be of QEMU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Its name in the budget, if it has one.
    #[serde(default)]
    pub key: Option<String>,
    /// What it is.
    pub figure: String,
    /// `ms`, `exits` or `MiB`.
    pub unit: String,
    /// The clock or the place, if it matters.
    pub clock: String,
    /// Cabana's.
    pub cabana: Option<Summary>,
    /// QEMU's.
    pub qemu: Option<Summary>,
    /// What Cabana's median is to be at the most.
    pub target: Option<f64>,
}

/// How often something happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Count {
    /// What.
    pub kind: String,
    /// How often.
    pub count: u64,
}

/// Exits by kind in one run of one VMM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExitTable {
    /// Which VMM did what.
    pub of: String,
    /// All exits by reason.
    pub by_reason: Vec<Count>,
    /// Those that reached the VMM.
    pub to_user: Vec<Count>,
}

/// One moment with a name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// What has just happened.
    pub name: String,
    /// When, in milliseconds.
    pub ms: f64,
}

/// The moments of one start, in their order, in milliseconds since its process was started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Timeline {
    /// What started, and which run it is.
    pub of: String,
    /// The clock.
    pub clock: String,
    /// The moments.
    pub moments: Vec<Moment>,
}

/// What one process took, over time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Series {
    /// What was looked at, and in which run.
    pub of: String,
    /// The clock.
    pub clock: String,
    /// `MiB`.
    pub unit: String,
    /// Milliseconds since the process was started, and how much it was then.
    pub points: Vec<(f64, f64)>,
    /// What happened meanwhile, on the same clock.
    pub moments: Vec<Moment>,
}

/// Everything that one program measured in one place.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Names and values of what it was measured in.
    pub environment: Vec<(String, String)>,
    /// The figures.
    pub rows: Vec<Row>,
    /// Exits by kind.
    pub exits: Vec<ExitTable>,
    /// Starts, moment by moment; none in files from before they were kept.
    #[serde(default)]
    pub timelines: Vec<Timeline>,
    /// Memory over time; the same.
    #[serde(default)]
    pub series: Vec<Series>,
    /// A table of its own in place of the usual one, as Markdown.
    #[serde(default)]
    pub table: Option<String>,
}

impl Summary {
    /// Of these; `None` of none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (runs, half) = (sorted.len(), sorted.len() / 2);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let median = if runs % 2 == 1 {
            sorted[half]
        } else {
            f64::midpoint(sorted[half - 1], sorted[half])
        };
        Some(Self { min, median, max, runs, values: values.to_vec() })
    }

    fn text(&self, unit: &str) -> String {
        let number = |value: f64| match unit {
            "exits" => format!("{value:.0}"),
            _ => format!("{value:.1}"),
        };
        if self.runs == 1 {
            return number(self.median);
        }
        let [min, median, max] = [self.min, self.median, self.max].map(number);
        format!("{min} / {median} / {max}")
    }
}

impl Row {
    /// A figure that has no values yet.
    pub(crate) fn new(figure: &str, unit: &str, clock: &str) -> Self {
        Self {
            key: None,
            figure: figure.to_owned(),
            unit: unit.to_owned(),
            clock: clock.to_owned(),
            cabana: None,
            qemu: None,
            target: None,
        }
    }

    pub(crate) fn values(self, cabana: Option<Summary>, qemu: Option<Summary>) -> Self {
        Self { cabana, qemu, ..self }
    }

    pub(crate) fn key(self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self }
    }

    pub(crate) fn target(self, target: f64) -> Self {
        Self { target: Some(target), ..self }
    }

    /// Whether the median reaches the target, if there are both.
    pub fn reached(&self) -> Option<bool> {
        Some(self.cabana.as_ref()?.median <= self.target?)
    }

    fn cells(&self) -> [String; 7] {
        let (cabana, qemu) = (self.cabana.as_ref(), self.qemu.as_ref());
        let text =
            |summary: Option<&Summary>| summary.map_or("–".to_owned(), |s| s.text(&self.unit));
        let ratio = cabana.zip(qemu).map(|(cabana, qemu)| cabana.median / qemu.median);
        [
            self.figure.clone(),
            self.clock.clone(),
            self.unit.clone(),
            text(cabana),
            text(qemu),
            ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
            match (self.target, self.reached()) {
                (Some(target), Some(true)) => format!("≤ {target} ✓"),
                (Some(target), Some(false)) => format!("≤ {target} ✗"),
                _ => String::new(),
            },
        ]
    }
}

const HEADINGS: [&str; 7] =
    ["figure", "clock", "unit", "Cabana", "QEMU microvm", "Cabana ÷ QEMU", "target"];

impl Report {
    /// Adds what another program measured.
    pub fn join(&mut self, other: Self) {
        self.environment.extend(other.environment);
        self.rows.extend(other.rows);
        self.exits.extend(other.exits);
        self.timelines.extend(other.timelines);
        self.series.extend(other.series);
        self.table = self.table.take().or(other.table);
    }

    /// As Markdown with the facts.
    pub fn markdown(&self) -> String {
        let mut text = self.table.clone().unwrap_or_else(|| self.usual_table());
        let facts = self.environment.iter().map(|(name, value)| format!("{name}: {value}"));
        let _ = write!(text, "\n{}.\n", facts.collect::<Vec<_>>().join("; "));
        text
    }

    /// As Markdown, whose columns are also straight on a terminal. Where several runs were made:
    /// least / middle / greatest.
    fn usual_table(&self) -> String {
        let rows: Vec<_> = self.rows.iter().map(Row::cells).collect();
        let mut text = table(HEADINGS, &rows);
        let several =
            |row: &Row| row.cabana.as_ref().or(row.qemu.as_ref()).is_some_and(|s| s.runs > 1);
        if self.rows.iter().any(several) {
            text += "\nLeast / middle / greatest of several warm runs; the ratio and the target are \
                     of the middle ones.\n";
        }
        for exits in &self.exits {
            let list = |counts: &[Count]| {
                let total: u64 = counts.iter().map(|count| count.count).sum();
                let kinds = counts.iter().map(|count| format!("{} {}", count.count, count.kind));
                format!("{total} ({})", kinds.collect::<Vec<_>>().join(", "))
            };
            let _ = write!(
                text,
                "\nExits, {}: {}; to user space: {}.\n",
                exits.of,
                list(&exits.by_reason),
                list(&exits.to_user)
            );
        }
        text
    }
}

/// The run in the middle by what `value` says of each; of an even number, the better of the two.
pub(crate) fn middle<T>(runs: &[T], value: impl Fn(&T) -> f64) -> Option<&T> {
    let mut sorted: Vec<&T> = runs.iter().collect();
    sorted.sort_by(|one, other| value(one).total_cmp(&value(other)));
    sorted.get(sorted.len().saturating_sub(1) / 2).copied()
}

/// A Markdown table with columns of equal width.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = headings.map(|heading| heading.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!(" {cell:width$} |"));
        format!("|{}\n", padded.collect::<String>())
    };
    let rule = widths.map(|width| "-".repeat(width + 2)).join("|");
    let mut text = format!("{}|{rule}|\n", line(headings));
    for row in rows {
        text += &line(row.each_ref().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cabana: &[f64], target: f64) -> Row {
        Row {
            key: None,
            figure: "start".to_owned(),
            unit: "ms".to_owned(),
            clock: "ordinary".to_owned(),
            cabana: Summary::of(cabana),
            qemu: Summary::of(&[20.0]),
            target: Some(target),
        }
    }

    #[test]
    fn the_middle_stands_in_the_middle() {
        let odd = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.min, odd.median, odd.max, odd.runs), (1.0, 2.0, 3.0, 3));
        assert!((Summary::of(&[4.0, 1.0]).unwrap().median - 2.5).abs() < 1e-9);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn the_run_in_the_middle_is_one_of_the_runs() {
        let of = |values: &[f64]| middle(values, |value| *value).copied();
        assert_eq!(of(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(of(&[4.0, 3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!((of(&[7.0]), of(&[])), (Some(7.0), None));
    }

    #[test]
    fn files_from_before_there_were_pictures_are_read() {
        let old = r#"{ "environment": [["Cabana", "abc"]], "exits": [], "rows": [ { "key": null,
            "figure": "start", "unit": "ms", "clock": "ordinary", "qemu": null, "target": 5.0,
            "cabana": { "min": 1.0, "median": 2.0, "max": 3.0, "runs": 3 } } ] }"#;
        let report: Report = serde_json::from_str(old).unwrap();
        assert_eq!(report.rows[0].cabana.as_ref().unwrap().values, [0.0; 0]);
        assert!(report.timelines.is_empty() && report.series.is_empty());
        assert!(report.markdown().contains("1.0 / 2.0 / 3.0"));
    }

    #[test]
    fn a_table_of_its_own_stands_in_place_of_the_usual_one() {
        let own = Report { table: Some("| own |\n".to_owned()), ..Report::default() };
        let mut report = Report { environment: vec![("at".to_owned(), "x".to_owned())], ..own };
        report.rows.push(row(&[1.0], 5.0));
        let mut joined = Report::default();
        joined.join(report);
        assert_eq!(joined.markdown(), "| own |\n\nat: x.\n");
    }

    #[test]
    fn all_runs_stay_in_their_order() {
        let json = serde_json::to_string(&row(&[3.0, 1.0, 2.0], 5.0)).unwrap();
        let row: Row = serde_json::from_str(&json).unwrap();
        assert_eq!(row.cabana.unwrap().values, [3.0, 1.0, 2.0]);
    }

    #[test]
    fn a_target_is_reached_by_the_median() {
        assert_eq!(row(&[9.0, 10.0, 99.0], 10.0).reached(), Some(true));
        assert_eq!(row(&[9.0, 10.1, 10.2], 10.0).reached(), Some(false));
        assert_eq!(row(&[], 10.0).reached(), None);
    }

    #[test]
    fn the_table_has_straight_columns_and_says_what_is_missing() {
        let mut report = Report { rows: vec![row(&[9.0, 10.0, 11.0], 8.0)], ..Report::default() };
        report.join(Report { rows: vec![row(&[], 8.0)], ..Report::default() });
        let text = report.markdown();
        let lines: Vec<_> = text.lines().take(4).collect();
        assert!(
            lines.iter().all(|line| line.chars().count() == lines[0].chars().count()),
            "{text}"
        );
        assert!(lines[2].contains("9.0 / 10.0 / 11.0") && lines[2].contains("0.50"), "{text}");
        assert!(lines[2].contains('✗') && lines[3].contains('–'), "{text}");
    }
}

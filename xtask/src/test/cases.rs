//! The table backend × case of the bare-metal suite.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// How the suite says what came of a case on a backend (`tests/hv`, `on_every_backend`):
/// `case: NAME on BACKEND: RESULT`.
const TOLD: &str = "case: ";

/// What came of each case on each backend, by the place where it ran.
#[derive(Debug, Default)]
pub(super) struct Cases {
    results: BTreeMap<String, BTreeMap<String, String>>,
    columns: BTreeSet<String>,
}

impl Cases {
    /// Takes what a binary's output tells. `place` says where it ran.
    pub(super) fn read(&mut self, binary: &str, place: &str, output: &str) {
        for line in output.lines().filter_map(|line| line.strip_prefix(TOLD)) {
            let Some((name, rest)) = line.split_once(" on ") else { continue };
            let Some((backend, result)) = rest.split_once(": ") else { continue };
            let column = format!("{backend}, {place}");
            self.columns.insert(column.clone());
            // The reason of what was skipped is told elsewhere.
            let result = result.split(':').next().unwrap_or_default().to_owned();
            self.results.entry(format!("{binary}: {name}")).or_default().insert(column, result);
        }
    }

    /// Takes what others were told.
    pub(super) fn add(&mut self, other: Self) {
        self.columns.extend(other.columns);
        for (case, results) in other.results {
            self.results.entry(case).or_default().extend(results);
        }
    }

    /// The table, or nothing if no case was told.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        let width = self.results.keys().map(String::len).max().unwrap_or(0);
        if width == 0 {
            return text;
        }
        let _ = write!(text, "\n{:<width$}", "case");
        for column in &self.columns {
            let _ = write!(text, "  {column}");
        }
        for (name, results) in &self.results {
            let _ = write!(text, "\n{name:<width$}");
            for column in &self.columns {
                let (result, wide) =
                    (results.get(column).map_or("-", String::as_str), column.len());
                let _ = write!(text, "  {result:<wide$}");
            }
            text.truncate(text.trim_end().len());
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_case_has_a_line_and_each_backend_a_column() {
        let mut cases = Cases::default();
        let here = "case: a on KVM: ok\ncase: a on WHP: skipped: no processor\nnoise\n";
        cases.read("pio", "here", here);
        let mut lab = Cases::default();
        lab.read("pio", "lab", "case: a on KVM: ok\ncase: b on KVM: FAILED\n");
        cases.add(lab);
        let table = cases.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[1], "case    KVM, here  KVM, lab  WHP, here");
        assert_eq!(lines[2], "pio: a  ok         ok        skipped");
        assert_eq!(lines[3], "pio: b  -          FAILED    -");
        assert_eq!(Cases::default().table(), "");
    }
}

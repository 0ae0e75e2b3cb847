//! The table at the end of a test run.

use std::fmt::Write;
use std::process::ExitCode;

use super::libtest::Report;
use crate::progress::say;

/// One suite's line.
pub(super) struct Row {
    pub name: &'static str,
    pub report: Report,
    pub seconds: f64,
}

impl Row {
    /// The line of a suite that cannot run here at all.
    pub(super) fn skipped(name: &'static str, why: &str) -> Self {
        say(&format!("xtask: SKIPPED {name}: {why}"));
        let reasons = vec![format!("{name}: {why}")];
        Self { name, report: Report { skipped: 1, reasons, ..Report::default() }, seconds: 0.0 }
    }
}

/// Prints the summary; its last line has the totals alone. Success if nothing failed and something ran.
pub(super) fn print(rows: &[Row]) -> ExitCode {
    let mut total = Report::default();
    for row in rows {
        total.add(row.report.clone());
    }
    print!("{}", text(rows, &total));
    if total.failed == 0 && total.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn text(rows: &[Row], total: &Report) -> String {
    let mut text = String::new();
    for (title, lines) in [("skipped", &total.reasons), ("failed", &total.failures)] {
        for line in lines {
            let _ = writeln!(text, "{title}: {line}");
        }
    }
    let _ = writeln!(
        text,
        "\n{:<13} {:>7} {:>7} {:>8} {:>8}",
        "suite", "passed", "failed", "skipped", "seconds"
    );
    for Row { name, report, seconds } in rows {
        let Report { passed, failed, skipped, .. } = report;
        let _ = writeln!(text, "{name:<13} {passed:>7} {failed:>7} {skipped:>8} {seconds:>8.1}");
    }
    let Report { passed, failed, skipped, .. } = total;
    let _ = writeln!(text, "\n{passed} passed, {failed} failed, {skipped} skipped");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_totals_stand_alone_in_the_last_line() {
        let report = Report {
            passed: 12,
            failed: 1,
            skipped: 2,
            reasons: vec!["lab: d: no qemu".into()],
            failures: vec!["lab: b".into()],
        };
        let rows = [Row { name: "unit", report: report.clone(), seconds: 1.25 }];
        let text = text(&rows, &report);
        assert!(text.ends_with("\n12 passed, 1 failed, 2 skipped\n"), "{text}");
        assert!(text.contains("skipped: lab: d: no qemu\nfailed: lab: b\n"), "{text}");
        assert!(text.contains("\nunit               12       1        2      1.2\n"), "{text}");
    }
}

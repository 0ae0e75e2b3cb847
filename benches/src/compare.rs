//! Two reports of the same figures, before and after a change.

use crate::budget::STEADY_CLOCK;
use crate::report::{Report, Row, table};

/// By how much steady figures differ from run to run: less is no change.
const NOISE: f64 = 0.03;

const HEADINGS: [&str; 6] = ["figure", "clock", "unit", "before", "now", "change"];

/// Every figure of both as a Markdown table, by their medians; those of one alone with a dash.
pub fn compare(before: &Report, now: &Report) -> String {
    let same = |one: &Row, other: &Row| {
        (&one.figure, &one.clock, &one.unit) == (&other.figure, &other.clock, &other.unit)
    };
    let find = |rows: &[Row], row: &Row| rows.iter().find(|other| same(row, other)).cloned();
    let mut rows: Vec<_> = now
        .rows
        .iter()
        .map(|row| cells(row, find(&before.rows, row).as_ref(), Some(row)))
        .collect();
    let gone = before.rows.iter().filter(|row| find(&now.rows, row).is_none());
    rows.extend(gone.map(|row| cells(row, Some(row), None)));
    table(HEADINGS, &rows)
}

fn cells(row: &Row, before: Option<&Row>, now: Option<&Row>) -> [String; 6] {
    let median =
        |row: Option<&Row>| row.and_then(|row| row.cabana.as_ref()).map(|summary| summary.median);
    let (before, now) = (median(before), median(now));
    let number = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.1}"));
    let change = before.zip(now).map(|(before, now)| now / before - 1.0);
    [
        row.figure.clone(),
        row.clock.clone(),
        row.unit.clone(),
        number(before),
        number(now),
        change
            .filter(|change| change.is_finite())
            .map_or("–".to_owned(), |change| judged(row, change)),
    ]
}

/// Less is better in all of them.
fn judged(row: &Row, change: f64) -> String {
    let steady = [STEADY_CLOCK, "–"].contains(&row.clock.as_str());
    let verdict = match change {
        _ if !steady => " (not steady)",
        change if change > NOISE => " worse",
        change if change < -NOISE => " better",
        _ => "",
    };
    format!("{:+.1} %{verdict}", change * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Summary;

    fn report(figures: &[(&str, &str, f64)]) -> Report {
        let row = |(figure, clock, value): &(&str, &str, f64)| {
            Row::new(figure, "ms", clock).values(Summary::of(&[*value]), None)
        };
        Report { rows: figures.iter().map(row).collect(), ..Report::default() }
    }

    #[test]
    fn what_changed_is_judged_where_figures_repeat() {
        let before = report(&[
            ("start", STEADY_CLOCK, 100.0),
            ("end", STEADY_CLOCK, 100.0),
            ("disk", "ordinary", 10.0),
            ("gone", "–", 1.0),
        ]);
        let now = report(&[
            ("start", STEADY_CLOCK, 110.0),
            ("end", STEADY_CLOCK, 101.0),
            ("disk", "ordinary", 5.0),
            ("new", "–", 2.0),
        ]);
        let table = compare(&before, &now);
        let ends = ["+10.0 % worse |", "+1.0 % |", "-50.0 % (not steady) |", "– |", "– |"];
        let lines: Vec<_> = table.lines().skip(2).collect();
        assert_eq!(lines.len(), ends.len(), "{table}");
        for (line, end) in lines.iter().zip(ends) {
            let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(line.ends_with(end), "{line:?} {end:?}");
        }
        assert!(compare(&now, &before).contains("-9.1 % better"));
    }
}

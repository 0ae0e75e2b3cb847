//! How much the runs of each figure differ: a dot for each run.

use std::fmt::Write;

use super::{LINE, PAD, Plot, TOP, escape, number_within, with_clock};
use crate::report::{Report, Row, Summary};

/// Where names, the least, the dots, the greatest and the median stand.
const LEAST: f64 = 176.0;
const FROM: f64 = 188.0;
const TO: f64 = 508.0;
const GREATEST: f64 = 520.0;
const MEDIAN: f64 = 588.0;
/// Height of a strip, and the part of it that the runs take from the first to the last.
const STRIP: f64 = 30.0;
const BAND: f64 = 16.0;
const DOT: f64 = 3.0;

/// Of all figures that have several runs; nothing if none has.
pub(super) fn plot(report: &Report) -> Option<Plot> {
    let several = |row: &&Row| sides(row).iter().any(|(.., summary)| summary.runs > 1);
    let rows: Vec<&Row> = report.rows.iter().filter(several).collect();
    if rows.is_empty() {
        return None;
    }
    let explanation = "A dot is a run, the first at the top; the line is the median. Each strip has a \
                       scale of its own, from its least run to its greatest.";
    let mut plot = Plot::new("distribution", "How much the runs differ", explanation);
    let mut top = TOP;
    for row in rows {
        let unit = with_clock(&row.unit, &row.clock);
        plot.text("", PAD, top + 12.0, &format!("{} ({unit})", row.figure));
        top += LINE;
        for (name, class, summary) in sides(row) {
            strip(&mut plot, top, name, class, summary, &row.unit);
            top += STRIP;
        }
        top += 6.0;
    }
    plot.height = top + PAD;
    Some(plot)
}

/// Those that there are.
fn sides(row: &Row) -> Vec<(&'static str, &'static str, &Summary)> {
    let cabana = row.cabana.as_ref().map(|summary| ("Cabana", "cabana", summary));
    let peer = row.qemu.as_ref().map(|summary| ("QEMU microvm", "peer", summary));
    cabana.into_iter().chain(peer).collect()
}

fn strip(plot: &mut Plot, top: f64, name: &str, class: &str, summary: &Summary, unit: &str) {
    let Summary { min, median, max, runs, values } = summary;
    let x = |value: f64| match max - min {
        range if range > 0.0 => FROM + (value - min) / range * (TO - FROM),
        _ => f64::midpoint(FROM, TO),
    };
    let number = |value: f64| number_within(value, max - min);
    let middle = top + STRIP / 2.0;
    let base = middle + 4.0;
    plot.text("faint", PAD + 10.0, base, name);
    plot.text("end", LEAST, base, &number(*min));
    plot.line("grid", (FROM, middle), (TO, middle));
    let step = BAND / values.len().saturating_sub(1).max(1) as f64;
    for (run, value) in values.iter().enumerate() {
        let y = middle - BAND / 2.0 + step * run as f64;
        let says = escape(&format!("run {}: {} {unit}", run + 1, number(*value)));
        let _ = writeln!(
            plot.body,
            "<circle class=\"dot {class}\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"{DOT}\">\
             <title>{says}</title></circle>",
            x(*value)
        );
    }
    plot.line("median", (x(*median), top + 3.0), (x(*median), top + STRIP - 3.0));
    plot.text("", GREATEST, base, &number(*max));
    let spread = if *median > 0.0 { (max - min) / median * 100.0 } else { 0.0 };
    let runs = if *runs == 1 {
        "one run".to_owned()
    } else {
        format!("{runs} runs, spread {spread:.1} %")
    };
    plot.text("", MEDIAN, base, &format!("median {} {unit}; {runs}", number(*median)));
}

#[cfg(test)]
mod tests {
    use super::super::drawn::{elements, of_class, says};
    use super::*;

    fn report(cabana: &[f64], qemu: &[f64]) -> Report {
        let row = Row::new("a <start>", "ms", "ordinary");
        let rows = vec![row.values(Summary::of(cabana), Summary::of(qemu))];
        Report { rows, ..Report::default() }
    }

    #[test]
    fn each_run_is_a_dot_in_its_place() {
        let all = elements(&plot(&report(&[12.0, 10.0, 20.0], &[70.0])).unwrap());
        let places: Vec<f64> =
            of_class(&all, "cabana").iter().map(|dot| dot.number("cx")).collect();
        assert_eq!(places, [FROM + (TO - FROM) * 0.2, FROM, TO]);
        let heights: Vec<f64> =
            of_class(&all, "cabana").iter().map(|dot| dot.number("cy")).collect();
        assert!(heights.is_sorted_by(|one, next| one < next), "in the order of the runs");
        let medians = of_class(&all, "median");
        assert!((medians[0].number("x1") - places[0]).abs() < 1e-9);
        let middle = f64::midpoint(FROM, TO);
        assert!((of_class(&all, "peer")[0].number("cx") - middle).abs() < 1e-9);
        for text in [
            "a <start> (ms; clock: ordinary)",
            "10",
            "20",
            "median 12 ms; 3 runs, spread 83.3 %",
            "median 70 ms; one run",
        ] {
            assert!(says(&all, text), "no {text} in {all:#?}");
        }
    }

    #[test]
    fn runs_that_are_the_same_stand_above_each_other() {
        let all = elements(&plot(&report(&[0.0, 0.0], &[])).unwrap());
        let dots = of_class(&all, "cabana");
        assert_eq!(dots.len(), 2);
        assert!(dots.iter().all(|dot| (dot.number("cx") - f64::midpoint(FROM, TO)).abs() < 1e-9));
        assert!(says(&all, "median 0 ms; 2 runs, spread 0.0 %"));
    }

    #[test]
    fn of_one_run_there_is_no_distribution() {
        for runs in [&[][..], &[5.0]] {
            assert!(plot(&report(runs, &[7.0])).is_none());
        }
        assert!(plot(&Report::default()).is_none());
    }

    #[test]
    fn of_a_file_from_before_there_is_the_median_and_no_dot() {
        let mut report = report(&[1.0, 2.0, 4.0], &[]);
        report.rows[0].cabana.as_mut().unwrap().values.clear();
        let all = elements(&plot(&report).unwrap());
        assert_eq!((of_class(&all, "dot").len(), of_class(&all, "median").len()), (0, 1));
        assert!(says(&all, "median 2 ms; 3 runs, spread 150.0 %"));
    }
}

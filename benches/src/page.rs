//! Reports as one page for a browser: for each figure a drawing beside its peer and target, the pictures of
//! [`plot`](crate::plot), tables.

use std::fmt::Write;

use crate::plot::{self, escape, number_within, with_clock};
use crate::report::{Report, Row, Summary};

/// Width of the drawings in pixels, and of the part for names and numbers.
const WIDTH: f64 = 720.0;
const MARGIN: f64 = 150.0;
/// Height of a bar and the space below it.
const BAR: f64 = 16.0;
const GAP: f64 = 6.0;
/// Room for a number with its unit.
const NUMBER: f64 = 90.0;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;\
color:#1b1f24;background:#fff}h1,h2{font-weight:600}h3{font-size:1em;margin:1.6em 0 .3em}\
svg{display:block;overflow:visible}figure{margin:2em 0;overflow-x:auto}\
pre{overflow-x:auto;background:#f4f5f7;padding:1em}.facts{color:#57606a}\
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}pre{background:#161b22}\
.facts{color:#9198a1}}";

/// A part of the page.
#[derive(Clone, Debug)]
pub enum Section {
    /// Figures, drawn.
    Figures(String, Report),
    /// A table that is text already.
    Table(String, String),
}

/// The whole page, which needs nothing beside it.
pub fn page(sections: &[Section]) -> String {
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Cabana, measured</title>\
         <meta name=\"color-scheme\" content=\"light dark\"><style>{STYLE}{}</style>\n\
         <h1>Cabana, measured</h1>\n<p>Bars are medians, lines reach from the least to the greatest of the \
         runs, the dashed line is what Cabana's figure is to be at most. Cabana is green, its peer of the \
         same run grey. The pictures below the bars are also files beside this page.</p>\n",
        plot::STYLE
    );
    for section in sections {
        match section {
            Section::Figures(title, report) => figures(&mut text, title, report),
            Section::Table(title, table) => {
                let _ = write!(text, "<h2>{}</h2>\n<pre>{}</pre>\n", escape(title), escape(table));
            }
        }
    }
    text + "</html>\n"
}

fn figures(text: &mut String, title: &str, report: &Report) {
    let _ = writeln!(text, "<h2>{}</h2>", escape(title));
    let facts = report.environment.iter().map(|(name, value)| format!("{name}: {value}"));
    let _ =
        writeln!(text, "<p class=\"facts\">{}</p>", escape(&facts.collect::<Vec<_>>().join("; ")));
    for row in &report.rows {
        let _ = writeln!(text, "<h3>{}</h3>", escape(&with_clock(&row.figure, &row.clock)));
        text.push_str(&drawing(row));
    }
    for plot in plot::plots(report) {
        let _ = writeln!(text, "<figure>{}</figure>", plot.inline());
    }
    let _ = writeln!(text, "<pre>{}</pre>", escape(&report.markdown()));
}

/// Bars of one figure from zero on, to one scale.
fn drawing(row: &Row) -> String {
    let bars: Vec<_> = [("Cabana", "cabana", &row.cabana), ("QEMU microvm", "peer", &row.qemu)]
        .into_iter()
        .filter_map(|(name, class, summary)| Some((name, class, summary.as_ref()?)))
        .collect();
    let most = bars.iter().map(|(_, _, summary)| summary.max).chain(row.target);
    let most = most.fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| MARGIN + value / most * (WIDTH - 2.0 * MARGIN);
    // A number stands behind its bar, and behind the target's line if that would go through it.
    let behind = |end: f64| {
        let target = row.target.map(x).filter(|at| (end..end + NUMBER).contains(at));
        target.unwrap_or(end) + GAP
    };
    let height = bars.len() as f64 * (BAR + GAP);
    let mut text = format!("<svg width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n");
    for (index, (name, class, summary)) in bars.iter().enumerate() {
        let top = index as f64 * (BAR + GAP);
        let &&Summary { min, median, max, .. } = summary;
        let (middle, base) = (top + BAR / 2.0, top + BAR - 4.0);
        let _ = writeln!(
            text,
            "<text x=\"0\" y=\"{base:.1}\">{name}</text>\
             <rect class=\"{class}\" x=\"{MARGIN}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{BAR}\"/>\
             <line class=\"range\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\
             <text x=\"{:.1}\" y=\"{base:.1}\">{} {}</text>",
            x(median) - MARGIN,
            x(min),
            x(max),
            behind(x(max)),
            number_within(median, 1.0),
            escape(&row.unit),
        );
    }
    if let Some(target) = row.target {
        let at = x(target);
        let _ = writeln!(
            text,
            "<line class=\"target\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"0\" y2=\"{height:.1}\"/>"
        );
    }
    text + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Timeline;

    #[test]
    fn no_number_stands_on_the_targets_line() {
        let row = Row::new("start", "ms", "–").values(Summary::of(&[90.0]), None).target(100.0);
        let text = drawing(&row);
        assert!(text.contains("class=\"target\" x1=\"570.0\""), "{text}");
        assert!(text.contains("x=\"576.0\" y=\"12.0\">90 ms</text>"), "{text}");
    }

    #[test]
    fn every_figure_is_drawn_to_one_scale_with_its_peer_and_target() {
        let row = Row {
            key: None,
            figure: "start <of> a machine".to_owned(),
            unit: "ms".to_owned(),
            clock: "ordinary".to_owned(),
            cabana: Summary::of(&[40.0, 50.0, 60.0]),
            qemu: Summary::of(&[100.0]),
            target: Some(25.0),
        };
        let report = Report {
            environment: vec![("Cabana".to_owned(), "abc".to_owned())],
            rows: vec![row],
            timelines: vec![Timeline {
                of: "one & another".to_owned(),
                clock: "ordinary".to_owned(),
                moments: Vec::new(),
            }],
            ..Report::default()
        };
        let text = page(&[
            Section::Figures("Start".to_owned(), report),
            Section::Table("Folders".to_owned(), "a | b".to_owned()),
        ]);
        assert!(text.contains("start &lt;of&gt; a machine") && !text.contains("<of>"), "{text}");
        // The scale is 420 pixels for 100 ms.
        for part in [
            "class=\"cabana\" x=\"150\" y=\"0.0\" width=\"210.0\"",
            "class=\"peer\" x=\"150\" y=\"22.0\" width=\"420.0\"",
            "class=\"range\" x1=\"318.0\" x2=\"402.0\"",
            "class=\"target\" x1=\"255.0\"",
            "x=\"408.0\" y=\"12.0\">50 ms</text>",
            "x=\"576.0\" y=\"34.0\">100 ms</text>",
            "<title>one &amp; another</title>",
            "<title>How much the runs differ</title>",
            "<pre>a | b</pre>",
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }
}

//! Pictures of what was measured, as SVG: a start's timeline, the distribution of runs, memory over time.
//!
//! A picture is a file of its own or a part of the page; it brings its own ground, since whatever shows it
//! may be light or dark.

mod distribution;
mod series;
mod timeline;

use std::fmt::Write;

use crate::report::Report;

/// Width of all pictures in pixels.
pub(crate) const WIDTH: f64 = 860.0;
/// Around everything, and the height of a line of text.
const PAD: f64 = 14.0;
const LINE: f64 = 18.0;
/// Where the picture itself begins, below its title and a line that explains it.
const TOP: f64 = PAD + 2.0 * LINE + 8.0;
/// The fewest steps of a scale.
const STEPS: f64 = 6.0;

/// Colours and letters of all pictures. Without variables, which not every viewer of SVG knows.
pub(crate) const STYLE: &str = "\
svg text{font:12px system-ui,sans-serif;fill:#1b1f24}\
svg text.title{font-size:14px;font-weight:600}svg text.faint{fill:#57606a}\
svg text.end{text-anchor:end}svg text.middle{text-anchor:middle}\
.paper{fill:#fff}.grid{stroke:#d8dee4}.host{fill:#c2762b}.guest{fill:#2f7d9c}\
.cabana{fill:#0f766e}.peer{fill:#8c959f}\
.range,.median{stroke:#1b1f24;stroke-width:1.5}.dot{fill-opacity:.65}\
.curve{fill:none;stroke:#0f766e;stroke-width:1.5}.area{fill:#0f766e;fill-opacity:.12}\
.moment{stroke:#57606a;stroke-dasharray:4 3}\
.target{stroke:#b91c1c;stroke-width:1.5;stroke-dasharray:4 3}\
@media(prefers-color-scheme:dark){\
svg text{fill:#e6edf3}svg text.faint{fill:#9198a1}\
.paper{fill:#0d1117}.grid{stroke:#30363d}.host{fill:#e0a05c}.guest{fill:#5aa9c9}\
.cabana{fill:#2dd4bf}.peer{fill:#8c959f}.range,.median{stroke:#e6edf3}\
.curve{stroke:#2dd4bf}.area{fill:#2dd4bf}.moment{stroke:#9198a1}.target{stroke:#f87171}}";

/// A picture.
#[derive(Clone, Debug)]
pub struct Plot {
    /// What it is of, which ends its file's name: `timeline`, `distribution`, `over-time`.
    pub kind: String,
    title: String,
    height: f64,
    body: String,
}

/// All pictures of a report, in the order of the page.
pub fn plots(report: &Report) -> Vec<Plot> {
    let mut plots = numbered(report.timelines.iter().map(timeline::plot).collect());
    plots.extend(numbered(report.series.iter().map(series::plot).collect()));
    plots.extend(distribution::plot(report));
    plots
}

/// Gives those of one kind names that differ.
fn numbered(mut plots: Vec<Plot>) -> Vec<Plot> {
    for (index, plot) in plots.iter_mut().enumerate().skip(1) {
        let _ = write!(plot.kind, "-{}", index + 1);
    }
    plots
}

impl Plot {
    /// An empty picture with its title and a line that explains it.
    fn new(kind: &str, title: &str, explanation: &str) -> Self {
        let mut plot = Self {
            kind: kind.to_owned(),
            title: title.to_owned(),
            height: TOP,
            body: String::new(),
        };
        plot.text("title", PAD, PAD + 12.0, title);
        plot.text("faint", PAD, PAD + 12.0 + LINE, explanation);
        plot
    }

    /// For a page that has [`STYLE`] already.
    pub fn inline(&self) -> String {
        self.svg("", "")
    }

    /// As a file of its own.
    pub fn file(&self) -> String {
        let head = " xmlns=\"http://www.w3.org/2000/svg\"";
        self.svg(head, &format!("<style>{STYLE}</style>\n"))
    }

    fn svg(&self, attributes: &str, style: &str) -> String {
        let (height, title) = (self.height, escape(&self.title));
        format!(
            "<svg{attributes} viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
             height=\"{height:.0}\" role=\"img\">\n<title>{title}</title>\n{style}\
             <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height:.0}\"/>\n{}</svg>\n",
            self.body
        )
    }

    fn text(&mut self, class: &str, x: f64, y: f64, text: &str) {
        let text = escape(text);
        let _ =
            writeln!(self.body, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>");
    }

    fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let _ = writeln!(
            self.body,
            "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    /// A bar that says what it is to who points at it.
    fn bar(&mut self, class: &str, corner: (f64, f64), size: (f64, f64), says: &str) {
        let _ = writeln!(
            self.body,
            "<rect class=\"{class}\" x=\"{:.2}\" y=\"{:.1}\" width=\"{:.2}\" height=\"{:.1}\">\
             <title>{}</title></rect>",
            corner.0,
            corner.1,
            size.0,
            size.1,
            escape(says)
        );
    }

    /// A scale from zero below a picture, with a line through it at each step.
    fn bottom_scale(&mut self, scale: Scale, top: f64, bottom: f64, name: &str) {
        for step in scale.steps() {
            let x = scale.at(step);
            self.line("grid", (x, top), (x, bottom));
            self.text("faint middle", x, bottom + LINE, &number(step));
        }
        let middle = f64::midpoint(scale.from, scale.to);
        self.text("faint middle", middle, bottom + 2.0 * LINE, name);
    }
}

/// Values from zero on, laid out between two places.
#[derive(Clone, Copy, Debug)]
struct Scale {
    most: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// `most` is at `to`; if it is nothing or no number, everything is at `from`.
    fn new(most: f64, from: f64, to: f64) -> Self {
        let most = if most.is_finite() { most.max(0.0) } else { 0.0 };
        Self { most, from, to }
    }

    fn at(self, value: f64) -> f64 {
        if self.most > 0.0 {
            self.from + value / self.most * (self.to - self.from)
        } else {
            self.from
        }
    }

    /// Zero, and round values after it.
    fn steps(self) -> Vec<f64> {
        let rough = self.most / STEPS;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power);
        let step = step.into_iter().find(|step| *step >= rough).unwrap_or_default();
        if !step.is_normal() {
            return vec![0.0];
        }
        let steps = (0..=STEPS as u32).map(|index| f64::from(index) * step);
        steps.take_while(|step| *step <= self.most * (1.0 + 1e-9)).collect()
    }
}

/// With three digits or so, and no zeros behind.
fn number(value: f64) -> String {
    number_within(value, value.abs() / 10.0)
}

/// With as many digits as tell it from others that differ by a tenth of `range`, and no zeros behind.
pub(crate) fn number_within(value: f64, range: f64) -> String {
    let digits = match range {
        range if range >= 10.0 => 0,
        range if range >= 1.0 => 1,
        range if range >= 0.1 => 2,
        range if range > 0.0 => 3,
        _ => 1,
    };
    let text = format!("{value:.digits$}");
    if digits == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

/// What it is and its clock, if that matters.
pub(crate) fn with_clock(what: &str, clock: &str) -> String {
    if clock == "–" { what.to_owned() } else { format!("{what}; clock: {clock}") }
}

/// Text that is no markup.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod drawn;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Row, Series, Summary, Timeline};

    #[test]
    fn a_file_stands_for_itself_and_the_page_has_the_style_once() {
        let plot = Plot::new("timeline", "a <title>", "why & how");
        let (file, inline) = (plot.file(), plot.inline());
        assert!(file.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 860 "));
        assert!(file.contains("prefers-color-scheme:dark") && !inline.contains("<style>"));
        let elements = drawn::elements(&plot);
        assert!(drawn::says(&elements, "a <title>") && drawn::says(&elements, "why & how"));
        let ground = drawn::of_class(&elements, "paper");
        assert!((ground[0].number("width") - WIDTH).abs() < 1e-9);
    }

    #[test]
    fn each_picture_of_a_report_has_a_name_of_its_own() {
        let timeline = Timeline { of: String::new(), clock: "–".to_owned(), moments: Vec::new() };
        let series = Series {
            of: String::new(),
            clock: "–".to_owned(),
            unit: "MiB".to_owned(),
            points: Vec::new(),
            moments: Vec::new(),
        };
        let report = Report {
            timelines: vec![timeline.clone(), timeline],
            series: vec![series],
            rows: vec![Row::new("start", "ms", "–").values(Summary::of(&[1.0, 2.0]), None)],
            ..Report::default()
        };
        let kinds: Vec<_> = plots(&report).into_iter().map(|plot| plot.kind).collect();
        assert_eq!(kinds, ["timeline", "timeline-2", "over-time", "distribution"]);
        assert!(plots(&Report::default()).is_empty());
    }

    #[test]
    fn a_scale_has_few_and_round_steps() {
        let steps = |most| Scale::new(most, 0.0, 100.0).steps();
        assert_eq!(steps(83.0), [0.0, 20.0, 40.0, 60.0, 80.0]);
        assert_eq!(steps(6.0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(steps(1129.0).len(), 6);
        for nothing in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE / 4.0] {
            assert_eq!(steps(nothing), [0.0], "{nothing}");
        }
        assert!((Scale::new(80.0, 200.0, 100.0).at(20.0) - 175.0).abs() < 1e-9);
        assert!((Scale::new(0.0, 200.0, 100.0).at(20.0) - 200.0).abs() < 1e-9);
    }

    #[test]
    fn numbers_are_as_short_as_can_be() {
        let numbers = [0.0, 0.05, 0.5, 2.0, 12.34, 125.7, 1927.0, -3.25].map(number);
        assert_eq!(numbers, ["0", "0.05", "0.5", "2", "12.3", "126", "1927", "-3.25"]);
        let within = [(125.04, 0.9), (1921.0, 9.0), (75.312, 0.05), (142.0, 0.0)];
        let within = within.map(|(value, range)| number_within(value, range));
        assert_eq!(within, ["125.04", "1921", "75.312", "142"]);
    }
}

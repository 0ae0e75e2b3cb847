//! The moments of one start: a bar from each to the next, one under the other.

use super::{LINE, PAD, Plot, Scale, TOP, WIDTH, with_clock};
use crate::report::Timeline;

/// From where on the guest works (docs/trace.md).
const FIRST_INSTRUCTION: &str = "first guest instruction";

/// Room for names on the left, and for durations behind the bars.
const LEFT: f64 = 190.0;
const RIGHT: f64 = 90.0;
/// Height of a row and of its bar.
const ROW: f64 = 24.0;
const BAR: f64 = 14.0;

pub(super) fn plot(timeline: &Timeline) -> Plot {
    let moments = &timeline.moments;
    let total = moments.last().map_or(0.0, |moment| moment.ms);
    let explanation =
        format!("{total:.1} ms from the spawn of its process to its command's first output");
    let mut plot = Plot::new("timeline", &timeline.of, &with_clock(&explanation, &timeline.clock));
    let scale = Scale::new(total, LEFT, WIDTH - RIGHT);
    let legend = TOP + 10.0;
    let first = legend + 12.0;
    let bottom = first + ROW * moments.len().saturating_sub(1) as f64;
    plot.bottom_scale(scale, first, bottom, "ms since the process was spawned");
    let entered = moments.iter().find(|moment| moment.name == FIRST_INSTRUCTION);
    let entered = entered.map_or(f64::INFINITY, |moment| moment.ms);
    for (row, pair) in moments.windows(2).enumerate() {
        let (from, to) = (pair[0].ms, pair[1].ms);
        let took = (to - from).max(0.0);
        let class = if from >= entered { "guest" } else { "host" };
        let top = first + ROW * row as f64 + (ROW - BAR) / 2.0;
        let base = top + BAR - 3.0;
        plot.text("end", LEFT - 10.0, base, &pair[1].name);
        let says = format!("{}: from {from:.2} ms to {to:.2} ms", pair[1].name);
        let (x, width) = (scale.at(from), scale.at(took) - LEFT);
        // A phase of next to nothing is seen, too.
        plot.bar(class, (x, top), (width.max(1.0), BAR), &says);
        plot.text("", x + width.max(1.0) + 6.0, base, &format!("{took:.2} ms"));
    }
    for (class, x, says) in [
        ("host", LEFT, "the host, before the guest's first instruction"),
        ("guest", LEFT + 290.0, "the guest, and the host for it"),
    ] {
        plot.bar(class, (x, legend - 10.0), (10.0, 10.0), says);
        plot.text("faint", x + 16.0, legend, says);
    }
    plot.height = bottom + 2.0 * LINE + PAD;
    plot
}

#[cfg(test)]
mod tests {
    use super::super::drawn::{Element, elements, of_class, says};
    use super::*;
    use crate::report::Moment;

    fn timeline(moments: &[(&str, f64)]) -> Timeline {
        let moment = |&(name, ms): &(&str, f64)| Moment { name: name.to_owned(), ms };
        Timeline {
            of: "a start".to_owned(),
            clock: "instructions".to_owned(),
            moments: moments.iter().map(moment).collect(),
        }
    }

    /// The legend's squares are of the same classes.
    fn bars<'a>(all: &'a [Element], class: &str) -> Vec<&'a Element> {
        let is_bar = |bar: &&Element| (bar.number("height") - BAR).abs() < 1e-9;
        of_class(all, class).into_iter().filter(is_bar).collect()
    }

    #[test]
    fn each_phase_is_a_bar_as_long_as_it_took() {
        let plot = plot(&timeline(&[
            ("spawned", 0.0),
            ("VM <created> & \"made\"", 10.0),
            ("first guest instruction", 12.5),
            ("ready", 60.0),
            ("first output", 80.0),
        ]));
        let all = elements(&plot);
        let (host, guest) = (bars(&all, "host"), bars(&all, "guest"));
        assert_eq!((host.len(), guest.len()), (2, 2));
        let per_ms = (WIDTH - LEFT - RIGHT) / 80.0;
        let expected = [(0.0, 10.0), (10.0, 2.5), (12.5, 47.5), (60.0, 20.0)];
        for (bar, (from, took)) in host.iter().chain(&guest).zip(expected) {
            assert!((bar.number("x") - LEFT - from * per_ms).abs() < 0.01, "{bar:?}");
            assert!((bar.number("width") - took * per_ms).abs() < 0.01, "{bar:?}");
        }
        let tops: Vec<f64> = host.iter().chain(&guest).map(|bar| bar.number("y")).collect();
        assert!(tops.is_sorted_by(|one, next| one + BAR < *next), "{tops:?}");
        for text in [
            "VM <created> & \"made\"",
            "2.50 ms",
            "47.50 ms",
            "ms since the process was spawned",
            "80.0 ms from the spawn of its process to its command's first output; clock: instructions",
        ] {
            assert!(says(&all, text), "no {text} in {all:#?}");
        }
        assert!(!says(&all, "spawned"), "it is where the first bar begins");
    }

    #[test]
    fn starts_of_no_moments_or_no_time_are_drawn_without_nonsense() {
        for (moments, count) in [
            (&[][..], 0),
            (&[("spawned", 0.0)], 0),
            (&[("spawned", 0.0), ("ready", 0.0)], 1),
            // Not in order, as no trace is.
            (&[("spawned", 9.0), ("ready", 4.0)], 1),
        ] {
            let all = elements(&plot(&timeline(moments)));
            let bars = bars(&all, "host");
            assert_eq!(bars.len(), count);
            assert!(bars.iter().all(|bar| bar.number("width") >= 1.0), "{bars:?}");
        }
    }
}

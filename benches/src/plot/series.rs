//! What a process took over time: a curve, and what happened meanwhile.

use std::fmt::Write;

use super::{LINE, PAD, Plot, Scale, TOP, WIDTH, number, with_clock};
use crate::report::Series;

/// Room for the scale on the left.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 30.0;
/// Height of the curve's field.
const FIELD: f64 = 240.0;
/// A moment's name stands before its place if there is this much room.
const ROOM: f64 = 250.0;
/// Free space above the greatest value.
const HEADROOM: f64 = 1.05;

pub(super) fn plot(series: &Series) -> Plot {
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let looks = series.points.iter().map(|point| point.0);
    let moments = series.moments.iter().map(|moment| moment.ms);
    let last = most(&mut looks.chain(moments)) / 1e3;
    let greatest = most(&mut series.points.iter().map(|point| point.1));
    let explanation = format!(
        "proportional set size of its process, {} looks; at most {} {}",
        series.points.len(),
        number(greatest),
        series.unit
    );
    let mut plot = Plot::new("over-time", &series.of, &with_clock(&explanation, &series.clock));
    // A line of text for each moment, the last at the top, so that none stands on another.
    let top = TOP + LINE * series.moments.len() as f64;
    let bottom = top + FIELD;
    let time = Scale::new(last, LEFT, WIDTH - RIGHT);
    let amount = Scale::new(greatest * HEADROOM, bottom, top);
    plot.bottom_scale(time, top, bottom, "seconds since the process was spawned");
    for step in amount.steps() {
        let y = amount.at(step);
        plot.line("grid", (LEFT, y), (WIDTH - RIGHT, y));
        plot.text("faint end", LEFT - 8.0, y + 4.0, &number(step));
    }
    plot.text("faint end", LEFT - 8.0, top - 10.0, &series.unit);
    curve(&mut plot, series, time, amount);
    for (row, moment) in series.moments.iter().enumerate() {
        let x = time.at(moment.ms / 1e3);
        let y = top - LINE * (row + 1) as f64 + 4.0;
        plot.line("moment", (x, y + 4.0), (x, bottom));
        let (class, x) = if x > ROOM { ("end", x + 4.0) } else { ("", x - 4.0) };
        plot.text(class, x, y, &format!("{}: {:.2} s", moment.name, moment.ms / 1e3));
    }
    plot.height = bottom + 2.0 * LINE + PAD;
    plot
}

fn curve(plot: &mut Plot, series: &Series, time: Scale, amount: Scale) {
    let Some((first, last)) = series.points.first().zip(series.points.last()) else { return };
    let place = |(ms, value): &(f64, f64)| (time.at(ms / 1e3), amount.at(*value));
    let mut points = String::new();
    for (x, y) in series.points.iter().map(place) {
        let _ = write!(points, " {x:.1},{y:.1}");
    }
    let (from, to, ground) = (place(first).0, place(last).0, amount.from);
    let _ = writeln!(
        plot.body,
        "<polygon class=\"area\" points=\"{from:.1},{ground:.1}{points} {to:.1},{ground:.1}\"/>\n\
         <polyline class=\"curve\" points=\"{}\"/>",
        points.trim_start()
    );
}

#[cfg(test)]
mod tests {
    use super::super::drawn::{elements, of_class, says};
    use super::*;
    use crate::report::Moment;

    fn series(points: &[(f64, f64)], moments: &[(&str, f64)]) -> Series {
        let moment = |&(name, ms): &(&str, f64)| Moment { name: name.to_owned(), ms };
        Series {
            of: "a machine".to_owned(),
            clock: "ordinary".to_owned(),
            unit: "MiB".to_owned(),
            points: points.to_vec(),
            moments: moments.iter().map(moment).collect(),
        }
    }

    #[test]
    fn the_curve_goes_through_all_looks_and_moments_stand_in_their_places() {
        let points = [(0.0, 10.0), (1000.0, 1000.0), (4000.0, 500.0)];
        let all = elements(&plot(&series(&points, &[("full <up>", 1000.0), ("free", 4000.0)])));
        let curve = of_class(&all, "curve")[0].text("points");
        let places: Vec<(f64, f64)> = curve
            .split(' ')
            .map(|place| place.split_once(',').unwrap())
            .map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()))
            .collect();
        let [first, top, last] = places[..] else { panic!("{curve}") };
        let (begin, end) = (LEFT, WIDTH - RIGHT);
        assert!((first.0 - begin).abs() < 0.1 && (last.0 - end).abs() < 0.1, "{curve}");
        assert!((top.0 - begin - (end - begin) / 4.0).abs() < 0.1, "{curve}");
        // 990 MiB up, 500 down again.
        let rises = ((first.1 - top.1) / 990.0, (last.1 - top.1) / 500.0);
        assert!(rises.0 > 0.1 && (rises.0 - rises.1).abs() < 1e-3, "{curve}");
        let moments = of_class(&all, "moment");
        assert_eq!(moments.len(), 2);
        assert!((moments[0].number("x1") - top.0).abs() < 0.2, "{moments:?}");
        for text in [
            "full <up>: 1.00 s",
            "free: 4.00 s",
            "MiB",
            "seconds since the process was spawned",
            "proportional set size of its process, 3 looks; at most 1000 MiB; clock: ordinary",
        ] {
            assert!(says(&all, text), "no {text} in {all:#?}");
        }
    }

    #[test]
    fn no_looks_or_one_are_drawn_without_nonsense() {
        assert!(of_class(&elements(&plot(&series(&[], &[("never", 5.0)]))), "curve").is_empty());
        for point in [(0.0, 0.0), (0.0, 7.0), (5.0, 0.0)] {
            assert_eq!(of_class(&elements(&plot(&series(&[point], &[]))), "curve").len(), 1);
        }
    }
}

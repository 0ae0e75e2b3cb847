//! The rate of the host's time stamp counter.

use std::thread;
use std::time::{Duration, Instant};

/// How long to look. The outer kernel refines the rate itself; it must start within 1 % of the truth.
const WINDOW: Duration = Duration::from_millis(10);

/// Measures the rate in kHz. The software CPU passes the counter on as it is, while most machines
/// write its rate nowhere that a program may rely on.
pub(crate) fn tsc_khz() -> u64 {
    let start = sample();
    thread::sleep(WINDOW);
    let end = sample();
    let nanoseconds = u128::from(u64::try_from((end.1 - start.1).as_nanos()).unwrap_or(u64::MAX));
    let ticks = u128::from(end.0.saturating_sub(start.0));
    u64::try_from(ticks * 1_000_000 / nanoseconds.max(1)).unwrap_or(u64::MAX)
}

/// A reading of the counter and of the clock, of several the pair taken closest together.
fn sample() -> (u64, Instant) {
    let pair = || {
        let before = counter();
        let now = Instant::now();
        let after = counter();
        (after.saturating_sub(before), (before.midpoint(after), now))
    };
    (0..8).map(|_| pair()).min_by_key(|(spread, _)| *spread).map_or_else(|| pair().1, |best| best.1)
}

#[cfg(target_arch = "x86_64")]
fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction; Linux leaves it to user space.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The lab's init is built for other processors too, and never asks.
#[cfg(not(target_arch = "x86_64"))]
fn counter() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree_within_a_thousandth() {
        let (first, second) = (tsc_khz(), tsc_khz());
        assert!(first.abs_diff(second) * 1000 < first, "{first} kHz, then {second} kHz");
    }
}

//! What the process of one machine gives back when nothing of the start is needed any more.

use std::time::Duration;

use cabana_machine::Outcome;
use cabana_os::process;

use crate::backend::Board;

/// A machine that needs less than the [`WORK`]th part of a processor in this time is idle.
const LOOK: Duration = Duration::from_secs(1);
const WORK: u32 = 20;

/// Waits until the machine, of which alone this process is, is idle for the first time, gives back what the process can do
/// without, and waits for the machine's end. A machine that lives shorter than [`LOOK`] pays nothing.
pub(crate) fn spare_and_wait(board: &Board) -> Outcome {
    if let Some(outcome) =
        wait_idle(LOOK, process::processor_time, |limit| board.wait_within(limit))
    {
        return outcome;
    }
    // Where the host does not tell which pages can go, they stay.
    let _ = process::release_spare();
    board.wait()
}

/// Waits for a time in which the process has hardly worked; the end's outcome if that comes first.
fn wait_idle<E>(
    look: Duration,
    work: impl Fn() -> Duration,
    wait_within: impl Fn(Duration) -> Option<E>,
) -> Option<E> {
    let mut before = work();
    loop {
        if let Some(end) = wait_within(look) {
            return Some(end);
        }
        let now = work();
        if now.saturating_sub(before) < look / WORK {
            return None;
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Looks at a process that works so many milliseconds in each of the first seconds and then no more, of a machine that
    /// ends in the `end`th; what came of it, and the looks.
    fn watched(work: &[u64], end: usize) -> (Option<&'static str>, usize) {
        let looks = Cell::new(0);
        let worked = || Duration::from_millis(work.iter().take(looks.get()).sum());
        let wait = |_| {
            looks.set(looks.get() + 1);
            (looks.get() == end).then_some("ended")
        };
        (wait_idle(LOOK, worked, wait), looks.get())
    }

    #[test]
    fn the_first_second_without_work_is_found() {
        assert_eq!(watched(&[300, 51, 49], 9), (None, 3));
        assert_eq!(watched(&[], 9), (None, 1));
    }

    #[test]
    fn a_machine_that_ends_at_work_is_left_alone() {
        assert_eq!(watched(&[300], 1), (Some("ended"), 1));
        assert_eq!(watched(&[300, 300, 300, 300], 3), (Some("ended"), 3));
    }
}

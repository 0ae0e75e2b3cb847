//! When things happened, on the host's monotonic clock.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cabana_os::process::monotonic;

/// One moment with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// What happened.
    pub name: &'static str,
    /// When, on the host's monotonic clock.
    pub at: Duration,
}

/// Moments of a machine's start, shared by all who take part in it.
#[derive(Debug, Default)]
pub struct Timeline {
    marks: Mutex<Vec<Mark>>,
}

impl Timeline {
    /// An empty timeline.
    pub fn new() -> Self {
        Self::default()
    }

    /// `name` happens now.
    pub fn mark(&self, name: &'static str) {
        self.mark_at(name, monotonic());
    }

    /// `name` happened at `at`.
    pub fn mark_at(&self, name: &'static str, at: Duration) {
        self.lock().push(Mark { name, at });
    }

    /// All marks in the order of time.
    pub fn marks(&self) -> Vec<Mark> {
        let mut marks = self.lock().clone();
        marks.sort_by_key(|mark| mark.at);
        marks
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Mark>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_come_in_the_order_of_time() {
        let timeline = Timeline::new();
        timeline.mark("now");
        timeline.mark_at("at the start", Duration::ZERO);
        let names: Vec<_> = timeline.marks().iter().map(|mark| mark.name).collect();
        assert_eq!(names, ["at the start", "now"]);
    }
}

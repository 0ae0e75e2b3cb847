//! What a person sees while something takes long: bars on a terminal, a line now and then elsewhere.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How often a task that is not on a terminal says how far it is.
const SELDOM: Duration = Duration::from_secs(15);

/// Says one line on standard error.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The tasks of one setup, several at once.
pub(crate) struct Board {
    bars: Option<MultiProgress>,
}

impl Board {
    /// An empty board.
    pub(crate) fn new() -> Self {
        Self { bars: io::stderr().is_terminal().then(MultiProgress::new) }
    }

    /// A new task; it says that it starts.
    pub(crate) fn task(&self, name: &'static str) -> TaskProgress {
        let bar = self.bars.as_ref().map(|bars| {
            let style = ProgressStyle::with_template(
                "{prefix:>12} [{bar:30}] {percent:>3} % {elapsed} {wide_msg}",
            );
            let bar = bars.add(ProgressBar::new(1000));
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(name);
            bar.enable_steady_tick(Duration::from_secs(1));
            bar
        });
        if bar.is_none() {
            say(&format!("{name}: started"));
        }
        let now = Instant::now();
        TaskProgress { name, bar, started: now, said: Mutex::new(now) }
    }
}

/// One task's progress.
pub(crate) struct TaskProgress {
    name: &'static str,
    bar: Option<ProgressBar>,
    started: Instant,
    said: Mutex<Instant>,
}

impl TaskProgress {
    /// The task is this far, from 0 to 1, and does this.
    pub(crate) fn at(&self, fraction: f64, doing: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position((fraction.clamp(0.0, 1.0) * 1000.0) as u64);
            bar.set_message(doing.to_owned());
            return;
        }
        let mut said = self.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if said.elapsed() >= SELDOM {
            *said = Instant::now();
            say(&format!("{}: {:.0} %: {doing}", self.name, fraction * 100.0));
        }
    }

    /// The task is done.
    pub(crate) fn done(self) {
        let line = format!("{}: done in {:.0} s", self.name, self.started.elapsed().as_secs_f64());
        match self.bar {
            Some(bar) => {
                bar.finish_and_clear();
                bar.suspend(|| say(&line));
            }
            None => say(&line),
        }
    }
}

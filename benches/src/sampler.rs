//! A process's memory, looked at again and again while something else is waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::memory;
use crate::process::now;

/// Milliseconds since a start, and MiB then.
pub(crate) type Point = (f64, f64);

/// A thread that looks, until it is told to stop or the process is gone.
#[derive(Debug)]
pub(crate) struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Point>>,
}

impl Sampler {
    /// Looks at a process's proportional set size with `step` between two looks; `start` is zero.
    pub(crate) fn start(process: &str, start: Duration, step: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, process) = (stop.clone(), process.to_owned());
        let thread = thread::spawn(move || {
            let mut points = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let Ok(mib) = memory::pss(&process) else { break };
                points.push((ms_since(start), mib));
                thread::park_timeout(step);
            }
            points
        });
        Self { stop, thread }
    }

    /// Everything that was seen; the last look may be a step old.
    pub(crate) fn finish(self) -> Vec<Point> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        self.thread.join().unwrap_or_default()
    }
}

/// Milliseconds from a moment until now.
pub(crate) fn ms_since(start: Duration) -> f64 {
    now().saturating_sub(start).as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::process;

    const STEP: Duration = Duration::from_millis(5);

    /// Takes 32 MiB, says a byte, and gives them back after another quarter of a second.
    const FILL_AND_FREE: &str = "import mmap, time\n\
        time.sleep(.25)\nkept = mmap.mmap(-1, 32 << 20)\nkept.write(b'\\1' * (32 << 20))\n\
        print(end='f', flush=True)\ntime.sleep(.25)\nkept.close()\nprint(end='e', flush=True)\n\
        time.sleep(60)";

    #[test]
    fn what_a_process_takes_and_gives_back_is_seen_while_it_is_waited_for() {
        let start = now();
        let mut command = Command::new("python3");
        let mut filling = process::start(command.args(["-c", FILL_AND_FREE])).unwrap();
        let sampler = Sampler::start(&filling.id().to_string(), start, STEP);
        filling.next_byte().unwrap();
        let full = ms_since(start);
        filling.next_byte().unwrap();
        thread::sleep(4 * STEP);
        let points = sampler.finish();
        assert!(points.is_sorted_by(|one, next| one.0 < next.0), "{points:?}");
        let (first, last) = (points[0], points[points.len() - 1]);
        let most = points.iter().map(|point| point.1).fold(0.0, f64::max);
        assert!(first.0 < full && full < last.0, "{full} in {points:?}");
        assert!(most > first.1 + 31.0 && most > last.1 + 31.0, "{points:?}");
    }

    #[test]
    fn a_process_that_is_gone_ends_the_looking() {
        let mut brief = process::start(Command::new("sh").args(["-c", "echo"])).unwrap();
        brief.next_byte().unwrap();
        let id = brief.id().to_string();
        drop(brief);
        let sampler = Sampler::start(&id, now(), STEP);
        while !sampler.thread.is_finished() {
            thread::sleep(STEP);
        }
        assert_eq!(sampler.finish(), []);
    }
}

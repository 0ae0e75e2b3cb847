//! The system's clocks (`clock_gettime(2)`).

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Processor time of this process.
pub fn processor_time() -> Duration {
    duration(ClockId::ProcessCPUTime)
}

/// Processor time of this thread.
pub fn thread_time() -> Duration {
    duration(ClockId::ThreadCPUTime)
}

/// What a clock says.
pub(in crate::sys) fn duration(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

//! The preemption timer: signals the thread that runs a vCPU.

use std::mem;
use std::ptr;

use cabana_hv_hvf::HV_NO_RESOURCES;

use crate::Answer;

/// Again and again until it is stopped: the first signal may come just before the guest runs.
const AGAIN: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 500_000 };
const NEVER: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 0 };

/// A timer of the thread that made it.
#[derive(Debug)]
pub(crate) struct Timer(libc::timer_t);

impl Timer {
    pub(crate) fn new(signal: i32) -> Answer<Self> {
        // SAFETY: all-zero is a valid event.
        let mut event: libc::sigevent = unsafe { mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        // SAFETY: no arguments, cannot fail.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = ptr::null_mut();
        // SAFETY: the event is valid, and the timer is written.
        let made =
            unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        if made == 0 { Ok(Self(timer)) } else { Err(HV_NO_RESOURCES) }
    }

    /// Signals at this time of the clock, in nanoseconds.
    pub(crate) fn start(&self, at: u64) {
        let at = libc::timespec {
            tv_sec: (at / 1_000_000_000).cast_signed(),
            tv_nsec: (at % 1_000_000_000).cast_signed(),
        };
        self.set(libc::itimerspec { it_interval: AGAIN, it_value: at });
    }

    pub(crate) fn stop(&self) {
        self.set(libc::itimerspec { it_interval: NEVER, it_value: NEVER });
    }

    fn set(&self, time: libc::itimerspec) {
        // SAFETY: our own timer; the time is valid.
        unsafe {
            libc::timer_settime(self.0, libc::TIMER_ABSTIME, &raw const time, ptr::null_mut())
        };
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: our own timer.
        unsafe { libc::timer_delete(self.0) };
    }
}

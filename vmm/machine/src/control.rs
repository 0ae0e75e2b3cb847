//! What all vCPU threads watch: run, pause, end.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest wrote this status to the exit port, or powered off by ACPI, which is 0.
    Exit(u8),
    /// The guest asked for a reset.
    Reset,
    /// The guest's processor gave up (a triple fault); Linux ends so under `reboot=t`.
    TripleFault,
    /// [`crate::Machine::stop`] was called.
    Stopped,
    /// The hypervisor could not go on with the guest.
    Failed(String),
}

/// Shared between the machine and its vCPU threads.
#[derive(Debug, Default)]
pub(crate) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    outcome: Option<Outcome>,
    pause: bool,
    parked: u32,
    /// What each vCPU's thread said when it last parked.
    reports: Vec<Option<VcpuReport>>,
}

/// What only a vCPU's own thread can find out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VcpuReport {
    /// Exits as the hypervisor counts them, if it does.
    pub(crate) exits: Option<u64>,
    /// The guest's time-stamp counter, if it could be read.
    pub(crate) tsc: Option<u64>,
    /// When it was read, on the host's monotonic clock.
    pub(crate) at: Duration,
}

/// What a vCPU thread does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Run,
    End,
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine ends; the first outcome counts.
    pub(crate) fn end(&self, outcome: Outcome) {
        self.lock().outcome.get_or_insert(outcome);
        self.changed.notify_all();
    }

    /// Waits for the end.
    pub(crate) fn outcome(&self) -> Outcome {
        let mut state = self.lock();
        loop {
            if let Some(outcome) = &state.outcome {
                return outcome.clone();
            }
            state = self.wait(state);
        }
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<Outcome> {
        self.lock().outcome.clone()
    }

    /// Asks vCPU threads to park at their next [`Control::checkpoint`].
    pub(crate) fn request_pause(&self) {
        self.lock().pause = true;
        self.changed.notify_all();
    }

    /// Waits until `vcpus` threads are parked, or the machine has ended.
    pub(crate) fn wait_parked(&self, vcpus: u32) {
        let mut state = self.lock();
        while state.parked < vcpus && state.outcome.is_none() {
            state = self.wait(state);
        }
    }

    /// Lets parked threads go on.
    pub(crate) fn resume(&self) {
        self.lock().pause = false;
        self.changed.notify_all();
    }

    /// What each vCPU's thread said when it last parked.
    pub(crate) fn reports(&self) -> Vec<Option<VcpuReport>> {
        self.lock().reports.clone()
    }

    /// Called by vCPU `index`'s thread when it was kicked: parks while the machine is paused.
    pub(crate) fn checkpoint(&self, index: u32, report: impl FnOnce() -> VcpuReport) -> Next {
        let mut state = self.lock();
        if state.pause || state.outcome.is_some() {
            let index = index as usize;
            if state.reports.len() <= index {
                state.reports.resize(index + 1, None);
            }
            state.reports[index] = Some(report());
            state.parked += 1;
            self.changed.notify_all();
            while state.pause && state.outcome.is_none() {
                state = self.wait(state);
            }
            state.parked -= 1;
        }
        if state.outcome.is_some() { Next::End } else { Next::Run }
    }

    /// Called by the thread of vCPU `index` when it has nothing to run until the end.
    pub(crate) fn wait_end(&self, index: u32, mut report: impl FnMut() -> VcpuReport) {
        while self.checkpoint(index, &mut report) == Next::Run {
            let state = self.lock();
            if state.outcome.is_none() && !state.pause {
                drop(self.wait(state));
            }
        }
    }
}

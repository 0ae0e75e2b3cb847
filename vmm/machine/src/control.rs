//! What all vCPU threads watch: run, pause, end.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cabana_hv::{Arch, HvError, Vcpu};
use cabana_os::process::monotonic;

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
pub(crate) struct Control<A: Arch> {
    state: Mutex<State<A>>,
    changed: Condvar,
}

/// A vCPU's registers, once they have come.
type Wanted<A> = Option<Result<<A as Arch>::State, HvError>>;

#[derive(Debug, Default)]
struct State<A: Arch> {
    outcome: Option<Outcome>,
    /// How many want it paused.
    pauses: u32,
    parked: u32,
    /// What each vCPU's thread said when it last parked.
    reports: Vec<Option<VcpuReport>>,
    /// The registers that parked threads are asked for, in the order of the vCPUs; each fills its own.
    wanted: Option<Vec<Wanted<A>>>,
}

/// What only a vCPU's own thread can find out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VcpuReport {
    /// Exits as the hypervisor counts them, if it does.
    pub(crate) exits: Option<u64>,
    /// The guest's time counter, if it could be read.
    pub(crate) counter: Option<u64>,
    /// When it was read, on the host's monotonic clock.
    pub(crate) at: Duration,
}

impl VcpuReport {
    fn of<A: Arch>(vcpu: &mut dyn Vcpu<A>) -> Self {
        Self { exits: vcpu.exits(), counter: vcpu.counter().ok(), at: monotonic() }
    }
}

/// What a vCPU thread does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Run,
    End,
}

impl<A: Arch> Control<A> {
    /// Of a machine whose vCPUs wait at [`Control::wait_start`] for [`Control::resume`].
    pub(crate) fn paused() -> Self {
        let state = State { pauses: 1, ..State::default() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<A>>) -> MutexGuard<'a, State<A>> {
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

    /// Waits for the end, but no longer than so.
    pub(crate) fn outcome_within(&self, limit: Duration) -> Option<Outcome> {
        let goes_on = |state: &mut State<A>| state.outcome.is_none();
        let waited = self.changed.wait_timeout_while(self.lock(), limit, goes_on);
        waited.unwrap_or_else(PoisonError::into_inner).0.outcome.clone()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<Outcome> {
        self.lock().outcome.clone()
    }

    /// Asks vCPU threads to park at their next [`Control::checkpoint`].
    pub(crate) fn request_pause(&self) {
        self.lock().pauses += 1;
        self.changed.notify_all();
    }

    /// Waits until `vcpus` threads are parked, or the machine has ended.
    pub(crate) fn wait_parked(&self, vcpus: u32) {
        let mut state = self.lock();
        while state.parked < vcpus && state.outcome.is_none() {
            state = self.wait(state);
        }
    }

    /// Takes one request back; parked threads go on when there is none.
    pub(crate) fn resume(&self) {
        {
            let mut state = self.lock();
            state.pauses = state.pauses.saturating_sub(1);
        }
        self.changed.notify_all();
    }

    /// What each vCPU's thread said when it last parked.
    pub(crate) fn reports(&self) -> Vec<Option<VcpuReport>> {
        self.lock().reports.clone()
    }

    /// The registers of all `vcpus`, which are parked; nothing once the machine has ended.
    pub(crate) fn vcpu_states(&self, vcpus: u32) -> Result<Vec<A::State>, HvError> {
        let mut state = self.lock();
        let mut wanted = Vec::new();
        wanted.resize_with(vcpus as usize, || None);
        state.wanted = Some(wanted);
        self.changed.notify_all();
        let missing = |wanted: &Option<Vec<_>>| wanted.iter().flatten().any(Option::is_none);
        while missing(&state.wanted) && state.outcome.is_none() {
            state = self.wait(state);
        }
        state.wanted.take().into_iter().flatten().flatten().collect()
    }

    /// Called by vCPU `index`'s thread when it was kicked: parks while the machine is paused.
    pub(crate) fn checkpoint(&self, index: u32, vcpu: &mut dyn Vcpu<A>) -> Next {
        let mut state = self.lock();
        if state.pauses > 0 || state.outcome.is_some() {
            let at = index as usize;
            if state.reports.len() <= at {
                state.reports.resize(at + 1, None);
            }
            state.reports[at] = Some(VcpuReport::of(vcpu));
        }
        self.park(state, index, vcpu)
    }

    /// Called by vCPU `index`'s thread before it runs for the first time.
    pub(crate) fn wait_start(&self, index: u32, vcpu: &mut dyn Vcpu<A>) -> Next {
        self.park(self.lock(), index, vcpu)
    }

    /// Waits while the machine is paused, and answers what only this thread can.
    fn park<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<A>>,
        index: u32,
        vcpu: &mut dyn Vcpu<A>,
    ) -> Next {
        if state.pauses > 0 || state.outcome.is_some() {
            state.parked += 1;
            self.changed.notify_all();
            while state.pauses > 0 && state.outcome.is_none() {
                let wanted =
                    state.wanted.as_mut().and_then(|wanted| wanted.get_mut(index as usize));
                if let Some(wanted @ None) = wanted {
                    *wanted = Some(vcpu.state());
                    self.changed.notify_all();
                }
                state = self.wait(state);
            }
            state.parked -= 1;
        }
        if state.outcome.is_some() { Next::End } else { Next::Run }
    }

    /// Called by the thread of vCPU `index` when it has nothing to run until the end.
    pub(crate) fn wait_end(&self, index: u32, vcpu: &mut dyn Vcpu<A>) {
        while self.checkpoint(index, vcpu) == Next::Run {
            let state = self.lock();
            if state.outcome.is_none() && state.pauses == 0 {
                drop(self.wait(state));
            }
        }
    }
}

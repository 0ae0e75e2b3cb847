//! Where the others reach a vCPU: to stop it, to start it, to wake it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Functions;
use crate::psci;

/// A vCPU's post.
#[derive(Debug)]
pub(crate) struct Post {
    told: Mutex<Told>,
    changed: Condvar,
}

#[derive(Debug)]
struct Told {
    kicked: bool,
    /// There may be an interrupt.
    woken: bool,
    power: Power,
    /// The framework's vCPU, while there is one.
    vcpu: Option<u64>,
}

/// What PSCI knows of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Power {
    Off,
    /// Another one has started it.
    Starting(Start),
    On,
}

/// Where a vCPU is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) entry: u64,
    pub(crate) context: u64,
}

/// What a vCPU is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Tell of a kick, which is answered with this.
    Kicked,
    Begin(Start),
    Run,
}

impl Post {
    pub(crate) fn new(off: bool) -> Self {
        let power = if off { Power::Off } else { Power::On };
        let told = Told { kicked: false, woken: false, power, vcpu: None };
        Self { told: Mutex::new(told), changed: Condvar::new() }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The framework has a vCPU for it, until it is `None`.
    pub(crate) fn bind(&self, vcpu: Option<u64>) {
        self.told().vcpu = vcpu;
    }

    /// The run in progress, or else the next one, is told of a kick.
    pub(crate) fn kick(&self, functions: &Functions) {
        let mut told = self.told();
        told.kicked = true;
        self.changed.notify_all();
        if let Some(vcpu) = told.vcpu {
            // A vCPU that does not run comes back from its next run at once, which the flag outlives.
            // SAFETY: one vCPU, which is there for as long as the lock is held. A failure could only say that
            // there is nothing to stop.
            unsafe { (functions.hv_vcpus_exit)(&raw const vcpu, 1) };
        }
    }

    /// There may be an interrupt: whoever waits for one looks again.
    pub(crate) fn wake(&self) {
        self.told().woken = true;
        self.changed.notify_all();
    }

    /// Waits while the vCPU is off; then says what it is to do.
    pub(crate) fn next(&self) -> Next {
        let mut told = self.told();
        loop {
            if std::mem::take(&mut told.kicked) {
                return Next::Kicked;
            }
            match told.power {
                Power::On => return Next::Run,
                Power::Starting(start) => {
                    told.power = Power::On;
                    return Next::Begin(start);
                }
                Power::Off => {
                    told = self.changed.wait(told).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Waits for an interrupt, a kick, or until time is over.
    pub(crate) fn wait(&self, time: Option<Duration>) {
        let deadline = time.and_then(|time| Instant::now().checked_add(time));
        let mut told = self.told();
        while !told.kicked && !told.woken {
            told = match deadline {
                None => self.changed.wait(told).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    let waited = self.changed.wait_timeout(told, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        told.woken = false;
    }

    /// `CPU_ON`: PSCI's answer.
    pub(crate) fn start(&self, start: Start) -> i64 {
        let mut told = self.told();
        match told.power {
            Power::On => psci::ALREADY_ON,
            Power::Starting(_) => psci::ON_PENDING,
            Power::Off => {
                told.power = Power::Starting(start);
                self.changed.notify_all();
                psci::SUCCESS
            }
        }
    }

    pub(crate) fn power(&self) -> Power {
        self.told().power
    }

    pub(crate) fn set_power(&self, power: Power) {
        self.told().power = power;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_is_started_once() {
        let post = Post::new(true);
        let start = Start { entry: 1, context: 2 };
        assert_eq!(post.start(start), psci::SUCCESS);
        assert_eq!(post.start(start), psci::ON_PENDING);
        assert_eq!(post.next(), Next::Begin(start));
        assert_eq!(post.next(), Next::Run);
        assert_eq!(post.start(start), psci::ALREADY_ON);
    }

    #[test]
    fn waiting_ends_with_an_interrupt_or_with_time() {
        let post = Post::new(false);
        let begin = Instant::now();
        post.wait(Some(Duration::from_millis(5)));
        assert!(begin.elapsed() >= Duration::from_millis(5));
        // One that came before counts.
        post.wake();
        post.wait(None);
        std::thread::scope(|scope| {
            scope.spawn(|| post.wait(None));
            post.wake();
        });
    }
}

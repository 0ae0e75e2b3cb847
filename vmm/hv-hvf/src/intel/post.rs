//! Where the others reach a vCPU: its local APIC, kicks, INIT and SIPI; and where it waits.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cabana_hv::x86::Activity;
use cabana_lapic::{Apic, Delivery, Message};

use super::clock::Clock;
use super::functions::Framework;

/// No run is longer, in nanoseconds. The documentation does not say whether a vCPU that is told to come back just
/// before it runs does; if not, it comes back after this.
const LONGEST_RUN: u64 = 10_000_000;
/// No wait is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// A vCPU's post.
#[derive(Debug)]
pub(crate) struct Post {
    framework: Arc<Framework>,
    told: Mutex<Told>,
    changed: Condvar,
}

#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) apic: Apic,
    /// What its time-stamp counter is more than the framework's clock.
    pub(crate) tsc_offset: i64,
    kicked: bool,
    pub(crate) nmi: bool,
    init: bool,
    start: Option<u8>,
    /// The framework's vCPU, while it runs.
    running: Option<u32>,
}

/// What the vCPU can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Able {
    pub(crate) id: u32,
    pub(crate) activity: Activity,
    /// `RFLAGS.IF`.
    pub(crate) interrupts: bool,
    /// Nothing else comes before an interrupt or an NMI.
    pub(crate) free: bool,
    /// NMIs are blocked.
    pub(crate) in_nmi: bool,
}

/// What it is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Tell of a kick, which is answered with this.
    Kicked,
    /// Be as after INIT, and wait.
    Init,
    /// Begin at this page.
    Start(u8),
    Run(Run),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Until this time of `mach_absolute_time`.
    pub(crate) until: u64,
    /// Take this interrupt first.
    pub(crate) interrupt: Option<u8>,
    /// Or an NMI.
    pub(crate) nmi: bool,
    /// Come back as soon as one could be taken.
    pub(crate) interrupt_window: bool,
    pub(crate) nmi_window: bool,
}

impl Post {
    pub(crate) fn new(framework: Arc<Framework>, index: u32, tsc_offset: i64) -> Self {
        let told = Told {
            apic: Apic::new(index),
            tsc_offset,
            kicked: false,
            nmi: false,
            init: false,
            start: None,
            running: None,
        };
        Self { framework, told: Mutex::new(told), changed: Condvar::new() }
    }

    pub(crate) fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run in progress, or else the next one, is told of a kick.
    pub(crate) fn kick(&self) {
        let mut told = self.told();
        told.kicked = true;
        self.wake(&told);
    }

    fn wake(&self, told: &Told) {
        self.changed.notify_all();
        if let Some(mut vcpu) = told.running {
            // SAFETY: one vCPU, which is there for as long as it says that it runs. A failure could only say that
            // there is nothing to interrupt.
            unsafe { (self.framework.functions.hv_vcpu_interrupt)(&raw mut vcpu, 1) };
        }
    }

    /// Takes a message that is for this vCPU.
    pub(crate) fn deliver(&self, message: Message) {
        let mut told = self.told();
        match message.delivery {
            Delivery::Fixed | Delivery::Lowest => {
                told.apic.request(message.vector, message.level);
                if told.apic.pending().is_none() {
                    return;
                }
            }
            Delivery::Nmi => told.nmi = true,
            Delivery::Init => {
                (told.init, told.start) = (true, None);
            }
            Delivery::StartUp => told.start = Some(message.vector),
        }
        self.wake(&told);
    }

    /// Waits for something to do, and says what it is.
    pub(crate) fn next(&self, able: Able, clock: &Clock) -> Next {
        let mut told = self.told();
        loop {
            if std::mem::take(&mut told.kicked) {
                return Next::Kicked;
            }
            if std::mem::take(&mut told.init) {
                told.apic.init();
                return Next::Init;
            }
            let waits = matches!(able.activity, Activity::WaitForSipi | Activity::InitReceived);
            let start = told.start.take();
            let now = clock.now(told.tsc_offset);
            let timer = if waits {
                if let Some(page) = start {
                    return Next::Start(page);
                }
                None
            } else {
                told.apic.tick(now);
                let pending = told.apic.pending().is_some();
                let wakes = told.nmi || pending && able.interrupts;
                let timer = told.apic.deadline().map(|at| clock.nanoseconds(at, now));
                if able.activity == Activity::Running || wakes {
                    let until = timer.unwrap_or(u64::MAX);
                    let until = until.min(now.nanoseconds.saturating_add(LONGEST_RUN));
                    return Next::Run(told.run(able, clock.ticks(until)));
                }
                timer
            };
            let left = timer.map(|at| Duration::from_nanos(at.saturating_sub(now.nanoseconds)));
            let left = left.map_or(LONGEST_WAIT, |left| left.min(LONGEST_WAIT));
            let waited = self.changed.wait_timeout(told, left);
            told = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The vCPU has come back.
    pub(crate) fn back(&self) {
        self.told().running = None;
    }
}

impl Told {
    fn run(&mut self, able: Able, until: u64) -> Run {
        self.running = Some(able.id);
        let nmi = self.nmi && able.free && !able.in_nmi;
        if nmi {
            self.nmi = false;
        }
        let ready = able.free && able.interrupts && !nmi;
        let interrupt = if ready { self.apic.acknowledge() } else { None };
        Run {
            until,
            interrupt,
            nmi,
            interrupt_window: self.apic.pending().is_some(),
            nmi_window: self.nmi,
        }
    }
}

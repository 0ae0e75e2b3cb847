//! Signals to `cabana` that are meant for the command in the guest.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use cabana_os::signals::{HANGUP, INTERRUPT, QUIT, Signals, TERMINATE, USER1, USER2, WINDOW};

use crate::Failure;

const FORWARDED: [i32; 7] = [HANGUP, INTERRUPT, QUIT, TERMINATE, USER1, USER2, WINDOW];

/// Takes signals from its creation on. Until the command runs, the first one ends `cabana`.
pub(crate) struct Forwarder {
    target: Arc<Mutex<Target>>,
}

/// Where signals go, once there is a command.
type Target = Option<Box<dyn Fn(i32) + Send>>;

impl Forwarder {
    pub(crate) fn start() -> Result<Self, Failure> {
        let target = Arc::new(Mutex::new(Target::None));
        let mut signals = Signals::new(&FORWARDED)?;
        let shared = Arc::clone(&target);
        thread::Builder::new().name("signals".to_owned()).stack_size(128 << 10).spawn(
            move || {
                while let Some(signal) = signals.wait() {
                    forward(signal, &shared.lock().unwrap_or_else(PoisonError::into_inner));
                }
            },
        )?;
        Ok(Self { target })
    }

    /// The command runs: signals go to it from now on.
    pub(crate) fn attach(&self, deliver: impl Fn(i32) + Send + 'static) {
        let mut target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        *target = Some(Box::new(deliver));
    }
}

fn forward(signal: i32, target: &Target) {
    match (target, signal) {
        (Some(deliver), signal) => deliver(signal),
        (None, WINDOW) => {}
        // Nothing runs yet, and nothing of the machine outlives this process.
        (None, signal) => std::process::exit(128 + signal),
    }
}

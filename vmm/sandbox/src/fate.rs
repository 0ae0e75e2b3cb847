//! How a machine ended, for everyone who was talking to it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cabana_block::DiskError;
use cabana_machine::Outcome;
use cabana_protocol::{ProtocolError, exit_port};

use crate::{ConsoleTail, Error};

/// A connection that breaks is nearly always a machine that ended: its end is known this much later
/// at the most.
const PATIENCE: Duration = Duration::from_secs(1);

/// Shared by the machine and its processes.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    pub(crate) console: ConsoleTail,
    told: Mutex<Told>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Told {
    outcome: Option<Outcome>,
    /// The first failure of the disk.
    disk_failure: Option<String>,
}

impl Fate {
    /// The machine has ended.
    pub(crate) fn seal(&self, outcome: Outcome) {
        self.told().outcome.get_or_insert(outcome);
        self.changed.notify_all();
    }

    /// The host could not do what the guest asked of its disk.
    pub(crate) fn disk_failed(&self, error: &DiskError) {
        let sentence = if error.host_is_full() {
            format!("the host's disk is full: {error}")
        } else {
            error.to_string()
        };
        self.told().disk_failure.get_or_insert(sentence);
        self.changed.notify_all();
    }

    /// The first failure of the disk.
    pub(crate) fn disk_failure(&self) -> Option<String> {
        self.told().disk_failure.clone()
    }

    /// Waits for the first failure of the disk, or for the end.
    pub(crate) fn wait_disk_failure(&self) -> Option<String> {
        let waits = |told: &mut Told| told.outcome.is_none() && told.disk_failure.is_none();
        let told = self.changed.wait_while(self.told(), waits);
        told.unwrap_or_else(PoisonError::into_inner).disk_failure.clone()
    }

    /// Waits for the end, at most for `limit`.
    pub(crate) fn wait(&self, limit: Duration) -> Option<Outcome> {
        let waits = |told: &mut Told| told.outcome.is_none();
        let waited = self.changed.wait_timeout_while(self.told(), limit, waits);
        waited.unwrap_or_else(PoisonError::into_inner).0.outcome.clone()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says why a conversation with the guest ended: by the machine's end if there is one.
    pub(crate) fn explain(&self, error: ProtocolError) -> Error {
        let broken = matches!(error, ProtocolError::Io(_) | ProtocolError::Closed);
        match self.wait(if broken { PATIENCE } else { Duration::ZERO }) {
            Some(outcome) => self.error(&outcome),
            None if broken => Error::Agent("it closed the connection".to_owned()),
            None => Error::Protocol(error),
        }
    }

    /// An end after a shutdown: fine if the agent made it.
    pub(crate) fn judge(&self, outcome: &Outcome) -> Result<(), Error> {
        match outcome {
            Outcome::Exit(exit_port::POWER_OFF) => Ok(()),
            outcome => Err(self.error(outcome)),
        }
    }

    /// An end that nobody asked for.
    pub(crate) fn error(&self, outcome: &Outcome) -> Error {
        match outcome {
            Outcome::Exit(exit_port::AGENT_FAILED | exit_port::SETUP_FAILED) => {
                Error::Agent(self.console.last_words())
            }
            Outcome::Exit(status) => {
                Error::Agent(format!("the guest ended the machine with status {status}"))
            }
            Outcome::Reset | Outcome::TripleFault if self.console.text().is_empty() => {
                let why = "it ended without a word, as after a reboot from within";
                Error::GuestPanicked(why.to_owned())
            }
            Outcome::Reset | Outcome::TripleFault => {
                Error::GuestPanicked(self.console.last_words())
            }
            Outcome::Stopped => Error::Stopped,
            Outcome::Failed(why) => Error::Hypervisor(why.clone()),
        }
    }
}

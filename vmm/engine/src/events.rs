//! What happens to a machine, for whoever wants to hear it.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cabana_api::MachineEvent;

/// Events that wait for a listener; further ones are lost to it.
const WAITING: usize = 1024;

/// The events of a machine from the moment on at which this was asked for. It ends with the machine's last
/// handle.
#[derive(Debug)]
pub struct Events {
    receiver: Receiver<MachineEvent>,
}

impl Events {
    /// Waits for an event; `None` when there will be no more.
    pub fn next_event(&self) -> Option<MachineEvent> {
        self.receiver.recv().ok()
    }

    /// Like [`next_event`](Self::next_event), at most for `limit`.
    pub fn next_within(&self, limit: Duration) -> Option<MachineEvent> {
        self.receiver.recv_timeout(limit).ok()
    }
}

impl IntoIterator for Events {
    type Item = MachineEvent;
    type IntoIter = std::sync::mpsc::IntoIter<MachineEvent>;

    fn into_iter(self) -> Self::IntoIter {
        self.receiver.into_iter()
    }
}

/// Everybody who listens.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    senders: Mutex<Vec<SyncSender<MachineEvent>>>,
}

impl Listeners {
    pub(crate) fn listen(&self) -> Events {
        let (sender, receiver) = sync_channel(WAITING);
        self.senders.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        Events { receiver }
    }

    pub(crate) fn tell(&self, event: &MachineEvent) {
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        senders.retain(|sender| {
            !matches!(sender.try_send(event.clone()), Err(TrySendError::Disconnected(_)))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_that_does_not_listen_holds_nobody_up() {
        let listeners = Listeners::default();
        let (slow, gone) = (listeners.listen(), listeners.listen());
        drop(gone);
        for _ in 0..2 * WAITING {
            listeners.tell(&MachineEvent::Stopped);
        }
        drop(listeners);
        assert_eq!(slow.into_iter().count(), WAITING);
    }
}

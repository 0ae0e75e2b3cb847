//! What the embedder types and how large its window is.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use cabana_os::Event;
use cabana_virtio::{Chain, DeviceInterrupt};

use crate::ConsoleState;

/// Bytes that wait for the guest at most.
pub(crate) const CAPACITY: usize = 64 << 10;

/// The embedder's end of a console.
#[derive(Clone, Debug)]
pub struct ConsoleInput {
    shared: Arc<Shared>,
}

/// Between the device and its [`ConsoleInput`].
#[derive(Debug, Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// The guest has read something, or the console is gone.
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    /// Makes the receive queue look for bytes.
    doorbell: Option<Event>,
    interrupt: Option<DeviceInterrupt>,
    columns: u16,
    rows: u16,
    closed: bool,
}

impl ConsoleInput {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Types as many of `bytes` as there is room for (64 KiB wait at most) and says how many.
    pub fn push(&self, bytes: &[u8]) -> usize {
        self.shared.lock().push(bytes)
    }

    /// Types all of `bytes` and waits where there is no room; false if the console went away.
    /// For a thread of its own that copies a terminal or a pipe.
    pub fn push_all(&self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        let mut state = self.shared.lock();
        loop {
            let taken = state.push(rest);
            rest = &rest[taken..];
            if rest.is_empty() || state.closed {
                return rest.is_empty();
            }
            state = self.shared.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Tells the guest the size of the window in characters; 0 × 0, as at the start, is unknown.
    pub fn resize(&self, columns: u16, rows: u16) {
        let mut state = self.shared.lock();
        if (state.columns, state.rows) == (columns, rows) {
            return;
        }
        (state.columns, state.rows) = (columns, rows);
        let interrupt = state.interrupt.clone();
        drop(state);
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn size(&self) -> (u16, u16) {
        let state = self.lock();
        (state.columns, state.rows)
    }

    pub(crate) fn save(&self) -> ConsoleState {
        let state = self.lock();
        ConsoleState {
            typed: state.bytes.iter().copied().collect(),
            columns: state.columns,
            rows: state.rows,
        }
    }

    pub(crate) fn restore(&self, saved: &ConsoleState) {
        let mut state = self.lock();
        state.push(&saved.typed);
        (state.columns, state.rows) = (saved.columns, saved.rows);
    }

    pub(crate) fn connect(&self, doorbell: Event) {
        self.lock().doorbell = Some(doorbell);
    }

    pub(crate) fn disconnect(&self) {
        self.lock().doorbell = None;
    }

    /// From now on a new size interrupts. One from before is seen by the transport, which looks at
    /// the configuration when all queues have started.
    pub(crate) fn announce_through(&self, interrupt: DeviceInterrupt) {
        self.lock().interrupt = Some(interrupt);
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.room.notify_all();
    }

    /// Moves bytes into the buffer; `None` if there are none.
    pub(crate) fn give(&self, chain: &Chain) -> Option<u32> {
        let mut state = self.lock();
        if state.bytes.is_empty() {
            return None;
        }
        let mut writer = chain.writer();
        let count = state.bytes.len().min(writer.left());
        let bytes: Vec<u8> = state.bytes.drain(..count).collect();
        let _lost = writer.write_all(&bytes);
        drop(state);
        self.room.notify_all();
        Some(writer.written())
    }
}

impl State {
    fn push(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(CAPACITY - self.bytes.len());
        self.bytes.extend(&bytes[..count]);
        if let (1.., Some(doorbell)) = (count, &self.doorbell) {
            doorbell.signal();
        }
        count
    }
}

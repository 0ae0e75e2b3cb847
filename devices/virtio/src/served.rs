//! A queue served on an event loop: the loop that most devices share.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use cabana_os::{LoopHandle, Token};

use crate::{Chain, Queue, QueueContext, QueueError, QueueState};

/// A queue whose buffers a function answers, one after the other, on a loop's thread.
#[derive(Debug)]
pub struct ServedQueue {
    queue: Arc<Mutex<Queue>>,
    events: LoopHandle,
    token: Token,
}

impl ServedQueue {
    /// Calls `serve` for every buffer; it returns the bytes that it wrote. A broken ring ends the
    /// service until the driver resets the device.
    pub fn start(
        events: &LoopHandle,
        context: QueueContext,
        mut serve: impl FnMut(&Chain) -> u32 + Send + 'static,
    ) -> io::Result<Self> {
        let QueueContext { queue, doorbell, interrupt } = context;
        let queue = Arc::new(Mutex::new(queue));
        let served = Arc::clone(&queue);
        let mut broken = false;
        let token = events.add_event(&doorbell, move || {
            let mut queue = served.lock().unwrap_or_else(PoisonError::into_inner);
            if broken {
                return;
            }
            match drain(&mut queue, &mut serve) {
                Ok(true) => interrupt.used_buffer(),
                Ok(false) => {}
                Err(_) => broken = true,
            }
        })?;
        // What the driver offered before anyone listened.
        doorbell.signal();
        Ok(Self { queue, events: events.clone(), token })
    }

    /// Ends the service and says where the queue stands.
    pub fn stop(self) -> QueueState {
        self.events.remove(self.token);
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).state()
    }
}

/// Serves all that is there; true if the driver wants an interrupt for it.
fn drain(queue: &mut Queue, serve: &mut impl FnMut(&Chain) -> u32) -> Result<bool, QueueError> {
    let mut served = false;
    loop {
        queue.disable_doorbell()?;
        while let Some(chain) = queue.pop()? {
            let written = serve(&chain);
            queue.push(&chain, written)?;
            served = true;
        }
        if !queue.enable_doorbell()? {
            break;
        }
    }
    Ok(served && queue.needs_interrupt()?)
}

//! From the driver to the link (virtio 1.3 §5.1.6.2).

use std::sync::Arc;

use cabana_netstack::FrameLink;
use cabana_os::Event;
use cabana_virtio::{Chain, DeviceInterrupt, Queue, QueueContext, QueueError, QueueState};

use crate::service::conclude;
use crate::{HEADER, MAX_FRAME};

/// The transmit queue.
pub(crate) struct Tx<L> {
    link: Arc<L>,
    queue: Queue,
    doorbell: Event,
    interrupt: DeviceInterrupt,
    frame: Vec<u8>,
    broken: bool,
}

impl<L: FrameLink> Tx<L> {
    pub(crate) fn new(link: Arc<L>, context: QueueContext) -> Self {
        let QueueContext { queue, doorbell, interrupt, .. } = context;
        Self { link, queue, doorbell, interrupt, frame: vec![0; MAX_FRAME], broken: false }
    }

    pub(crate) fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Sends what the driver has offered, but no more than a queue full: the loop has others to serve.
    pub(crate) fn serve(&mut self) {
        if self.broken {
            return;
        }
        let round = self.round();
        self.broken = conclude(round, &self.doorbell, &self.interrupt);
        self.link.flush();
    }

    /// One round; true if there is more.
    fn round(&mut self) -> Result<bool, QueueError> {
        self.queue.disable_doorbell()?;
        let mut sent = 0;
        let more = loop {
            if sent == self.queue.size() {
                break true;
            }
            let Some(chain) = self.queue.pop()? else {
                if self.queue.enable_doorbell()? {
                    continue;
                }
                break false;
            };
            if let Some(frame) = read(&chain, &mut self.frame) {
                self.link.transmit(frame);
            }
            self.queue.push(&chain, 0)?;
            sent += 1;
        };
        if sent > 0 && self.queue.needs_interrupt()? {
            self.interrupt.used_buffer();
        }
        Ok(more)
    }
}

/// The frame in a buffer; none if there is no whole header or too much behind it. Of the header nothing is
/// needed: a checksum that is left out is looked at by nobody, and a packet that the driver did not cut up
/// need not be.
fn read<'a>(chain: &Chain, room: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut reader = chain.reader();
    reader.read_exact(&mut [0; HEADER]).ok()?;
    let frame = room.get_mut(..reader.left())?;
    reader.read_exact(frame).ok()?;
    Some(frame)
}

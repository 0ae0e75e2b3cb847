//! From the link to the driver (virtio 1.3 §5.1.6.3, §5.1.6.4).

use std::sync::Arc;

use cabana_netstack::{FrameLink, Outgoing};
use cabana_os::Event;
use cabana_virtio::{Chain, DeviceInterrupt, Queue, QueueContext, QueueError, QueueState};

use crate::HEADER;
use crate::service::conclude;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;
/// Where TCP has its checksum, from its header on.
const TCP_CHECKSUM: u16 = 16;

/// The receive queue.
pub(crate) struct Rx<L> {
    link: Arc<L>,
    ring: Ring,
    doorbell: Event,
    interrupt: DeviceInterrupt,
    /// A frame that found too few buffers.
    waiting: Option<(Vec<u8>, Option<u16>)>,
    broken: bool,
}

/// The ring and the buffers of one frame.
struct Ring {
    queue: Queue,
    merged: bool,
    /// Those of the frame that is being delivered.
    taken: Vec<Chain>,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivery {
    Done,
    /// The driver has too few buffers.
    Starved,
}

impl<L: FrameLink> Rx<L> {
    pub(crate) fn new(link: Arc<L>, context: QueueContext, merged: bool) -> Self {
        let QueueContext { queue, doorbell, interrupt, .. } = context;
        let ring = Ring { queue, merged, taken: Vec::new() };
        Self { link, ring, doorbell, interrupt, waiting: None, broken: false }
    }

    /// Where the queue stands; buffers that wait for more of their kind count as not taken.
    pub(crate) fn state(&mut self) -> QueueState {
        self.ring.give_back();
        self.ring.queue.state()
    }

    /// Hands over what there is, but no more than a queue full: the loop has others to serve.
    pub(crate) fn serve(&mut self) {
        if self.broken {
            return;
        }
        let round = self.round();
        self.broken = conclude(round, &self.doorbell, &self.interrupt);
    }

    /// One round; true if there is more.
    fn round(&mut self) -> Result<bool, QueueError> {
        let mut delivered = 0;
        let more = loop {
            if delivered == self.ring.queue.size() {
                break true;
            }
            match self.deliver_next()? {
                None => break false,
                Some(Delivery::Done) => delivered += 1,
                Some(Delivery::Starved) => {
                    if !self.ring.queue.enable_doorbell()? {
                        break false;
                    }
                }
            }
        };
        if delivered > 0 && self.ring.queue.needs_interrupt()? {
            self.interrupt.used_buffer();
        }
        Ok(more)
    }

    /// The next frame; `None` if there is none.
    fn deliver_next(&mut self) -> Result<Option<Delivery>, QueueError> {
        if let Some((frame, checksum_from)) = &self.waiting {
            let outgoing = Outgoing { frame, checksum_from: *checksum_from };
            let delivery = self.ring.deliver(outgoing)?;
            if delivery == Delivery::Done {
                self.waiting = None;
            }
            return Ok(Some(delivery));
        }
        let mut result = Ok(None);
        let (ring, waiting) = (&mut self.ring, &mut self.waiting);
        self.link.receive(&mut |outgoing| {
            let delivery = ring.deliver(outgoing);
            if matches!(delivery, Ok(Delivery::Starved)) {
                *waiting = Some((outgoing.frame.to_vec(), outgoing.checksum_from));
            }
            result = delivery.map(Some);
        });
        result
    }
}

impl Ring {
    /// Writes a frame into as many buffers as it needs. Starved, it keeps those that there were.
    fn deliver(&mut self, outgoing: Outgoing<'_>) -> Result<Delivery, QueueError> {
        let wanted = HEADER + outgoing.frame.len();
        let mut room: usize = self.taken.iter().map(|chain| chain.writer().left()).sum();
        while room < wanted {
            // A driver that has put all its buffers here will never have more, and without merging there is
            // one for each frame: it loses the frame.
            let full = self.taken.len() == usize::from(self.queue.size());
            if full || (!self.merged && !self.taken.is_empty()) {
                self.give_back();
                return Ok(Delivery::Done);
            }
            let Some(chain) = self.queue.pop()? else { return Ok(Delivery::Starved) };
            room += chain.writer().left();
            self.taken.push(chain);
        }
        let written = self.write(outgoing);
        self.queue.push_all(self.taken.iter().zip(written))?;
        self.taken.clear();
        Ok(Delivery::Done)
    }

    /// Writes header and frame over the buffers taken; bytes written in each.
    fn write(&self, outgoing: Outgoing<'_>) -> Vec<u32> {
        let header = header(outgoing.checksum_from, self.taken.len() as u16);
        let (mut header, mut frame) = (&header[..], outgoing.frame);
        let mut written = Vec::with_capacity(self.taken.len());
        for chain in &self.taken {
            let mut writer = chain.writer();
            for rest in [&mut header, &mut frame] {
                let (now, later) = rest.split_at(rest.len().min(writer.left()));
                // The pieces were checked when the chain was taken.
                let _ = writer.write_all(now);
                *rest = later;
            }
            written.push(writer.written());
        }
        written
    }

    fn give_back(&mut self) {
        for _ in self.taken.drain(..) {
            self.queue.unpop();
        }
    }
}

/// `struct virtio_net_hdr` for a frame to the driver.
fn header(checksum_from: Option<u16>, buffers: u16) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    if let Some(from) = checksum_from {
        header[0] = NEEDS_CSUM;
        header[6..8].copy_from_slice(&from.to_le_bytes());
        header[8..10].copy_from_slice(&TCP_CHECKSUM.to_le_bytes());
    }
    header[10..12].copy_from_slice(&buffers.to_le_bytes());
    header
}

//! The transmit queue: everything that comes from the guest, served on the event loop.

use std::sync::Arc;

use cabana_os::Event;
use cabana_virtio::{Chain, DeviceInterrupt, Queue, QueueContext, QueueError, QueueState, Reader};

use crate::connection::Verdict;
use crate::host::Hub;
use crate::link::{Key, Link};
use crate::packet::{HOST_CID, Header, Op, STREAM};

/// The queue in service.
#[derive(Debug)]
pub(crate) struct Tx {
    hub: Arc<Hub>,
    queue: Queue,
    interrupt: DeviceInterrupt,
    doorbell: Arc<Event>,
    /// Too many resets wait; see [`crate::rx::Rx::pause_tx`].
    paused: bool,
    broken: bool,
    /// Connections that may owe packets after this round.
    touched: Vec<Arc<Link>>,
    resets: Vec<Header>,
}

impl Tx {
    pub(crate) fn new(hub: Arc<Hub>, context: QueueContext) -> Self {
        let QueueContext { queue, doorbell, interrupt, .. } = context;
        Self {
            hub,
            queue,
            interrupt,
            doorbell: Arc::new(doorbell),
            paused: false,
            broken: false,
            touched: Vec::new(),
            resets: Vec::new(),
        }
    }

    pub(crate) fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Takes what the guest has sent, but no more than a queue full: a driver that never stops must
    /// not keep the loop from others.
    pub(crate) fn serve(&mut self) {
        if self.broken || self.is_paused() {
            return;
        }
        let mut served = false;
        let round = self.round(&mut served);
        self.answer();
        // Without a valid ring nobody knows what the driver wants; once too often does no harm.
        if served && self.queue.needs_interrupt().unwrap_or(true) {
            self.interrupt.used_buffer();
        }
        match round {
            Ok(false) => {}
            Ok(true) => self.doorbell.signal(),
            Err(error) => {
                self.broken = true;
                self.interrupt.needs_reset(error);
                self.hub.broken();
            }
        }
    }

    /// True if there is more.
    fn round(&mut self, served: &mut bool) -> Result<bool, QueueError> {
        self.queue.disable_doorbell()?;
        for _ in 0..self.queue.size() {
            let Some(chain) = self.queue.pop()? else {
                if self.queue.enable_doorbell()? {
                    continue;
                }
                return Ok(false);
            };
            self.receive(&chain);
            self.queue.push(&chain, 0)?;
            *served = true;
        }
        Ok(true)
    }

    /// Sends what the round has caused.
    fn answer(&mut self) {
        if self.touched.is_empty() && self.resets.is_empty() {
            return;
        }
        self.paused = self.hub.with_rx(|rx| {
            for reset in self.resets.drain(..) {
                rx.owe_reset(reset);
            }
            for link in self.touched.drain(..) {
                rx.owe(&link);
            }
            rx.flush();
            rx.pause_tx(&self.doorbell)
        });
    }

    fn is_paused(&mut self) -> bool {
        self.paused = self.paused && self.hub.with_rx(|rx| rx.pause_tx(&self.doorbell));
        self.paused
    }

    /// One packet. What no driver would send is dropped if it is not even the guest's, and answered
    /// with a reset otherwise.
    fn receive(&mut self, chain: &Chain) {
        let mut reader = chain.reader();
        let mut bytes = [0; Header::LEN];
        if reader.read_exact(&mut bytes).is_err() {
            return;
        }
        let packet = Header::parse(bytes);
        if packet.src_cid.get() != self.hub.config.guest_cid {
            return;
        }
        if packet.dst_cid.get() != HOST_CID || packet.kind.get() != STREAM {
            return self.reset(&packet);
        }
        let key = Key { host_port: packet.dst_port.get(), guest_port: packet.src_port.get() };
        let link = match self.hub.find(key) {
            // The guest has forgotten a connection that the host has closed, and uses its port again.
            Some(link)
                if packet.op() == Some(Op::Request) && link.lock().connection.is_closing() =>
            {
                self.hub.forget(&link);
                None
            }
            found => found,
        };
        match link {
            Some(link) => self.receive_known(&link, &packet, reader),
            None if packet.op() == Some(Op::Request) => match self.hub.open(key, &packet) {
                Some(link) => self.touched.push(link),
                None => self.reset(&packet),
            },
            None => self.reset(&packet),
        }
    }

    fn receive_known(&mut self, link: &Arc<Link>, packet: &Header, reader: Reader<'_>) {
        let len = packet.len.get();
        let (mut verdict, mut owes) = link.update(|state| {
            let cut_off = packet.op() == Some(Op::Data) && len as usize > reader.left();
            let connection = &mut state.connection;
            let verdict = if cut_off { connection.violated() } else { connection.receive(packet) };
            (verdict, connection.owes())
        });
        if verdict == Verdict::Keep && self.keep(link, reader, len as usize).is_err() {
            (verdict, owes) = link.update(|state| (state.connection.violated(), false));
        }
        if owes {
            self.touched.push(Arc::clone(link));
        }
        if let Verdict::Forget { reset } = verdict {
            self.hub.forget(link);
            if reset {
                self.reset(packet);
            }
        }
    }

    /// Copies `len` bytes of payload to where the reader finds them.
    fn keep(&self, link: &Link, mut reader: Reader<'_>, len: usize) -> Result<(), QueueError> {
        let mut left = len;
        left -= link.update(|state| match state.inbox.last() {
            Some(block) => block.fill(left, |place| reader.read_exact(place)),
            None => Ok(0),
        })?;
        while left > 0 {
            let mut block = self.hub.pool.get();
            left -= block.fill(left, |place| reader.read_exact(place))?;
            link.update(|state| {
                if state.connection.has_reader() {
                    state.inbox.push(block);
                }
            });
        }
        Ok(())
    }

    /// Answers a packet with a reset, unless it is one.
    fn reset(&mut self, packet: &Header) {
        if packet.op() != Some(Op::Reset) {
            self.resets.push(packet.reset());
        }
    }
}

//! The receive queue: everything that goes to the guest. Whoever has something to send does it on
//! its own thread, straight into the guest's buffers; nothing waits for the event loop.

use std::collections::VecDeque;
use std::sync::Arc;

use cabana_os::Event;
use cabana_virtio::{Chain, DeviceInterrupt, Queue, QueueContext, QueueError, QueueState};
use zerocopy::IntoBytes;

use crate::VsockError;
use crate::connection::Connection;
use crate::link::{Key, Link};
use crate::packet::{HOST_CID, Header, Op, STREAM};

/// Payload that one call sends at most, so that others have their turn.
const BATCH: usize = 64 << 10;
/// Resets that wait for buffers before the device stops reading what provokes them.
const MAX_RESETS: usize = 1024;

/// Why the queue cannot be served any more.
#[derive(Debug, thiserror::Error)]
enum RxError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("a receive buffer of {0} bytes has no room for data")]
    Buffer(usize),
}

/// What became of a try to send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// So many bytes went out, at least one.
    Bytes(usize),
    /// None; the link's writers are woken when it is worth another try.
    Blocked,
}

/// The queue, while the driver has given us one, and what waits for its buffers.
#[derive(Debug)]
pub(crate) struct Rx {
    live: Option<Live>,
    owed: Owed,
    /// Connections whose writers found no buffer (`LinkState::starved`).
    starved: Vec<Arc<Link>>,
    /// The transmit queue's doorbell, if that is left alone until resets have gone out.
    paused_tx: Option<Arc<Event>>,
    /// The driver broke the queue, and nobody has been told yet.
    failed: bool,
}

/// A queue in service.
#[derive(Debug)]
struct Live {
    queue: Queue,
    interrupt: DeviceInterrupt,
    /// The driver has not been interrupted for the last buffers.
    unannounced: bool,
    broken: bool,
}

/// Packets without payload that the guest is to be sent.
#[derive(Debug)]
struct Owed {
    guest_cid: u64,
    /// For connections that nobody knows.
    resets: VecDeque<Header>,
    /// Connections that owe packets, each once (`LinkState::queued`).
    links: VecDeque<Arc<Link>>,
}

impl Rx {
    pub(crate) fn new(guest_cid: u64) -> Self {
        Self {
            live: None,
            owed: Owed { guest_cid, resets: VecDeque::new(), links: VecDeque::new() },
            starved: Vec::new(),
            paused_tx: None,
            failed: false,
        }
    }

    pub(crate) fn start(&mut self, context: QueueContext) {
        let QueueContext { queue, interrupt, .. } = context;
        self.live = Some(Live { queue, interrupt, unannounced: false, broken: false });
    }

    pub(crate) fn stop(&mut self) -> Option<QueueState> {
        self.live.take().map(|live| live.queue.state())
    }

    /// Forgets what was for a guest that is gone; requests that it has never heard of stay.
    pub(crate) fn reset(&mut self) {
        self.owed.resets.clear();
        self.owed.links.retain(|link| {
            let mut state = link.lock();
            state.queued = state.connection.owes();
            state.queued
        });
    }

    /// Remembers that `link` owes packets, if it does.
    pub(crate) fn owe(&mut self, link: &Arc<Link>) {
        let mut state = link.lock();
        if !state.queued && state.connection.owes() {
            state.queued = true;
            drop(state);
            self.owed.links.push_back(Arc::clone(link));
        }
    }

    /// Remembers to send a reset.
    pub(crate) fn owe_reset(&mut self, reset: Header) {
        self.owed.resets.push_back(reset);
    }

    /// True if the transmit queue must wait, because too many resets do; `doorbell` is signalled
    /// when the wait is over.
    pub(crate) fn pause_tx(&mut self, doorbell: &Arc<Event>) -> bool {
        let pause = self.owed.resets.len() >= MAX_RESETS;
        if pause {
            self.paused_tx = Some(Arc::clone(doorbell));
        }
        pause
    }

    /// To be called when the driver has offered buffers: the connections that waited for them.
    pub(crate) fn refilled(&mut self) -> Vec<Arc<Link>> {
        self.guard(|live, _| Ok(live.queue.disable_doorbell()?));
        std::mem::take(&mut self.starved)
    }

    /// Sends what is owed, as far as there are buffers; true if nothing is left.
    pub(crate) fn flush(&mut self) -> bool {
        self.guard(|live, owed| {
            while !owed.is_empty() {
                let Some(chain) = live.buffer()? else { return Ok(false) };
                match owed.next_packet() {
                    Some(header) => live.push(&chain, &header, &[])?,
                    None => live.queue.unpop(),
                }
            }
            Ok(true)
        })
        .unwrap_or(false)
    }

    /// Sends as much of `bytes` as the guest has credit and buffers for, behind what is owed.
    pub(crate) fn send(&mut self, link: &Arc<Link>, bytes: &[u8]) -> Result<Sent, VsockError> {
        self.owe(link);
        let flushed = self.flush();
        let mut state = link.lock();
        let room = state.connection.room()?;
        if room == 0 {
            state.await_writable();
            state.connection.stalled();
            drop(state);
            self.owe(link);
            self.flush();
            return Ok(Sent::Blocked);
        }
        drop(state);
        let bytes = &bytes[..bytes.len().min(room as usize).min(BATCH)];
        let sent = if flushed { self.send_data(link, bytes) } else { 0 };
        if sent > 0 {
            return Ok(Sent::Bytes(sent));
        }
        let mut state = link.lock();
        state.await_writable();
        if !std::mem::replace(&mut state.starved, true) {
            drop(state);
            self.starved.push(Arc::clone(link));
        }
        Ok(Sent::Blocked)
    }

    /// Sends `bytes` as far as there are buffers; says how many.
    fn send_data(&mut self, link: &Link, bytes: &[u8]) -> usize {
        let mut sent = 0;
        self.guard(|live, owed| {
            while sent < bytes.len() {
                let Some(chain) = live.buffer()? else { break };
                let len = (chain.writer().left() - Header::LEN).min(bytes.len() - sent);
                let header = {
                    let connection = &mut link.lock().connection;
                    connection.sent(len as u32);
                    owed.header(link.key, connection, (Op::Data, 0), len as u32)
                };
                live.push(&chain, &header, &bytes[sent..sent + len])?;
                sent += len;
            }
            Ok(())
        });
        sent
    }

    /// The end of every use of the queue: interrupts the driver if it wants that, and lets the
    /// transmit queue go on if that waited. True once after the driver has broken the queue.
    pub(crate) fn finish(&mut self) -> bool {
        self.guard(|live, _| {
            if std::mem::take(&mut live.unannounced) && live.queue.needs_interrupt()? {
                live.interrupt.used_buffer();
            }
            Ok(())
        });
        if self.owed.resets.len() < MAX_RESETS
            && let Some(doorbell) = self.paused_tx.take()
        {
            doorbell.signal();
        }
        std::mem::take(&mut self.failed)
    }

    /// Runs `work` on a queue in service; the first error ends the service.
    fn guard<T>(
        &mut self,
        work: impl FnOnce(&mut Live, &mut Owed) -> Result<T, RxError>,
    ) -> Option<T> {
        let live = self.live.as_mut().filter(|live| !live.broken)?;
        work(live, &mut self.owed)
            .inspect_err(|error| {
                live.broken = true;
                live.interrupt.needs_reset(error);
                self.failed = true;
            })
            .ok()
    }
}

impl Live {
    /// The next buffer; if there is none the driver is asked to ring when there is.
    fn buffer(&mut self) -> Result<Option<Chain>, RxError> {
        // Twice, because buffers may come just before the driver reads that it is to ring.
        for _ in 0..2 {
            if let Some(chain) = self.queue.pop()? {
                let room = chain.writer().left();
                return if room > Header::LEN {
                    Ok(Some(chain))
                } else {
                    Err(RxError::Buffer(room))
                };
            }
            if !self.queue.enable_doorbell()? {
                break;
            }
        }
        Ok(None)
    }

    fn push(&mut self, chain: &Chain, header: &Header, payload: &[u8]) -> Result<(), RxError> {
        let mut writer = chain.writer();
        writer.write_all(header.as_bytes()).map_err(QueueError::from)?;
        writer.write_all(payload).map_err(QueueError::from)?;
        self.queue.push(chain, writer.written())?;
        self.unannounced = true;
        Ok(())
    }
}

impl Owed {
    fn is_empty(&self) -> bool {
        self.resets.is_empty() && self.links.is_empty()
    }

    fn next_packet(&mut self) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        let link = self.links.pop_front()?;
        let mut state = link.lock();
        let packet = state.connection.next_packet();
        let header = packet.map(|packet| self.header(link.key, &mut state.connection, packet, 0));
        state.queued = state.connection.owes();
        if state.queued {
            self.links.push_front(Arc::clone(&link));
        }
        header
    }

    fn header(
        &self,
        key: Key,
        connection: &mut Connection,
        (op, flags): (Op, u32),
        len: u32,
    ) -> Header {
        let (buf_alloc, fwd_cnt) = connection.tell_credit();
        Header {
            src_cid: HOST_CID.into(),
            dst_cid: self.guest_cid.into(),
            src_port: key.host_port.into(),
            dst_port: key.guest_port.into(),
            len: len.into(),
            kind: STREAM.into(),
            op: (op as u16).into(),
            flags: flags.into(),
            buf_alloc: buf_alloc.into(),
            fwd_cnt: fwd_cnt.into(),
        }
    }
}

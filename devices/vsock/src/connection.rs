//! One connection's state and credit (virtio 1.3 §5.10.6.3 to §5.10.6.6), without any I/O: packets
//! and the host's wishes go in, packets that are owed to the guest come out.

use crate::VsockError;
use crate::packet::{Header, Op, SHUT_BOTH, SHUT_RECEIVE, SHUT_SEND};

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host asked, the guest has not answered.
    Connecting,
    Open,
    Over(End),
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The guest had finished, or the host had.
    Clean,
    /// One side broke it off.
    Reset,
    /// The device was reset or is gone.
    Lost,
}

/// What is to be done with a packet from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing more.
    Done,
    /// Keep its payload for the reader.
    Keep,
    /// Forget the connection, and answer with a reset if `reset`.
    Forget { reset: bool },
}

/// What a reader without data can expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prospect {
    /// More may come.
    More,
    /// The end of the stream.
    End,
    /// The connection broke off.
    Broken(VsockError),
}

/// Packets that the guest is to be sent as soon as it has room for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Owed {
    request: bool,
    response: bool,
    shutdown: bool,
    credit_update: bool,
    credit_request: bool,
}

/// The state of one connection. All counters of bytes are modulo 2^32, as on the wire.
#[derive(Debug)]
pub(crate) struct Connection {
    phase: Phase,
    owed: Owed,
    /// `SHUT_*` bits that the guest has announced.
    guest_shut: u32,
    /// `SHUT_*` bits that the host has set; announced unless `owed.shutdown`.
    host_shut: u32,

    /// Bytes sent to the guest.
    sent: u32,
    /// The guest's `fwd_cnt`: bytes that its application has taken.
    guest_taken: u32,
    /// The guest's `buf_alloc`.
    guest_buffer: u32,
    /// A credit request has not been answered.
    asked: bool,
    /// The guest sends credit updates without being asked.
    volunteers: bool,

    /// Our `buf_alloc`.
    buffer: u32,
    /// Bytes kept and not yet read, at most `buffer`.
    unread: u32,
    /// Our `fwd_cnt`.
    taken: u32,
    /// The `fwd_cnt` that the guest last heard of.
    told: u32,
}

impl Connection {
    fn new(phase: Phase, owed: Owed, buffer: u32) -> Self {
        Self {
            phase,
            owed,
            guest_shut: 0,
            host_shut: 0,
            sent: 0,
            guest_taken: 0,
            guest_buffer: 0,
            asked: false,
            volunteers: false,
            buffer,
            unread: 0,
            taken: 0,
            told: 0,
        }
    }

    /// A connection that the host asks for.
    pub(crate) fn connect(buffer: u32) -> Self {
        Self::new(Phase::Connecting, Owed { request: true, ..Owed::default() }, buffer)
    }

    /// A connection that the guest asked for with `request`, accepted.
    pub(crate) fn accept(request: &Header, buffer: u32) -> Self {
        let owed = Owed { response: true, ..Owed::default() };
        let mut connection = Self::new(Phase::Open, owed, buffer);
        connection.learn_credit(request);
        connection
    }

    /// A packet of the guest's for this connection.
    pub(crate) fn receive(&mut self, packet: &Header) -> Verdict {
        let Some(op) = packet.op() else { return self.violated() };
        if op == Op::Reset {
            return self.reset_by_guest();
        }
        self.learn_credit(packet);
        match (self.phase, op) {
            (Phase::Connecting, Op::Response) => {
                self.phase = Phase::Open;
                Verdict::Done
            }
            (Phase::Open, Op::Data) => self.receive_data(packet.len.get()),
            (Phase::Open, Op::Shutdown) => self.receive_shutdown(packet.flags.get()),
            (Phase::Open, Op::CreditUpdate) => {
                self.volunteers |= !self.asked;
                self.asked = false;
                Verdict::Done
            }
            (Phase::Open, Op::CreditRequest) => {
                self.owed.credit_update = true;
                Verdict::Done
            }
            _ => self.violated(),
        }
    }

    fn receive_data(&mut self, len: u32) -> Verdict {
        if self.guest_shut & SHUT_SEND != 0 || len > self.buffer - self.unread {
            return self.violated();
        }
        if !self.has_reader() {
            self.taken = self.taken.wrapping_add(len);
            return Verdict::Done;
        }
        self.unread += len;
        if len == 0 { Verdict::Done } else { Verdict::Keep }
    }

    fn receive_shutdown(&mut self, flags: u32) -> Verdict {
        self.guest_shut |= flags & SHUT_BOTH;
        if self.guest_shut != SHUT_BOTH {
            return Verdict::Done;
        }
        // What the guest sent is ours by now, so the connection can be forgotten at once and its
        // ports used again.
        self.end(End::Clean);
        Verdict::Forget { reset: true }
    }

    fn reset_by_guest(&mut self) -> Verdict {
        let finished = self.host_shut == SHUT_BOTH || self.guest_shut & SHUT_SEND != 0;
        self.end(if finished { End::Clean } else { End::Reset });
        Verdict::Forget { reset: false }
    }

    /// The guest broke the rules.
    pub(crate) fn violated(&mut self) -> Verdict {
        self.end(End::Reset);
        Verdict::Forget { reset: true }
    }

    /// Ends the connection, unless it has ended before.
    pub(crate) fn end(&mut self, end: End) {
        self.owed = Owed::default();
        if !matches!(self.phase, Phase::Over(_)) {
            self.phase = Phase::Over(end);
        }
    }

    /// Every packet of the guest's tells its credit. A count that goes back is an old one that was
    /// overtaken, one that goes beyond what was sent is nonsense; neither counts.
    fn learn_credit(&mut self, packet: &Header) {
        let taken = packet.fwd_cnt.get();
        if taken.wrapping_sub(self.guest_taken) <= self.in_flight() {
            self.guest_taken = taken;
        }
        self.guest_buffer = packet.buf_alloc.get();
    }

    /// Bytes sent that the guest's application has not taken, as far as we know.
    fn in_flight(&self) -> u32 {
        self.sent.wrapping_sub(self.guest_taken)
    }

    /// Bytes that the guest can take now.
    pub(crate) fn room(&self) -> Result<u32, VsockError> {
        match self.phase {
            Phase::Over(End::Reset) => Err(VsockError::Reset),
            Phase::Over(End::Lost) => Err(VsockError::Closed),
            Phase::Over(End::Clean) => Err(VsockError::Finished),
            _ if self.host_shut & SHUT_SEND != 0 || self.guest_shut & SHUT_RECEIVE != 0 => {
                Err(VsockError::Finished)
            }
            Phase::Connecting => Ok(0),
            Phase::Open => Ok(self.guest_buffer.saturating_sub(self.in_flight())),
        }
    }

    /// `len` bytes of [`Connection::room`] went to the guest.
    pub(crate) fn sent(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }

    /// A writer has to wait for credit. The guest is asked for it, unless it is known to tell of
    /// its own accord.
    pub(crate) fn stalled(&mut self) {
        if self.phase == Phase::Open && !self.asked && !self.volunteers {
            self.asked = true;
            self.owed.credit_request = true;
        }
    }

    /// True while somebody may read what the guest sends.
    pub(crate) fn has_reader(&self) -> bool {
        self.host_shut & SHUT_RECEIVE == 0
    }

    /// What comes after the data that is kept.
    pub(crate) fn prospect(&self) -> Prospect {
        if self.guest_shut & SHUT_SEND != 0 || self.host_shut & SHUT_RECEIVE != 0 {
            return Prospect::End;
        }
        match self.phase {
            Phase::Connecting | Phase::Open => Prospect::More,
            Phase::Over(End::Clean) => Prospect::End,
            Phase::Over(End::Reset) => Prospect::Broken(VsockError::Reset),
            Phase::Over(End::Lost) => Prospect::Broken(VsockError::Closed),
        }
    }

    /// The reader took `len` bytes of what was kept. The guest hears of it once half of the buffer
    /// has become free, so that it never waits for long and is not told for every byte.
    pub(crate) fn read(&mut self, len: u32) {
        self.unread -= len;
        self.taken = self.taken.wrapping_add(len);
        let untold = self.taken.wrapping_sub(self.told);
        if untold >= self.buffer / 2
            && self.phase == Phase::Open
            && (self.guest_shut & SHUT_SEND) | (self.host_shut & SHUT_RECEIVE) == 0
        {
            self.owed.credit_update = true;
        }
    }

    /// The host shuts down the directions in `flags` (`SHUT_*`).
    pub(crate) fn shut(&mut self, flags: u32) {
        if self.phase == Phase::Open && flags & !self.host_shut != 0 {
            self.owed.shutdown = true;
        }
        self.host_shut |= flags;
    }

    /// True while the guest does not know of the connection.
    pub(crate) fn is_unknown_to_guest(&self) -> bool {
        self.owed.request
    }

    /// True while the guest has not answered the host's request.
    pub(crate) fn is_connecting(&self) -> bool {
        self.phase == Phase::Connecting
    }

    /// True once it has ended.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

    /// True if the host is done with it and only the guest's reset is missing.
    pub(crate) fn is_closing(&self) -> bool {
        self.phase == Phase::Open && self.host_shut == SHUT_BOTH && !self.owed.shutdown
    }

    /// True if [`Connection::next_packet`] has something.
    pub(crate) fn owes(&self) -> bool {
        self.owed != Owed::default()
    }

    /// The next packet without payload that is owed to the guest: what it is and its flags.
    pub(crate) fn next_packet(&mut self) -> Option<(Op, u32)> {
        let owed = &mut self.owed;
        let no_flags = |op| Some((op, 0));
        if std::mem::take(&mut owed.request) {
            no_flags(Op::Request)
        } else if std::mem::take(&mut owed.response) {
            no_flags(Op::Response)
        } else if std::mem::take(&mut owed.credit_update) {
            no_flags(Op::CreditUpdate)
        } else if std::mem::take(&mut owed.credit_request) {
            no_flags(Op::CreditRequest)
        } else if std::mem::take(&mut owed.shutdown) {
            Some((Op::Shutdown, self.host_shut))
        } else {
            None
        }
    }

    /// `buf_alloc` and `fwd_cnt` for a packet that goes out now.
    pub(crate) fn tell_credit(&mut self) -> (u32, u32) {
        self.told = self.taken;
        (self.buffer, self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{HOST_CID, STREAM};

    const BUFFER: u32 = 1000;

    fn packet(op: Op) -> Header {
        Header {
            src_cid: 3.into(),
            dst_cid: HOST_CID.into(),
            src_port: 1.into(),
            dst_port: 2.into(),
            len: 0.into(),
            kind: STREAM.into(),
            op: (op as u16).into(),
            flags: 0.into(),
            buf_alloc: BUFFER.into(),
            fwd_cnt: 0.into(),
        }
    }

    fn data(len: u32) -> Header {
        Header { len: len.into(), ..packet(Op::Data) }
    }

    fn shutdown(flags: u32) -> Header {
        Header { flags: flags.into(), ..packet(Op::Shutdown) }
    }

    fn credit(op: Op, buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header { buf_alloc: buf_alloc.into(), fwd_cnt: fwd_cnt.into(), ..packet(op) }
    }

    /// An accepted connection that owes nothing.
    fn open() -> Connection {
        let mut connection = Connection::accept(&packet(Op::Request), BUFFER);
        assert_eq!(connection.next_packet(), Some((Op::Response, 0)));
        assert_eq!(connection.next_packet(), None);
        connection
    }

    #[test]
    fn the_host_connects_once_the_guest_responds() {
        let mut connection = Connection::connect(BUFFER);
        assert!(connection.is_unknown_to_guest());
        assert_eq!(connection.room(), Ok(0));
        assert_eq!(connection.next_packet(), Some((Op::Request, 0)));
        assert!(!connection.is_unknown_to_guest());
        assert_eq!(connection.receive(&credit(Op::Response, 77, 0)), Verdict::Done);
        assert_eq!(connection.room(), Ok(77));
        assert_eq!(connection.prospect(), Prospect::More);
    }

    #[test]
    fn a_reset_refuses_the_hosts_request() {
        let mut connection = Connection::connect(BUFFER);
        connection.next_packet();
        assert_eq!(connection.receive(&packet(Op::Reset)), Verdict::Forget { reset: false });
        assert_eq!(connection.room(), Err(VsockError::Reset));
    }

    #[test]
    fn anything_but_an_answer_breaks_a_connection_in_the_making() {
        for op in [Op::Request, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest] {
            let mut connection = Connection::connect(BUFFER);
            assert_eq!(connection.receive(&packet(op)), Verdict::Forget { reset: true }, "{op:?}");
        }
    }

    #[test]
    fn the_guests_credit_bounds_what_is_sent() {
        let mut connection = open();
        connection.sent(600);
        assert_eq!(connection.room(), Ok(400));
        connection.sent(400);
        assert_eq!(connection.room(), Ok(0));
        connection.receive(&credit(Op::CreditUpdate, BUFFER, 600));
        assert_eq!(connection.room(), Ok(600));
        // The guest's buffer may shrink below what is in flight.
        connection.receive(&credit(Op::CreditUpdate, 100, 600));
        assert_eq!(connection.room(), Ok(0));
    }

    #[test]
    fn credit_counts_wrap() {
        let mut connection = open();
        for step in 1..=9_u32 {
            let taken = step.wrapping_mul(1 << 29);
            connection.receive(&credit(Op::CreditUpdate, 1 << 29, taken.wrapping_sub(1 << 29)));
            assert_eq!(connection.room(), Ok(1 << 29));
            connection.sent(1 << 29);
            assert_eq!(connection.room(), Ok(0));
        }
    }

    #[test]
    fn credit_that_was_never_used_or_is_old_does_not_count() {
        let mut connection = open();
        connection.sent(500);
        connection.receive(&credit(Op::CreditUpdate, BUFFER, 300));
        for nonsense in [501, 299, 0, u32::MAX] {
            connection.receive(&credit(Op::CreditUpdate, BUFFER, nonsense));
            assert_eq!(connection.room(), Ok(800), "{nonsense}");
        }
    }

    #[test]
    fn a_guest_that_never_volunteers_credit_is_asked_at_every_stall() {
        let mut connection = open();
        connection.sent(BUFFER);
        connection.stalled();
        connection.stalled();
        assert_eq!(connection.next_packet(), Some((Op::CreditRequest, 0)));
        assert_eq!(connection.next_packet(), None);
        connection.receive(&credit(Op::CreditUpdate, BUFFER, BUFFER));
        connection.sent(BUFFER);
        connection.stalled();
        assert_eq!(connection.next_packet(), Some((Op::CreditRequest, 0)));
    }

    #[test]
    fn a_guest_that_volunteers_credit_is_not_asked() {
        let mut connection = open();
        connection.receive(&credit(Op::CreditUpdate, BUFFER, 0));
        connection.sent(BUFFER);
        connection.stalled();
        assert!(!connection.owes());
    }

    #[test]
    fn the_guest_hears_when_half_of_the_buffer_is_free_again() {
        let mut connection = open();
        assert_eq!(connection.receive(&data(BUFFER)), Verdict::Keep);
        connection.read(BUFFER / 2 - 1);
        assert!(!connection.owes());
        connection.read(1);
        assert_eq!(connection.next_packet(), Some((Op::CreditUpdate, 0)));
        assert_eq!(connection.tell_credit(), (BUFFER, BUFFER / 2));
        connection.read(BUFFER / 2 - 1);
        assert!(!connection.owes());
    }

    #[test]
    fn a_credit_request_is_answered() {
        let mut connection = open();
        assert_eq!(connection.receive(&packet(Op::CreditRequest)), Verdict::Done);
        assert_eq!(connection.next_packet(), Some((Op::CreditUpdate, 0)));
    }

    #[test]
    fn data_beyond_the_credit_resets_the_connection() {
        let mut connection = open();
        assert_eq!(connection.receive(&data(BUFFER)), Verdict::Keep);
        assert_eq!(connection.receive(&data(0)), Verdict::Done);
        assert_eq!(connection.receive(&data(1)), Verdict::Forget { reset: true });
        assert_eq!(connection.prospect(), Prospect::Broken(VsockError::Reset));
        assert_eq!(open().receive(&data(u32::MAX)), Verdict::Forget { reset: true });
    }

    #[test]
    fn the_guest_half_closes() {
        let mut connection = open();
        assert_eq!(connection.receive(&shutdown(SHUT_SEND)), Verdict::Done);
        assert_eq!(connection.prospect(), Prospect::End);
        assert_eq!(connection.room(), Ok(BUFFER));
        assert_eq!(connection.receive(&data(1)), Verdict::Forget { reset: true });
    }

    #[test]
    fn a_guest_that_receives_no_more_stops_the_writer() {
        let mut connection = open();
        connection.receive(&shutdown(SHUT_RECEIVE));
        assert_eq!(connection.room(), Err(VsockError::Finished));
        assert_eq!(connection.prospect(), Prospect::More);
        assert_eq!(connection.receive(&data(1)), Verdict::Keep);
    }

    #[test]
    fn a_guest_that_closes_is_answered_with_a_reset() {
        let mut connection = open();
        connection.receive(&shutdown(SHUT_SEND));
        let verdict = connection.receive(&shutdown(SHUT_RECEIVE));
        assert_eq!(verdict, Verdict::Forget { reset: true });
        assert_eq!(connection.prospect(), Prospect::End);
        assert_eq!(connection.room(), Err(VsockError::Finished));
    }

    #[test]
    fn the_host_half_closes_and_closes() {
        let mut connection = open();
        connection.shut(SHUT_SEND);
        assert_eq!(connection.room(), Err(VsockError::Finished));
        assert_eq!(connection.next_packet(), Some((Op::Shutdown, SHUT_SEND)));
        assert!(!connection.is_closing());
        connection.shut(SHUT_SEND);
        assert!(!connection.owes());
        connection.shut(SHUT_BOTH);
        assert_eq!(connection.next_packet(), Some((Op::Shutdown, SHUT_BOTH)));
        assert!(connection.is_closing());
        // What was under way is dropped, and the guest's reset is the proper end.
        assert_eq!(connection.receive(&data(10)), Verdict::Done);
        assert_eq!(connection.receive(&packet(Op::Reset)), Verdict::Forget { reset: false });
        assert_eq!(connection.prospect(), Prospect::End);
    }

    #[test]
    fn a_reset_out_of_the_blue_is_an_error() {
        let mut connection = open();
        connection.receive(&packet(Op::Reset));
        assert_eq!(connection.prospect(), Prospect::Broken(VsockError::Reset));
        assert_eq!(connection.room(), Err(VsockError::Reset));
    }

    #[test]
    fn a_lost_machine_is_told_apart_from_the_end_of_the_stream() {
        let mut connection = open();
        connection.end(End::Lost);
        assert_eq!(connection.prospect(), Prospect::Broken(VsockError::Closed));
        assert_eq!(connection.room(), Err(VsockError::Closed));
        let mut finished = open();
        finished.receive(&shutdown(SHUT_SEND));
        finished.end(End::Lost);
        assert_eq!(finished.prospect(), Prospect::End);
    }

    #[test]
    fn what_makes_no_sense_resets_an_open_connection() {
        for op in [0, 1, 2, 8, 0xffff_u16] {
            let mut connection = open();
            let packet = Header { op: op.into(), ..packet(Op::Data) };
            assert_eq!(connection.receive(&packet), Verdict::Forget { reset: true }, "{op}");
            assert!(!connection.owes());
        }
    }

    #[test]
    fn an_ended_connection_owes_nothing() {
        let mut connection = Connection::accept(&packet(Op::Request), BUFFER);
        connection.end(End::Lost);
        assert_eq!(connection.next_packet(), None);
        connection.shut(SHUT_BOTH);
        assert!(!connection.owes());
    }
}

//! The packet header (virtio 1.3 §5.10.6).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The host's context id (virtio 1.3 §5.10.4).
pub(crate) const HOST_CID: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub(crate) const STREAM: u16 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: the sender will receive no more.
pub(crate) const SHUT_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender will send no more.
pub(crate) const SHUT_SEND: u32 = 2;
/// Both directions.
pub(crate) const SHUT_BOTH: u32 = SHUT_RECEIVE | SHUT_SEND;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    Data = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

/// `struct virtio_vsock_hdr`, as it stands in guest memory.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) src_cid: U64,
    pub(crate) dst_cid: U64,
    pub(crate) src_port: U32,
    pub(crate) dst_port: U32,
    /// Bytes of payload behind the header.
    pub(crate) len: U32,
    pub(crate) kind: U16,
    pub(crate) op: U16,
    pub(crate) flags: U32,
    /// Bytes that the sender can buffer for this connection.
    pub(crate) buf_alloc: U32,
    /// Bytes that the sender's application has taken so far, modulo 2^32.
    pub(crate) fwd_cnt: U32,
}

impl Header {
    /// Bytes of a header.
    pub(crate) const LEN: usize = 44;

    /// Parses the bytes at the start of a packet.
    pub(crate) fn parse(bytes: [u8; Self::LEN]) -> Self {
        zerocopy::transmute!(bytes)
    }

    /// The operation, if it is one that the specification knows.
    pub(crate) fn op(&self) -> Option<Op> {
        use Op::{CreditRequest, CreditUpdate, Data, Request, Reset, Response, Shutdown};
        [Request, Response, Reset, Shutdown, Data, CreditUpdate, CreditRequest]
            .into_iter()
            .find(|&op| op as u16 == self.op.get())
    }

    /// The reset that answers this packet.
    pub(crate) fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            len: U32::ZERO,
            kind: self.kind,
            op: U16::new(Op::Reset as u16),
            flags: U32::ZERO,
            buf_alloc: U32::ZERO,
            fwd_cnt: U32::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field in its place, by hand.
    const BYTES: [u8; Header::LEN] = [
        3, 0, 0, 0, 0, 0, 0, 1, // src_cid
        2, 0, 0, 0, 0, 0, 0, 0, // dst_cid
        0x01, 0x02, 0x03, 0x04, // src_port
        0x05, 0x06, 0x07, 0x08, // dst_port
        0x09, 0, 0, 0, // len
        1, 0, // type
        5, 0, // op
        2, 0, 0, 0, // flags
        0, 0, 4, 0, // buf_alloc
        0xff, 0xff, 0xff, 0xff, // fwd_cnt
    ];

    #[test]
    fn fields_stand_where_the_specification_puts_them() {
        let header = Header::parse(BYTES);
        assert_eq!(header.src_cid.get(), 0x0100_0000_0000_0003);
        assert_eq!(header.dst_cid.get(), HOST_CID);
        assert_eq!(header.src_port.get(), 0x0403_0201);
        assert_eq!(header.dst_port.get(), 0x0807_0605);
        assert_eq!(header.len.get(), 9);
        assert_eq!(header.kind.get(), STREAM);
        assert_eq!(header.op(), Some(Op::Data));
        assert_eq!(header.flags.get(), SHUT_SEND);
        assert_eq!(header.buf_alloc.get(), 256 << 10);
        assert_eq!(header.fwd_cnt.get(), u32::MAX);
        assert_eq!(header.as_bytes(), BYTES);
    }

    #[test]
    fn unknown_operations_are_none() {
        for op in [0, 8, 0xffff] {
            let header = Header { op: U16::new(op), ..Header::parse(BYTES) };
            assert_eq!(header.op(), None);
        }
    }

    #[test]
    fn a_reset_goes_back_the_way_the_packet_came() {
        let reset = Header::parse(BYTES).reset();
        assert_eq!(reset.op(), Some(Op::Reset));
        assert_eq!((reset.src_port.get(), reset.dst_port.get()), (0x0807_0605, 0x0403_0201));
        assert_eq!(reset.dst_cid.get(), 0x0100_0000_0000_0003);
        assert_eq!(reset.len.get(), 0);
    }
}

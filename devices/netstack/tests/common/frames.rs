//! Frames by hand.

use std::net::{IpAddr, SocketAddr};

use cabana_netstack::{GATEWAY_MAC, GUEST_MAC, hardware_of};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol, IpRepr,
    Ipv4Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

fn ip(
    from: IpAddr,
    to: IpAddr,
    protocol: IpProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let repr = IpRepr::new(from.into(), to.into(), protocol, len, 64);
    let mut frame = vec![0; 14 + repr.buffer_len()];
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame);
    ethernet.set_src_addr(hardware_of(from).unwrap_or(GUEST_MAC));
    ethernet.set_dst_addr(GATEWAY_MAC);
    let v4 = from.is_ipv4();
    ethernet.set_ethertype(if v4 { EthernetProtocol::Ipv4 } else { EthernetProtocol::Ipv6 });
    repr.emit(ethernet.payload_mut(), &ChecksumCapabilities::default());
    fill(&mut ethernet.payload_mut()[repr.header_len()..]);
    frame
}

/// A datagram.
pub(crate) fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let repr = UdpRepr { src_port: from.port(), dst_port: to.port() };
    ip(from.ip(), to.ip(), IpProtocol::Udp, 8 + payload.len(), |bytes| {
        repr.emit(
            &mut UdpPacket::new_unchecked(bytes),
            &IpAddress::from(from.ip()),
            &IpAddress::from(to.ip()),
            payload.len(),
            |room| room.copy_from_slice(payload),
            &ChecksumCapabilities::default(),
        );
    })
}

/// A segment that opens a connection.
pub(crate) fn syn(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: from.port(),
        dst_port: to.port(),
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(from.port().into()),
        ack_number: None,
        window_len: 65_535,
        window_scale: Some(7),
        max_seg_size: Some(1460),
        sack_permitted: true,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    tcp(from.ip(), to.ip(), &repr)
}

/// A segment that opens nothing: whether its sender goes on, its place in the stream, what it acknowledges, and the
/// window that it offers.
pub(crate) fn segment(
    from: SocketAddr,
    to: SocketAddr,
    control: TcpControl,
    seq_number: TcpSeqNumber,
    ack_number: TcpSeqNumber,
    window_len: u16,
) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: from.port(),
        dst_port: to.port(),
        control,
        seq_number,
        ack_number: Some(ack_number),
        window_len,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    tcp(from.ip(), to.ip(), &repr)
}

fn tcp(from: IpAddr, to: IpAddr, repr: &TcpRepr<'_>) -> Vec<u8> {
    ip(from, to, IpProtocol::Tcp, repr.buffer_len(), |bytes| {
        let (source, destination) = (IpAddress::from(from), IpAddress::from(to));
        let packet = &mut TcpPacket::new_unchecked(bytes);
        repr.emit(packet, &source, &destination, &ChecksumCapabilities::default());
    })
}

/// An echo request by IPv4.
pub(crate) fn ping(from: IpAddr, to: IpAddr, ident: u16, seq_no: u16, data: &[u8]) -> Vec<u8> {
    let repr = Icmpv4Repr::EchoRequest { ident, seq_no, data };
    ip(from, to, IpProtocol::Icmp, repr.buffer_len(), |bytes| {
        repr.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    })
}

/// Ports and payload of a datagram to the guest.
pub(crate) fn as_udp(frame: &[u8]) -> Option<(u16, u16, Vec<u8>)> {
    let packet = ipv4(frame, IpProtocol::Udp)?;
    let udp = UdpPacket::new_checked(packet.payload()).ok()?;
    assert!(udp.verify_checksum(&packet.src_addr().into(), &packet.dst_addr().into()));
    Some((udp.src_port(), udp.dst_port(), udp.payload().to_vec()))
}

/// Type, code, identifier, sequence number and data of an ICMP message to the guest.
pub(crate) fn as_icmp(frame: &[u8]) -> Option<(u8, u8, u16, u16, Vec<u8>)> {
    let packet = ipv4(frame, IpProtocol::Icmp)?;
    let icmp = Icmpv4Packet::new_checked(packet.payload()).ok()?;
    assert!(icmp.verify_checksum());
    let (kind, code) = (u8::from(icmp.msg_type()), icmp.msg_code());
    Some((kind, code, icmp.echo_ident(), icmp.echo_seq_no(), icmp.data().to_vec()))
}

/// Destination port and flags (SYN, ACK, RST) of a segment to the guest.
pub(crate) fn as_tcp(frame: &[u8]) -> Option<(u16, bool, bool, bool)> {
    let packet = ipv4(frame, IpProtocol::Tcp)?;
    let tcp = TcpPacket::new_checked(packet.payload()).ok()?;
    Some((tcp.dst_port(), tcp.syn(), tcp.ack(), tcp.rst()))
}

/// Place, flags (SYN, FIN) and payload of a segment to the guest.
pub(crate) fn as_stream(frame: &[u8]) -> Option<(TcpSeqNumber, bool, bool, Vec<u8>)> {
    let packet = ipv4(frame, IpProtocol::Tcp)?;
    let tcp = TcpPacket::new_checked(packet.payload()).ok()?;
    Some((tcp.seq_number(), tcp.syn(), tcp.fin(), tcp.payload().to_vec()))
}

fn ipv4(frame: &[u8], protocol: IpProtocol) -> Option<Ipv4Packet<&[u8]>> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    (ethernet.ethertype() == EthernetProtocol::Ipv4).then_some(())?;
    let packet = Ipv4Packet::new_checked(frame.get(14..)?).ok()?;
    assert!(packet.verify_checksum());
    (packet.next_header() == protocol).then_some(packet)
}

/// The guest's port, the place in the stream and whether it is a reset, of a segment to the guest.
pub(crate) fn as_answer(frame: &[u8]) -> Option<(u16, TcpSeqNumber, bool)> {
    let packet = ipv4(frame, IpProtocol::Tcp)?;
    let tcp = TcpPacket::new_checked(packet.payload()).ok()?;
    Some((tcp.dst_port(), tcp.seq_number(), tcp.rst()))
}

//! Frames by hand, right and wrong.

use std::net::{IpAddr, SocketAddr};

use cabana_netstack::{GATEWAY_MAC, GUEST_MAC, hardware_of};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol, IpRepr,
    Ipv4Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

/// A packet with this content, whatever it is.
pub(crate) fn ip(from: IpAddr, to: IpAddr, protocol: u8, content: &[u8]) -> Vec<u8> {
    let repr = IpRepr::new(from.into(), to.into(), IpProtocol::from(protocol), content.len(), 64);
    let mut frame = vec![0; 14 + repr.buffer_len()];
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame);
    ethernet.set_src_addr(hardware_of(from).unwrap_or(GUEST_MAC));
    ethernet.set_dst_addr(GATEWAY_MAC);
    let v4 = from.is_ipv4();
    ethernet.set_ethertype(if v4 { EthernetProtocol::Ipv4 } else { EthernetProtocol::Ipv6 });
    repr.emit(ethernet.payload_mut(), &ChecksumCapabilities::default());
    let header = repr.header_len();
    if let Some(room) = ethernet.payload_mut().get_mut(header..header + content.len()) {
        room.copy_from_slice(content);
    }
    frame
}

pub(crate) fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let repr = UdpRepr { src_port: from.port(), dst_port: to.port() };
    let mut content = vec![0; 8 + payload.len()];
    repr.emit(
        &mut UdpPacket::new_unchecked(&mut content[..]),
        &IpAddress::from(from.ip()),
        &IpAddress::from(to.ip()),
        payload.len(),
        |room| room.copy_from_slice(payload),
        &ChecksumCapabilities::default(),
    );
    ip(from.ip(), to.ip(), 17, &content)
}

/// A segment without its frame.
pub(crate) fn segment(
    from: SocketAddr,
    to: SocketAddr,
    control: TcpControl,
    acknowledge: bool,
    payload: &[u8],
) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: from.port(),
        dst_port: to.port(),
        control,
        seq_number: TcpSeqNumber(7),
        ack_number: acknowledge.then_some(TcpSeqNumber(9)),
        window_len: 65_535,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let mut content = vec![0; repr.buffer_len()];
    let (source, destination) = (IpAddress::from(from.ip()), IpAddress::from(to.ip()));
    let packet = &mut TcpPacket::new_unchecked(&mut content[..]);
    repr.emit(packet, &source, &destination, &ChecksumCapabilities::default());
    content
}

pub(crate) fn syn(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    ip(from.ip(), to.ip(), 6, &segment(from, to, TcpControl::Syn, false, &[]))
}

pub(crate) fn ping(from: IpAddr, to: IpAddr, data: &[u8]) -> Vec<u8> {
    let repr = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 1, data };
    let mut content = vec![0; repr.buffer_len()];
    repr.emit(&mut Icmpv4Packet::new_unchecked(&mut content[..]), &ChecksumCapabilities::default());
    ip(from, to, 1, &content)
}

/// The same packet in fragments, the second beginning at byte `at` (RFC 791 §3.2).
pub(crate) fn fragments(frame: &[u8], ends: usize, at: usize) -> [Vec<u8>; 2] {
    let (head, content) = frame.split_at(34);
    let fragment = |part: &[u8], offset: u16, more: bool| {
        let mut frame = [head, part].concat();
        let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
        packet.set_total_len(20 + part.len() as u16);
        packet.set_ident(77);
        packet.set_frag_offset(offset);
        packet.set_more_frags(more);
        packet.fill_checksum();
        frame
    };
    [fragment(&content[..ends], 0, true), fragment(&content[at..], at as u16, false)]
}

/// Ports and payload of a datagram to the guest.
pub(crate) fn as_udp(frame: &[u8]) -> Option<(u16, u16, Vec<u8>)> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    (ethernet.ethertype() == EthernetProtocol::Ipv4).then_some(())?;
    let packet = Ipv4Packet::new_checked(frame.get(14..)?).ok()?;
    (packet.next_header() == IpProtocol::Udp).then_some(())?;
    let udp = UdpPacket::new_checked(packet.payload()).ok()?;
    Some((udp.src_port(), udp.dst_port(), udp.payload().to_vec()))
}

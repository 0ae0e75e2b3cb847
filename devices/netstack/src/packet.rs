//! What the guest's frames hold, read with every length checked, and the small packets that the stack makes
//! itself.

use std::net::IpAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr,
    IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv4Repr, Ipv6Address, Ipv6Packet, Ipv6Repr,
    NdiscNeighborFlags, NdiscRepr, RawHardwareAddress, TcpControl, TcpPacket, TcpRepr,
    TcpSeqNumber, UdpPacket, UdpRepr,
};

use crate::config::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6};

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
const HOP_LIMIT: u8 = 64;
/// Neighbour discovery comes from the link itself (RFC 4861 §7.1.1).
const LINK_HOP_LIMIT: u8 = 255;
/// The most of a refused packet that goes back in an ICMP error (RFC 1812 §4.3.2.3, RFC 4443 §2.4).
const QUOTED: usize = 512;

/// Where TCP has its checksum.
pub(crate) const TCP_CHECKSUM: usize = 16;

/// A packet, cut to the length that its header tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ip<'a> {
    /// The hardware address that the frame came from.
    pub(crate) sender: EthernetAddress,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: IpProtocol,
    pub(crate) whole: &'a [u8],
    pub(crate) payload: &'a [u8],
}

/// What a frame holds.
#[derive(Debug)]
pub(crate) enum Content<'a> {
    /// A question or answer about hardware addresses, and where it came from.
    Arp(EthernetAddress, &'a [u8]),
    Ip(Ip<'a>),
}

/// Reads a frame; `None` if it holds nothing that is served here. Fragments are not: with the link's MTU
/// nobody needs them, and they hide what is in them.
pub(crate) fn parse(frame: &[u8]) -> Option<Content<'_>> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let sender = frame.src_addr();
    match frame.ethertype() {
        EthernetProtocol::Arp => Some(Content::Arp(sender, frame.payload())),
        EthernetProtocol::Ipv4 => {
            let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
            if packet.version() != 4 || packet.more_frags() || packet.frag_offset() != 0 {
                return None;
            }
            Some(Content::Ip(Ip {
                sender,
                source: packet.src_addr().into(),
                destination: packet.dst_addr().into(),
                protocol: packet.next_header(),
                whole: frame.payload().get(..usize::from(packet.total_len()))?,
                payload: packet.payload(),
            }))
        }
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(frame.payload()).ok()?;
            if packet.version() != 6 {
                return None;
            }
            Some(Content::Ip(Ip {
                sender,
                source: packet.src_addr().into(),
                destination: packet.dst_addr().into(),
                protocol: packet.next_header(),
                whole: frame.payload().get(..packet.total_len())?,
                payload: packet.payload(),
            }))
        }
        EthernetProtocol::Unknown(_) => None,
    }
}

/// Puts an Ethernet header before an IP packet to the guest; `frame` has room for it.
pub(crate) fn put_ethernet(frame: &mut [u8], guest: EthernetAddress) {
    let v6 = frame.get(ETHERNET).is_some_and(|byte| byte >> 4 == 6);
    let mut header = EthernetFrame::new_unchecked(frame);
    header.set_src_addr(GATEWAY_MAC);
    header.set_dst_addr(guest);
    header.set_ethertype(if v6 { EthernetProtocol::Ipv6 } else { EthernetProtocol::Ipv4 });
}

/// The answer to a question for the gateway's hardware address.
pub(crate) fn arp_reply(request: &[u8], guest: EthernetAddress) -> Option<Vec<u8>> {
    let request = ArpRepr::parse(&ArpPacket::new_checked(request).ok()?).ok()?;
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr: GATEWAY_V4,
        ..
    } = request
    else {
        return None;
    };
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: GATEWAY_MAC,
        source_protocol_addr: GATEWAY_V4,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let mut frame = vec![0; ETHERNET + reply.buffer_len()];
    let mut header = EthernetFrame::new_unchecked(&mut frame);
    header.set_src_addr(GATEWAY_MAC);
    header.set_dst_addr(guest);
    header.set_ethertype(EthernetProtocol::Arp);
    reply.emit(&mut ArpPacket::new_unchecked(header.payload_mut()));
    Some(frame)
}

/// The answer to a neighbour solicitation for the gateway (RFC 4861 §7.2.4).
pub(crate) fn neighbor_reply(ip: &Ip<'_>) -> Option<Vec<u8>> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (ip.source, ip.destination) else {
        return None;
    };
    let packet = Icmpv6Packet::new_checked(ip.payload).ok()?;
    let checks = ChecksumCapabilities::default();
    let repr = Icmpv6Repr::parse(&source, &destination, &packet, &checks).ok()?;
    let Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr: GATEWAY_V6, .. }) = repr else {
        return None;
    };
    let advert = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::SOLICITED
            | NdiscNeighborFlags::ROUTER
            | NdiscNeighborFlags::OVERRIDE,
        target_addr: GATEWAY_V6,
        lladdr: Some(RawHardwareAddress::from(GATEWAY_MAC)),
    });
    let to = if source.is_unspecified() {
        Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, 1)
    } else {
        source
    };
    Some(icmpv6(&advert, GATEWAY_V6, to, LINK_HOP_LIMIT, ip.sender))
}

/// An echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Echo<'a> {
    pub(crate) ident: u16,
    pub(crate) sequence: u16,
    pub(crate) data: &'a [u8],
}

/// Reads an echo request.
pub(crate) fn echo_request<'a>(ip: &Ip<'a>) -> Option<Echo<'a>> {
    let checks = ChecksumCapabilities::default();
    let (ident, sequence) = match (ip.source, ip.destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let packet = Icmpv6Packet::new_checked(ip.payload).ok()?;
            match Icmpv6Repr::parse(&source, &destination, &packet, &checks) {
                Ok(Icmpv6Repr::EchoRequest { ident, seq_no, .. }) => (ident, seq_no),
                _ => return None,
            }
        }
        _ => match Icmpv4Repr::parse(&Icmpv4Packet::new_checked(ip.payload).ok()?, &checks) {
            Ok(Icmpv4Repr::EchoRequest { ident, seq_no, .. }) => (ident, seq_no),
            _ => return None,
        },
    };
    Some(Echo { ident, sequence, data: ip.payload.get(8..)? })
}

/// An echo reply.
pub(crate) fn echo_reply(
    from: IpAddr,
    to: IpAddr,
    echo: &Echo<'_>,
    guest: EthernetAddress,
) -> Option<Vec<u8>> {
    let (ident, seq_no, data) = (echo.ident, echo.sequence, echo.data);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
            Some(icmpv4(&reply, from, to, guest))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            Some(icmpv6(&Icmpv6Repr::EchoReply { ident, seq_no, data }, from, to, HOP_LIMIT, guest))
        }
        _ => None,
    }
}

/// Why a packet of the guest's did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// "Communication administratively prohibited" (RFC 1812 §5.2.7.1, RFC 4443 §3.1).
    Prohibited,
    /// "Port unreachable": nobody is there.
    Port,
}

/// What tells the guest so.
pub(crate) fn unreachable(
    why: Unreachable,
    whole: &[u8],
    guest: EthernetAddress,
) -> Option<Vec<u8>> {
    let quoted = |data: &'_ [u8]| data.len().min(QUOTED);
    if is_v4(whole)? {
        let packet = Ipv4Packet::new_checked(whole).ok()?;
        let header = Ipv4Repr::parse(&packet, &ChecksumCapabilities::ignored()).ok()?;
        let data = packet.payload();
        let reason = match why {
            Unreachable::Prohibited => Icmpv4DstUnreachable::CommProhibited,
            Unreachable::Port => Icmpv4DstUnreachable::PortUnreachable,
        };
        let error = Icmpv4Repr::DstUnreachable { reason, header, data: data.get(..quoted(data))? };
        Some(icmpv4(&error, header.dst_addr, header.src_addr, guest))
    } else {
        let packet = Ipv6Packet::new_checked(whole).ok()?;
        let header = Ipv6Repr::parse(&packet).ok()?;
        let data = packet.payload();
        let reason = match why {
            Unreachable::Prohibited => Icmpv6DstUnreachable::AdminProhibit,
            Unreachable::Port => Icmpv6DstUnreachable::PortUnreachable,
        };
        let error = Icmpv6Repr::DstUnreachable { reason, header, data: data.get(..quoted(data))? };
        Some(icmpv6(&error, header.dst_addr, header.src_addr, HOP_LIMIT, guest))
    }
}

/// Whether a packet is of IPv4; `None` if there is none.
pub(crate) fn is_v4(whole: &[u8]) -> Option<bool> {
    Some(whole.first()? >> 4 == 4)
}

/// The ports of a datagram and what it carries. Checksums are not looked at: between guest and stack there
/// is memory only, and a driver with checksum offload leaves them out.
pub(crate) fn udp<'a>(ip: &Ip<'a>) -> Option<(u16, u16, &'a [u8])> {
    let packet = UdpPacket::new_checked(ip.payload).ok()?;
    (packet.dst_port() != 0).then_some((packet.src_port(), packet.dst_port(), packet.payload()))
}

/// A datagram to the guest; `None` if it is larger than a packet can be, or of two families.
pub(crate) fn udp_frame(
    from: std::net::SocketAddr,
    to: std::net::SocketAddr,
    payload: &[u8],
    mtu: u16,
    guest: EthernetAddress,
) -> Option<Vec<u8>> {
    let (source, destination) = (IpAddress::from(from.ip()), IpAddress::from(to.ip()));
    let header = UdpRepr { src_port: from.port(), dst_port: to.port() };
    let ip = ip_repr(
        from.ip(),
        to.ip(),
        IpProtocol::Udp,
        header.header_len() + payload.len(),
        HOP_LIMIT,
    )?;
    if ip.buffer_len() > usize::from(mtu) {
        return None;
    }
    let checks = ChecksumCapabilities::default();
    Some(ip_frame(&ip, guest, |bytes| {
        header.emit(
            &mut UdpPacket::new_unchecked(bytes),
            &source,
            &destination,
            payload.len(),
            |room| room.copy_from_slice(payload),
            &checks,
        );
    }))
}

/// What matters of a TCP segment for finding its connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) sequence: u32,
    pub(crate) opens: bool,
}

/// Reads a segment's ports, its place in the stream and whether it opens a connection.
pub(crate) fn tcp(ip: &Ip<'_>) -> Option<Segment> {
    let packet = TcpPacket::new_checked(ip.payload).ok()?;
    if packet.src_port() == 0 || packet.dst_port() == 0 {
        return None;
    }
    Some(Segment {
        source_port: packet.src_port(),
        destination_port: packet.dst_port(),
        sequence: packet.seq_number().0.cast_unsigned(),
        opens: packet.syn() && !packet.ack() && !packet.rst() && !packet.fin(),
    })
}

/// The reset that answers a segment (RFC 9293 §3.5.2); nothing answers a reset.
pub(crate) fn reset(whole: &[u8], guest: EthernetAddress) -> Option<Vec<u8>> {
    let (guest_ip, other, payload) = if is_v4(whole)? {
        let packet = Ipv4Packet::new_checked(whole).ok()?;
        (IpAddr::V4(packet.src_addr()), IpAddr::V4(packet.dst_addr()), packet.payload())
    } else {
        let packet = Ipv6Packet::new_checked(whole).ok()?;
        (IpAddr::V6(packet.src_addr()), IpAddr::V6(packet.dst_addr()), packet.payload())
    };
    let packet = TcpPacket::new_checked(payload).ok()?;
    if packet.rst() {
        return None;
    }
    let (seq_number, ack_number) = if packet.ack() {
        (packet.ack_number(), None)
    } else {
        (TcpSeqNumber(0), Some(packet.seq_number() + packet.segment_len()))
    };
    let answer = TcpRepr {
        src_port: packet.dst_port(),
        dst_port: packet.src_port(),
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None, None, None],
        timestamp: None,
        payload: &[],
    };
    let ip = ip_repr(other, guest_ip, IpProtocol::Tcp, answer.buffer_len(), HOP_LIMIT)?;
    Some(ip_frame(&ip, guest, |bytes| {
        let (from, to) = (IpAddress::from(other), IpAddress::from(guest_ip));
        answer.emit(
            &mut TcpPacket::new_unchecked(bytes),
            &from,
            &to,
            &ChecksumCapabilities::default(),
        );
    }))
}

/// Leaves the checksum of a TCP packet to whoever takes the frame: the field holds the sum of the pseudo-header
/// (RFC 9293 §3.1), as Linux hands frames to a network card. Says where the sum begins.
pub(crate) fn leave_checksum(frame: &mut [u8]) -> Option<u16> {
    let packet = frame.get_mut(ETHERNET..)?;
    let (header, addresses) =
        if is_v4(packet)? { (usize::from(packet.first()? & 0xf) * 4, 12..20) } else { (40, 8..40) };
    let len = packet.len().checked_sub(header)?;
    let words = packet.get(addresses)?.chunks_exact(2).map(|word| match word {
        [high, low] => u32::from(*high) << 8 | u32::from(*low),
        _ => 0,
    });
    let mut sum: u32 = words.sum::<u32>() + u32::from(u8::from(IpProtocol::Tcp)) + len as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let field = packet.get_mut(header + TCP_CHECKSUM..header + TCP_CHECKSUM + 2)?;
    field.copy_from_slice(&(sum as u16).to_be_bytes());
    u16::try_from(ETHERNET + header).ok()
}

fn icmpv4(
    repr: &Icmpv4Repr<'_>,
    from: std::net::Ipv4Addr,
    to: std::net::Ipv4Addr,
    guest: EthernetAddress,
) -> Vec<u8> {
    let ip = IpRepr::Ipv4(Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmp,
        payload_len: repr.buffer_len(),
        hop_limit: HOP_LIMIT,
    });
    ip_frame(&ip, guest, |bytes| {
        repr.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    })
}

fn icmpv6(
    repr: &Icmpv6Repr<'_>,
    from: Ipv6Address,
    to: Ipv6Address,
    hop_limit: u8,
    guest: EthernetAddress,
) -> Vec<u8> {
    let ip = IpRepr::Ipv6(Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: repr.buffer_len(),
        hop_limit,
    });
    ip_frame(&ip, guest, |bytes| {
        let mut packet = Icmpv6Packet::new_unchecked(bytes);
        repr.emit(&from, &to, &mut packet, &ChecksumCapabilities::default());
    })
}

fn ip_repr(
    from: IpAddr,
    to: IpAddr,
    protocol: IpProtocol,
    len: usize,
    hop_limit: u8,
) -> Option<IpRepr> {
    (from.is_ipv4() == to.is_ipv4())
        .then(|| IpRepr::new(from.into(), to.into(), protocol, len, hop_limit))
}

fn ip_frame(ip: &IpRepr, guest: EthernetAddress, fill: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET + ip.buffer_len()];
    let (_, packet) = frame.split_at_mut(ETHERNET);
    ip.emit(&mut *packet, &ChecksumCapabilities::default());
    fill(packet.split_at_mut(ip.header_len()).1);
    put_ethernet(&mut frame, guest);
    frame
}

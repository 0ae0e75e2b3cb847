//! Addresses and bounds.
//!
//! | who | hardware | IPv4 | IPv6 |
//! |---|---|---|---|
//! | the gateway, which answers names | `02:ca:ba:00:00:01` | `10.107.0.1` | `fd00:107::1` |
//! | the machine | `02:ca:ba:00:00:02` | `10.107.0.2/16` | `fd00:107::2/64` |
//! | session slot *n*, 1 to 60,000 | `02:ca:ba:01:n` | `10.107.x.y`, `x = 1 + n / 256`, `y = n % 256` | `fd00:107::1:n` |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use smoltcp::wire::EthernetAddress;

/// The hardware address of the gateway: locally administered, "CABA".
pub const GATEWAY_MAC: EthernetAddress = EthernetAddress([0x02, 0xca, 0xba, 0x00, 0x00, 0x01]);
/// The hardware address of the guest's card.
pub const GUEST_MAC: EthernetAddress = EthernetAddress([0x02, 0xca, 0xba, 0x00, 0x00, 0x02]);
/// The gateway, which answers names.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 107, 0, 1);
/// The gateway, which answers names.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x107, 0, 0, 0, 0, 0, 1);
/// The machine.
pub const MACHINE_V4: Ipv4Addr = Ipv4Addr::new(10, 107, 0, 2);
/// The machine.
pub const MACHINE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x107, 0, 0, 0, 0, 0, 2);
/// Bits of the network in [`MACHINE_V4`].
pub const PREFIX_V4: u8 = 16;
/// Bits of the network in [`MACHINE_V6`].
pub const PREFIX_V6: u8 = 64;
/// The most sessions that have addresses.
pub const MAX_SESSIONS: u16 = 60_000;
/// The largest IP packet between guest and stack: 64 KiB less what Ethernet and virtio put before it, in whole
/// words. Nothing is ever cut in fragments below that.
pub const MAX_MTU: u16 = 65_520;
/// IPv6 wants this much (RFC 8200 §5).
pub const MIN_MTU: u16 = 1280;

/// The addresses of session slot `slot`, from 1 on; `None` beyond [`MAX_SESSIONS`].
pub fn session_addresses(slot: u16) -> Option<(Ipv4Addr, Ipv6Addr)> {
    let [high, low] = slot.to_be_bytes();
    (1..=MAX_SESSIONS).contains(&slot).then(|| {
        let v4 = Ipv4Addr::new(10, 107, 1 + high, low);
        (v4, Ipv6Addr::new(0xfd00, 0x107, 0, 0, 0, 0, 1, slot))
    })
}

/// The hardware address of session slot `slot`.
pub fn session_mac(slot: u16) -> EthernetAddress {
    let [high, low] = slot.to_be_bytes();
    EthernetAddress([0x02, 0xca, 0xba, 0x01, high, low])
}

/// The hardware address that goes with an address of the machine's or a session's; `None`: nobody in the guest may
/// speak so. The guest's kernel gives each session a card whose hardware address its programs cannot change, so a
/// frame tells whose it is whatever stands in its packet.
pub fn hardware_of(address: IpAddr) -> Option<EthernetAddress> {
    let slot = match address {
        IpAddr::V4(MACHINE_V4) | IpAddr::V6(MACHINE_V6) => return Some(GUEST_MAC),
        IpAddr::V4(v4) => match v4.octets() {
            [10, 107, high, low] if high > 0 => u16::from_be_bytes([high - 1, low]),
            _ => return None,
        },
        IpAddr::V6(v6) => match v6.segments() {
            [0xfd00, 0x107, 0, 0, 0, 0, 1, slot] => slot,
            _ => return None,
        },
    };
    (1..=MAX_SESSIONS).contains(&slot).then(|| session_mac(slot))
}

/// Whether it is the gateway's.
pub(crate) fn is_gateway(address: IpAddr) -> bool {
    address == IpAddr::V4(GATEWAY_V4) || address == IpAddr::V6(GATEWAY_V6)
}

/// What the guest can make the host hold at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Flows of all kinds.
    pub flows: usize,
    /// Connections that are not established: those that the host is still opening, and those whose guest has
    /// not answered.
    pub half_open: usize,
    /// UDP and ICMP flows.
    pub datagram_flows: usize,
    /// Bytes of the largest buffer, one for each direction of a connection.
    pub buffer: usize,
    /// Bytes of all buffers. A connection gets a thousandth of what is left for each direction, 4 KiB at least.
    pub memory: usize,
    /// How long a UDP or ICMP flow lives without a datagram.
    pub idle: Duration,
    /// How long a connection may stay half open.
    pub handshake: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 8192,
            half_open: 2048,
            datagram_flows: 1024,
            buffer: 1 << 20,
            memory: 1 << 30,
            idle: Duration::from_secs(60),
            handshake: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_session_has_addresses_of_its_own_within_the_guests_network() {
        let mut seen = std::collections::HashSet::new();
        let mut macs = std::collections::HashSet::new();
        for slot in 1..=MAX_SESSIONS {
            let (v4, v6) = session_addresses(slot).unwrap();
            let mac = session_mac(slot);
            assert_eq!([hardware_of(v4.into()), hardware_of(v6.into())], [Some(mac); 2], "{slot}");
            assert!(v4 != MACHINE_V4 && v6 != MACHINE_V6, "{slot}");
            assert!(![GUEST_MAC, GATEWAY_MAC].contains(&mac) && macs.insert(mac), "{slot}");
            assert!(seen.insert(IpAddr::V4(v4)) && seen.insert(IpAddr::V6(v6)), "{slot}");
        }
        for none in [
            "10.107.0.1",
            "10.107.0.3",
            "10.107.1.0",
            "10.107.255.255",
            "10.108.1.1",
            "fd00:107::1",
        ] {
            assert_eq!(hardware_of(none.parse().unwrap()), None, "{none}");
        }
        assert_eq!(session_addresses(0), None);
        assert_eq!(session_addresses(MAX_SESSIONS + 1), None);
    }
}

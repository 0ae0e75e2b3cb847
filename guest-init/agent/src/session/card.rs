//! A session's network card: a child of the machine's in the session's own namespace, with a hardware address and
//! addresses that the host chose.
//!
//! It is a macvlan in private mode (`Documentation/networking/macvlan`): children reach neither each other nor the
//! machine. Whoever may not configure networks, and sends no frames of its own, can forge an IP address on it but not
//! the hardware address, by which the host knows whose a frame is.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use cabana_protocol::SessionCard;

use crate::init::network;

/// `linux/rtnetlink.h`, `linux/if_link.h`.
const RTM_NEWLINK: u16 = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_MACVLAN_MODE: u16 = 1;
const MACVLAN_MODE_PRIVATE: u32 = 1;

/// `struct nlmsghdr` and `struct ifinfomsg`.
const HEADER: usize = 16;
const LINK: usize = 16;

/// The machine's card, seen from the machine's network.
pub(super) struct Parent {
    netlink: OwnedFd,
    index: u32,
}

impl Parent {
    /// Finds it. To be called before the thread leaves the machine's network.
    pub(super) fn find(card: &SessionCard) -> io::Result<Self> {
        let index = network::index(&card.parent)?;
        // SAFETY: makes a socket; no memory is involved.
        let netlink = unsafe {
            libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE)
        };
        if netlink < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `socket` has just made it, for us alone.
        Ok(Self { netlink: unsafe { OwnedFd::from_raw_fd(netlink) }, index })
    }

    /// Gives this thread's network, a session's by now, its card.
    pub(super) fn give(&self, card: &SessionCard) -> io::Result<()> {
        let here = File::open("/proc/thread-self/ns/net")?;
        self.request(&new_child(card, self.index, here.as_raw_fd() as u32))?;
        network::configure(&card.network)
    }

    /// Sends a request and hears whether it was done.
    fn request(&self, message: &[u8]) -> io::Result<()> {
        rustix::io::write(&self.netlink, message)?;
        let mut answer = [0; 1024];
        let length = rustix::io::read(&self.netlink, &mut answer)?;
        // `struct nlmsgerr` behind the header begins with the error's number.
        let code = answer.get(..length).and_then(|answer| answer.get(HEADER..HEADER + 4));
        match code.and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes) {
            Some(0) => Ok(()),
            Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The request for a child of the card `parent` in the namespace `place`.
fn new_child(card: &SessionCard, parent: u32, place: u32) -> Vec<u8> {
    let mode = attribute(IFLA_MACVLAN_MODE, &MACVLAN_MODE_PRIVATE.to_ne_bytes());
    let kind = attribute(IFLA_INFO_KIND, b"macvlan");
    let name = [card.network.interface.as_bytes(), &[0]].concat();
    let body = [
        vec![0; LINK],
        attribute(IFLA_ADDRESS, &card.mac),
        attribute(IFLA_IFNAME, &name),
        attribute(IFLA_LINK, &parent.to_ne_bytes()),
        attribute(IFLA_NET_NS_FD, &place.to_ne_bytes()),
        attribute(IFLA_LINKINFO, &[kind, attribute(IFLA_INFO_DATA, &mode)].concat()),
    ]
    .concat();
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let length = (HEADER + body.len()) as u32;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend((flags as u16).to_ne_bytes());
    // A number of the request's and one of ours, which nobody needs.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// An attribute (`struct nlattr`), padded to whole words.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = (length as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        assert_eq!(attribute(3, b"eth0\0"), *b"\x09\x00\x03\x00eth0\0\0\0\0");
        let inner = attribute(1, &1_u32.to_ne_bytes());
        assert_eq!(attribute(2, &inner), *b"\x0c\0\x02\0\x08\0\x01\0\x01\0\0\0");
    }
}

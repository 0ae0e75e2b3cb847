//! The kernel's tables of sockets (`Documentation/networking/proc_net_tcp.rst`), and whose a socket is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cabana_protocol::OwnerInfo;

/// The folder of the tables of the machine's own network.
pub(crate) const MACHINE: &str = "/proc/self/net";
/// `TCP_LISTEN`.
const LISTEN: &str = "0A";

/// A socket of a table.
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    address: SocketAddr,
    state: String,
    /// The number of its inode.
    number: u64,
}

/// What listens for TCP by the tables in this folder, with the sockets' numbers.
pub(crate) fn listening(folder: &str) -> BTreeMap<SocketAddr, u64> {
    let all = ["tcp", "tcp6"].into_iter().flat_map(|table| read(folder, table));
    all.filter(|socket| socket.state == LISTEN).map(|found| (found.address, found.number)).collect()
}

/// A process that has the socket of this address. The guest says so: nothing may follow from it.
pub(crate) fn owner(folder: &str, udp: bool, address: SocketAddr) -> Option<OwnerInfo> {
    let tables = if udp { ["udp", "udp6"] } else { ["tcp", "tcp6"] };
    let all = tables.into_iter().flat_map(|table| read(folder, table));
    // A socket of both families has an IPv4 address in its IPv6 form, and one that is not bound none at all.
    let holds = |own: SocketAddr| {
        let ip = own.ip().to_canonical();
        own.port() == address.port() && (ip == address.ip() || ip.is_unspecified())
    };
    let numbers: BTreeSet<_> =
        all.filter(|socket| holds(socket.address)).map(|socket| socket.number).collect();
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    processes.filter(|pid| *pid != 1).find_map(|pid| {
        let has = !of_process(&pid.to_string()).is_disjoint(&numbers);
        let name = fs::read(format!("/proc/{pid}/comm")).ok().filter(|_| has)?;
        let name = String::from_utf8_lossy(&name).trim_end().to_owned();
        Some(OwnerInfo { pid, name })
    })
}

/// The numbers of a process's sockets.
pub(crate) fn of_process(process: &str) -> BTreeSet<u64> {
    let entries = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let number = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    entries.filter_map(number).collect()
}

fn read(folder: &str, table: &str) -> Vec<Socket> {
    let text = fs::read_to_string(format!("{folder}/{table}")).unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

/// A line: `sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode …`.
fn parse(line: &str) -> Option<Socket> {
    let mut words = line.split_whitespace();
    let (address, port) = words.nth(1)?.split_once(':')?;
    let state = words.nth(1)?.to_owned();
    let number = words.nth(5)?.parse().ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(Socket { address: SocketAddr::new(self::address(address)?, port), state, number })
}

/// An address: words of 32 bits as the processor would print them, which hold bytes in the network's order.
fn address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn lines_of_the_tables_are_read() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0";
        let socket = |address: &str, number| Socket {
            address: address.parse().unwrap(),
            state: LISTEN.to_owned(),
            number,
        };
        assert_eq!(parse(line), Some(socket("127.0.0.1:8080", 4711)));
        let line = "   1: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0 100 0 0 10 0";
        assert_eq!(parse(line), Some(socket("[::1]:22", 12)));
        for bad in ["", "  sl  local_address rem_address   st", "0: x:y 0:0 0A 0 0 0 0 0 1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn who_listens_is_found_and_whose_a_socket_is() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let number = listening(MACHINE)[&address];
        assert!(of_process("self").contains(&number));
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        for (udp, address) in [(false, address), (true, datagrams.local_addr().unwrap())] {
            let owner = owner(MACHINE, udp, address).unwrap();
            assert_eq!(owner.pid, std::process::id());
            assert!(!owner.name.is_empty() && owner.name.len() <= 15, "{owner:?}");
        }
        assert_eq!(owner(MACHINE, true, address), None);
        drop(listener);
        assert!(!listening(MACHINE).contains_key(&address));
    }
}

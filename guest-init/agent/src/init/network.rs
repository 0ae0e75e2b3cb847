//! The network card: addresses and routes that the host chose, without DHCP and without waiting. What
//! fails is a warning, for a machine without a network is one all the same.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::{fs, io, mem};

use cabana_protocol::NetworkSetup;

/// `struct in6_ifreq` (`linux/ipv6.h`).
#[repr(C)]
struct Ipv6Request {
    address: [u8; 16],
    prefix: u32,
    interface: libc::c_int,
}

/// `struct in6_rtmsg` (`linux/ipv6_route.h`).
#[repr(C)]
struct Ipv6Route {
    destination: [u8; 16],
    source: [u8; 16],
    gateway: [u8; 16],
    kind: u32,
    destination_len: u16,
    source_len: u16,
    metric: u32,
    info: libc::c_ulong,
    flags: u32,
    interface: libc::c_int,
}

/// Sets the machine's card up and says where names are answered.
pub(super) fn set_up(setup: &NetworkSetup, warnings: &mut Vec<String>) {
    let interface = &setup.interface;
    let mut attempt = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            warnings.push(format!("setting up {interface}: {what}: {error}"));
        }
    };
    attempt("its settings", settings(interface));
    attempt("its IPv4 address", ipv4(setup));
    attempt("its IPv6 address", ipv6(setup));
    attempt("/etc/resolv.conf", name_servers(setup));
}

/// Sets a card of this thread's network up.
pub(crate) fn configure(setup: &NetworkSetup) -> io::Result<()> {
    settings(&setup.interface)?;
    ipv4(setup)?;
    ipv6(setup)
}

/// The number of a card of this thread's network.
pub(crate) fn index(interface: &str) -> io::Result<u32> {
    let mut named = request(interface)?;
    ioctl(&socket(libc::AF_INET)?, libc::SIOCGIFINDEX, &raw mut named)?;
    // SAFETY: the kernel has just put the index there.
    Ok(unsafe { named.ifr_ifru.ifru_ifindex } as u32)
}

/// Nobody else is on the link: there are no addresses to detect twice and no routers to ask, and a packet
/// whose source came from elsewhere is dropped.
fn settings(interface: &str) -> io::Result<()> {
    let folder = format!("/proc/sys/net/ipv6/conf/{interface}");
    for (name, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("addr_gen_mode", "1")] {
        fs::write(format!("{folder}/{name}"), value)?;
    }
    fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), "1")
}

fn ipv4(setup: &NetworkSetup) -> io::Result<()> {
    let socket = socket(libc::AF_INET)?;
    let mut request = request(&setup.interface)?;
    request.ifr_ifru.ifru_addr = ipv4_address(setup.v4);
    ioctl(&socket, libc::SIOCSIFADDR, &raw const request)?;
    let mask = u32::MAX.checked_shl(32 - u32::from(setup.v4_prefix)).unwrap_or(0);
    request.ifr_ifru.ifru_addr = ipv4_address(mask.to_be_bytes());
    ioctl(&socket, libc::SIOCSIFNETMASK, &raw const request)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ioctl(&socket, libc::SIOCSIFFLAGS, &raw const request)?;
    // SAFETY: `rtentry` is plain data, for which all zeros is a value.
    let mut route: libc::rtentry = unsafe { mem::zeroed() };
    route.rt_dst = ipv4_address([0; 4]);
    route.rt_genmask = ipv4_address([0; 4]);
    route.rt_gateway = ipv4_address(setup.v4_gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    ioctl(&socket, libc::SIOCADDRT, &raw const route)
}

fn ipv6(setup: &NetworkSetup) -> io::Result<()> {
    let socket = socket(libc::AF_INET6)?;
    let interface = index(&setup.interface)? as libc::c_int;
    let address = Ipv6Request { address: setup.v6, prefix: setup.v6_prefix.into(), interface };
    ioctl(&socket, libc::SIOCSIFADDR, &raw const address)?;
    let route = Ipv6Route {
        destination: [0; 16],
        source: [0; 16],
        gateway: setup.v6_gateway,
        kind: 0,
        destination_len: 0,
        source_len: 0,
        metric: 1,
        info: 0,
        flags: u32::from(libc::RTF_UP | libc::RTF_GATEWAY),
        interface,
    };
    ioctl(&socket, libc::SIOCADDRT, &raw const route)
}

/// Replaces a link too: images may have one that leads to a service that does not run here.
fn name_servers(setup: &NetworkSetup) -> io::Result<()> {
    let mut text = String::new();
    let (v4, v6) = (Ipv4Addr::from(setup.v4_gateway), Ipv6Addr::from(setup.v6_gateway));
    let _ = write!(text, "nameserver {v4}\nnameserver {v6}\n");
    match fs::remove_file("/etc/resolv.conf") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::write("/etc/resolv.conf", text)
}

fn socket(family: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: makes a socket; no memory is involved.
    let socket = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `socket` has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// A request that names the interface.
fn request(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// `struct sockaddr_in` in the place of any address.
fn ipv4_address(address: [u8; 4]) -> libc::sockaddr {
    // SAFETY: `sockaddr` is plain data, for which all zeros is a value.
    let mut plain: libc::sockaddr = unsafe { mem::zeroed() };
    plain.sa_family = libc::AF_INET as libc::sa_family_t;
    // Behind the port.
    for (to, from) in plain.sa_data.iter_mut().skip(2).zip(address) {
        *to = from as libc::c_char;
    }
    plain
}

fn ioctl<T>(socket: &OwnedFd, request: libc::c_ulong, argument: *const T) -> io::Result<()> {
    // SAFETY: the callers pass a structure of the kind that the request reads, or reads and writes.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), request as _, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

//! The first process of a guest whose stream to the host is measured: vsock, or a virtio-serial port if there is
//! one. `w` asks for bytes, `r` announces some; each is followed by their number, and taken bytes are answered by one.
//! Bytes leave as the agent's do, which lends what can be lent.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use cabana_agent::outbox::{BUFFER, Outbox};
use socket2::{Domain, SockAddr, Socket, Type};

/// The host, and the port on which it awaits its guest.
const HOST: (u32, u32) = (2, 1024);
/// Where QEMU's port may be, by the order of the devices.
const PORTS: [&str; 3] = ["/dev/vport0p1", "/dev/vport1p1", "/dev/vport2p1"];

fn main() {
    if let Err(error) = serve() {
        println!("stream: {error}");
    }
    // The first process must not end.
    loop {
        thread::sleep(Duration::from_secs(1000));
    }
}

fn serve() -> io::Result<()> {
    fs::create_dir_all("/dev")?;
    // The kernel may have mounted it.
    let _ =
        rustix::mount::mount("dev", "/dev", "devtmpfs", rustix::mount::MountFlags::empty(), None);
    let vsock = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    if vsock.connect(&SockAddr::vsock(HOST.0, HOST.1)).is_ok() {
        return talk(&vsock, &vsock);
    }
    loop {
        if let Some(port) = PORTS.iter().find_map(|path| open(path).ok()) {
            return talk(&port, &port);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn talk(mut from: impl Read, to: impl AsFd) -> io::Result<()> {
    let mut outbox = Outbox::default();
    let mut taken = vec![0; BUFFER];
    loop {
        let mut request = [0; 9];
        from.read_exact(&mut request)?;
        let [what, count @ ..] = request;
        let mut left = u64::from_le_bytes(count) as usize;
        while left > 0 {
            if what == b'w' {
                let now = left.min(BUFFER);
                outbox.room(now)?;
                outbox.queue(now);
                outbox.drain(to.as_fd())?;
                left -= now;
            } else {
                let most = left.min(BUFFER);
                left -= from.read(&mut taken[..most])?;
            }
        }
        if what == b'r' {
            outbox.push(b".")?;
            outbox.drain(to.as_fd())?;
        }
    }
}

//! The first process of a guest whose stream to the host is measured: vsock, or a virtio-serial port if there is
//! one. `w` asks for bytes, `r` announces some; each is followed by their number, and taken bytes are answered by one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

/// The host, and the port on which it awaits its guest.
const HOST: (u32, u32) = (2, 1024);
/// Where QEMU's port may be, by the order of the devices.
const PORTS: [&str; 3] = ["/dev/vport0p1", "/dev/vport1p1", "/dev/vport2p1"];
/// As much as goes at once.
const PIECE: usize = 64 << 10;

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

fn talk(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let mut request = [0; 9];
        from.read_exact(&mut request)?;
        let [what, count @ ..] = request;
        let mut left = u64::from_le_bytes(count) as usize;
        while left > 0 {
            let now = left.min(PIECE);
            if what == b'w' {
                to.write_all(&piece[..now])?;
                left -= now;
            } else {
                left -= from.read(&mut piece[..now])?;
            }
        }
        if what == b'r' {
            to.write_all(b".")?;
        }
    }
}

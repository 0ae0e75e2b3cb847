//! The server: every virtio-serial port runs one command at a time for the host.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use cabana_agent::Server;
use cabana_lab::tunnel::{self, Receiver, Sender};

/// Serves all ports; returns when every one of them is broken.
pub(crate) fn serve() {
    thread::spawn(|| {
        let heard =
            open_port(tunnel::BELL).and_then(|mut bell| io::copy(&mut bell, &mut io::sink()));
        heard.inspect_err(|error| eprintln!("lab-init: its bell: {error}"))
    });
    let ports: Vec<_> = (1..=tunnel::PORTS)
        .map(|number| {
            thread::spawn(move || {
                if let Err(error) = serve_port(number) {
                    eprintln!("lab-init: port {number}: {error}");
                }
            })
        })
        .collect();
    for port in ports {
        let _ = port.join();
    }
}

/// Serves the connections of one port, one after another.
fn serve_port(number: usize) -> io::Result<()> {
    let port = open_port(number)?;
    // The first write waits until the host's end is connected, and tells the host that we are here.
    (&port).write_all(&[tunnel::READY])?;
    loop {
        let (near, far) = UnixStream::pair()?;
        thread::scope(|scope| -> io::Result<()> {
            scope.spawn(move || {
                // A connection that ends early is the host's decision.
                let _ = Server::new().map(|server| server.serve(far));
            });
            let outward = scope.spawn(|| {
                let mut sender = Sender::new(&port);
                tunnel::copy(&mut &near, &mut sender)?;
                sender.finish()
            });
            let mut receiver = Receiver::new(&port);
            // Once the command is gone nobody takes what is still under way.
            let _ = tunnel::copy(&mut receiver, &mut &near);
            receiver.drain()?;
            let _ = near.shutdown(Shutdown::Write);
            outward.join().unwrap_or_else(|_| Err(io::Error::other("its outward half died")))
        })?;
    }
}

/// Opens a port, waiting for the driver to make it.
fn open_port(number: usize) -> io::Result<File> {
    let path = format!("/dev/vport0p{number}");
    loop {
        match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                thread::sleep(Duration::from_millis(1));
            }
            opened => return opened,
        }
    }
}

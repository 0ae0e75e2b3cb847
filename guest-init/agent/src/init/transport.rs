//! How the agent reaches the host: vsock or, for a machine without it, two ports.
//!
//! On a machine that has no vsock device (another VMM's, in a test) the kernel's command line may name
//! two character devices, `CABANA_CONTROL=/dev/vport0p1 CABANA_EXEC=/dev/vport0p2`; the kernel hands
//! words of this form to PID 1 as environment variables. The control connection is then the first
//! device, and the second serves one exec connection after another.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, io, mem, thread};

use cabana_protocol::{CONTROL_PORT, EXEC_PORT, HOST_CID};

use super::Fatal;
use super::control::Control;
use crate::Server;

/// How long a thread that serves one command may grow its stack; it needs a fraction.
const STACK: usize = 256 * 1024;

/// How many exec connections the kernel may hold until they are accepted; it refuses more.
const BACKLOG: libc::c_int = 1024;

/// How long a port may take to appear.
const PORT_PATIENCE: Duration = Duration::from_secs(5);

/// How long to rest before a port, or the socket, is tried again.
const PORT_REST: Duration = Duration::from_millis(20);

pub(super) enum Transport {
    /// The socket that exec connections come to.
    Vsock(OwnedFd),
    /// The paths of two devices.
    Ports { control: String, exec: Option<String> },
}

impl Transport {
    /// Prepares for exec connections, so that none is refused once the host has heard of the agent.
    pub(super) fn open() -> Result<Self, Fatal> {
        match env::var("CABANA_CONTROL") {
            Ok(control) => Ok(Self::Ports { control, exec: env::var("CABANA_EXEC").ok() }),
            Err(_) => {
                listen(EXEC_PORT).map(Self::Vsock).map_err(Fatal::system("listening on vsock"))
            }
        }
    }

    /// Makes the control connection.
    pub(super) fn connect(&self) -> Result<Control, Fatal> {
        let connection = match self {
            Self::Vsock(_) => connect(HOST_CID, CONTROL_PORT).map_err(Fatal::system(
                "connecting to the host by vsock (has the machine a vsock device?)",
            )),
            Self::Ports { control, .. } => open_port(control)
                .map(OwnedFd::from)
                .map_err(Fatal::system("opening the device that CABANA_CONTROL names")),
        };
        connection.map(Control::new)
    }

    /// Starts to serve exec connections, on a thread of its own.
    pub(super) fn accept_execs(&self, server: Arc<Server>) -> io::Result<()> {
        match self {
            Self::Vsock(socket) => {
                let socket = socket.try_clone()?;
                spawn(move || accept_forever(&socket, &server))
            }
            Self::Ports { exec: Some(path), .. } => {
                let path = path.clone();
                spawn(move || serve_port(&path, &server))
            }
            Self::Ports { exec: None, .. } => Ok(()),
        }
    }
}

/// Accepts the host's connections, one thread for each.
fn accept_forever(socket: &OwnedFd, server: &Arc<Server>) {
    loop {
        match accept(socket) {
            Ok((connection, HOST_CID)) => {
                // Without memory for a thread the connection is closed, which its host understands.
                let server = Arc::clone(server);
                let _ = spawn(move || drop(server.serve(connection)));
            }
            // A process of the guest: it can run commands without us.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                eprintln!("cabana-agent: accepting an exec connection: {error}");
                thread::sleep(PORT_REST);
            }
        }
    }
}

/// Serves one connection after another. The port stays open between them: closing it would lose what
/// the next host has sent already.
fn serve_port(path: &str, server: &Server) {
    let port = match open_port(path) {
        Ok(port) => port,
        Err(error) => return eprintln!("cabana-agent: opening the exec port {path}: {error}"),
    };
    loop {
        let Ok(connection) = port.try_clone() else { return };
        // What a connection changes of its thread is not for the next.
        let served = thread::scope(|scope| scope.spawn(|| server.serve(connection)).join());
        if !matches!(served, Ok(Ok(()))) {
            thread::sleep(PORT_REST);
        }
    }
}

/// Opens a port; the kernel makes it some time after it has started PID 1.
fn open_port(path: &str) -> io::Result<File> {
    let end = Instant::now() + PORT_PATIENCE;
    loop {
        match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < end => {
                thread::sleep(PORT_REST);
            }
            other => return other,
        }
    }
}

pub(super) fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().stack_size(STACK).spawn(work).map(drop)
}

/// A connection from a vsock port of ours to one of the host's.
pub(super) fn connect_from(source: u32, port: u32) -> io::Result<OwnedFd> {
    let socket = socket()?;
    let address = address(libc::VMADDR_CID_ANY, source);
    // SAFETY: the kernel reads an address of the given size.
    let result =
        unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_SIZE) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    connect_socket(socket, HOST_CID, port)
}

/// A connection to a vsock port.
fn connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    connect_socket(socket()?, cid, port)
}

fn connect_socket(socket: OwnedFd, cid: u32, port: u32) -> io::Result<OwnedFd> {
    let address = address(cid, port);
    // SAFETY: the kernel reads an address of the given size.
    let result =
        unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_SIZE) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// A socket that awaits connections on a vsock port.
fn listen(port: u32) -> io::Result<OwnedFd> {
    let socket = socket()?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the kernel reads an address of the given size; `listen` involves no memory.
    let result = unsafe {
        match libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_SIZE) {
            0 => libc::listen(socket.as_raw_fd(), BACKLOG),
            error => error,
        }
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// The next connection, and the context identifier of its other end.
fn accept(socket: &OwnedFd) -> io::Result<(OwnedFd, u32)> {
    let mut address = address(0, 0);
    let mut size = ADDRESS_SIZE;
    // SAFETY: the kernel writes an address of at most the given size, and its size.
    let connection = unsafe {
        libc::accept4(
            socket.as_raw_fd(),
            (&raw mut address).cast(),
            &raw mut size,
            libc::SOCK_CLOEXEC,
        )
    };
    if connection < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `accept4` has just made it, for us alone.
    Ok((unsafe { OwnedFd::from_raw_fd(connection) }, address.svm_cid))
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: makes a socket; no memory is involved.
    let socket = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `socket` has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

const ADDRESS_SIZE: libc::socklen_t = mem::size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: `sockaddr_vm` is plain data, for which all zeros is a value.
    let mut address: libc::sockaddr_vm = unsafe { mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

//! The life of PID 1: from the first instruction to the end of the machine.
//!
//! The order makes the machine ready early: the host is greeted before anything else is done, and what
//! does not depend on its answer is done while that is on its way.

mod arch;
mod connections;
mod control;
pub(crate) mod freeze;
mod mounts;
pub(crate) mod network;
mod processes;
pub(crate) mod settings;
pub(crate) mod shares;
mod transport;
mod watch;

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, panic, process};

use cabana_protocol::{
    GuestMessage, Hello, HostMessage, PROTOCOL_VERSION, ProtocolError, Ready, Setup, SetupFailed,
    exit_port,
};

use self::control::Control;
use self::mounts::Root;
use self::transport::Transport;
use crate::Server;
use crate::events::Events;

/// Where the root image is mounted in the initramfs.
pub(crate) const IMAGE: &str = "/image";

/// Where the writable file system is mounted in the initramfs.
pub(crate) const SCRATCH: &str = "/scratch";

/// Where the root file system is put together in the initramfs.
pub(crate) const NEW_ROOT: &str = "/root";

/// How long the host has to close the control connection after the agent's last message.
const LAST_WORD: Duration = Duration::from_millis(100);

/// Why the agent cannot go on and cannot tell the host.
#[derive(Debug, thiserror::Error)]
enum Fatal {
    #[error("{what}: {source}")]
    System { what: &'static str, source: io::Error },
    #[error("the control connection: {0}")]
    Protocol(#[from] ProtocolError),
}

impl Fatal {
    fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::System { what, source: error.into() }
    }
}

/// Runs the machine and ends it: returns only, with a message, to a process that is not PID 1.
pub fn run() {
    let tsc_main = arch::tsc();
    if process::id() != 1 {
        eprintln!("cabana-agent: it is the first process of a Cabana guest and does nothing else");
        process::exit(2);
    }
    panic::set_hook(Box::new(|panic| {
        eprintln!("cabana-agent: a defect: {panic}");
        arch::end_machine(exit_port::AGENT_FAILED);
    }));
    match live(tsc_main) {
        Ok(status) => arch::end_machine(status),
        Err(fatal) => {
            eprintln!("cabana-agent: {fatal}");
            arch::end_machine(exit_port::AGENT_FAILED);
        }
    }
}

/// Everything between the first instruction and the end; returns the machine's exit status.
fn live(tsc_main: u64) -> Result<u8, Fatal> {
    mounts::mount_dev().map_err(Fatal::system("mounting /dev (devtmpfs)"))?;
    let transport = Transport::open()?;
    let mut control = transport.connect()?;
    control.send(&hello(tsc_main))?;

    let orphans = processes::Orphans::watch().map_err(Fatal::system("watching processes"))?;
    let mut warnings = mounts::mount_kernel_file_systems();
    settings::exempt_from_oom_killer(&mut warnings);
    settings::come_first(&mut warnings);
    settings::open_more_files(&mut warnings);
    settings::loopback_up(&mut warnings);

    let setup = loop {
        match control.receive()? {
            Some(HostMessage::Setup(setup)) => break setup,
            Some(HostMessage::Ping(number)) => control.send(&GuestMessage::Pong(number))?,
            Some(HostMessage::Shutdown | HostMessage::Renew(_)) | None => {
                return Ok(exit_port::POWER_OFF);
            }
        }
    };
    let root = match apply(&setup, &mut warnings) {
        Ok(root) => root,
        Err(failed) => {
            control.send(&GuestMessage::SetupFailed(failed))?;
            control.wait_closed(Instant::now() + LAST_WORD);
            return Ok(exit_port::SETUP_FAILED);
        }
    };
    let server = root.disk().and_then(Server::of_machine).map(Arc::new);
    let server = server.map_err(Fatal::system("making the exec server"))?;
    transport
        .accept_execs(Arc::clone(&server))
        .map_err(Fatal::system("starting the exec server"))?;
    control.send(&GuestMessage::Ready(Ready {
        tsc: arch::tsc(),
        monotonic_ns: settings::monotonic_ns(),
        warnings,
    }))?;
    settings::keep_few_free_pages();
    if !setup.shares.is_empty() {
        watch::start(shares::ROOT);
    }

    let asked = loop {
        match supervise(&mut control, &orphans, server.events())? {
            End::Asked => break true,
            End::Lost if freeze::is_frozen() => match wake(&transport) {
                Ok(Some(woken)) => {
                    control = woken;
                    server.tell_again();
                }
                Ok(None) => return Ok(exit_port::SETUP_FAILED),
                // There is no other host: the first one has gone while the machine was held.
                Err(_) => break false,
            },
            End::Lost => break false,
        }
    };
    processes::end_all(&orphans);
    shares::unmount_all();
    mounts::flush(&root);
    // A host that is gone hears nothing, and a write to it might wait for it.
    if asked && control.send(&GuestMessage::Stopped).is_ok() {
        control.wait_closed(Instant::now() + LAST_WORD);
    }
    Ok(exit_port::POWER_OFF)
}

/// The agent's first word.
fn hello(tsc_main: u64) -> GuestMessage {
    GuestMessage::Hello(Hello {
        protocol: PROTOCOL_VERSION,
        agent_version: env!("CARGO_PKG_VERSION").into(),
        tsc_main,
        monotonic_ns: settings::monotonic_ns(),
    })
}

/// Greets the host of a machine that comes out of a snapshot, and becomes what it asks for; `None` if
/// that could not be done, which the host has heard.
fn wake(transport: &Transport) -> Result<Option<Control>, Fatal> {
    let mut control = transport.connect()?;
    control.send(&hello(arch::tsc()))?;
    let renew = loop {
        match control.receive()? {
            Some(HostMessage::Renew(renew)) => break renew,
            Some(HostMessage::Ping(number)) => control.send(&GuestMessage::Pong(number))?,
            Some(HostMessage::Shutdown | HostMessage::Setup(_)) | None => {
                return Err(ProtocolError::Closed.into());
            }
        }
    };
    let mut warnings = Vec::new();
    if let Err(failed) = freeze::wake(&renew, &mut warnings) {
        control.send(&GuestMessage::SetupFailed(failed))?;
        control.wait_closed(Instant::now() + LAST_WORD);
        return Ok(None);
    }
    let (tsc, monotonic_ns) = (arch::tsc(), settings::monotonic_ns());
    control.send(&GuestMessage::Ready(Ready { tsc, monotonic_ns, warnings }))?;
    Ok(Some(control))
}

/// Makes the machine what the host asks for.
fn apply(setup: &Setup, warnings: &mut Vec<String>) -> Result<Root, SetupFailed> {
    settings::set_clock(setup.realtime_ns, warnings);
    settings::add_entropy(&setup.entropy, warnings);
    settings::set_hostname(&setup.hostname, warnings);
    let root = mounts::mount_root(&setup.root)?;
    shares::mount_all(&setup.shares)?;
    if let Some(network) = &setup.network {
        network::set_up(network, warnings);
    }
    Ok(root)
}

/// Why the conversation with the host ended.
enum End {
    /// The host asked for the machine's end, and awaits it.
    Asked,
    /// The host is gone.
    Lost,
}

/// Answers the host, tells it of events and reaps orphans until the conversation ends.
fn supervise(
    control: &mut Control,
    orphans: &processes::Orphans,
    events: &Events,
) -> Result<End, Fatal> {
    loop {
        let others = [control.as_fd(), events.wake()];
        orphans.wait(&others, None).map_err(Fatal::system("poll"))?;
        for event in events.take() {
            if control.send(&GuestMessage::Event(event)).is_err() {
                return Ok(End::Lost);
            }
        }
        while let Some(message) = control.poll_message() {
            match message {
                Ok(HostMessage::Ping(number)) => {
                    if control.send(&GuestMessage::Pong(number)).is_err() {
                        return Ok(End::Lost);
                    }
                }
                Ok(HostMessage::Shutdown) => return Ok(End::Asked),
                Ok(HostMessage::Setup(_) | HostMessage::Renew(_)) => {
                    eprintln!("cabana-agent: the host sent a second setup");
                    return Ok(End::Lost);
                }
                Err(ProtocolError::Closed) => return Ok(End::Lost),
                Err(error) => {
                    eprintln!("cabana-agent: the control connection: {error}");
                    return Ok(End::Lost);
                }
            }
        }
    }
}

/// A step of the setup that failed, in words.
fn failed(what: impl Into<String>, why: impl Display) -> SetupFailed {
    SetupFailed { what: what.into(), why: why.to_string() }
}

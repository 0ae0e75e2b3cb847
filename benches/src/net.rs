//! The network stack alone, in this process, beside plain loopback TCP: how many bytes a second each way, and
//! how long a byte takes there and back. A program of its own stands at the host's end of both.
//!
//! The guest's end is as cheap as can be: [`Wire`] knows just enough TCP to fill frames and to acknowledge them, so
//! that what is measured is the stack.

pub mod guest;
mod peer;
mod wire;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use cabana_netstack::{FrameLink, Gate, Limits, MAX_MTU, Network, NetworkConfig, Opening};
use cabana_os::{Event, EventLoop};
use serde::Serialize;

use crate::Error;
use wire::Wire;

pub use peer::serve;

/// Bytes of one measurement.
const BULK: u64 = 2 << 30;
/// Bytes from one place and to one place while measuring.
const CHUNK: usize = 256 << 10;
/// Round trips of one measurement.
const ROUND_TRIPS: u32 = 5000;

/// What a connection is for; the first byte that its client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// The client sends, the peer counts and says so at the end.
    Sink = b's' as isize,
    /// The peer sends.
    Source = b'S' as isize,
    /// Each byte comes back.
    Echo = b'e' as isize,
}

/// One measurement each of the stack and of plain loopback TCP.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pair {
    /// Through the stack.
    pub stack: f64,
    /// Without it.
    pub plain: f64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Guest to host, Gbit/s, each run.
    pub upload: Vec<Pair>,
    /// Host to guest, Gbit/s, each run.
    pub download: Vec<Pair>,
    /// There and back, microseconds, the median of each run.
    pub round_trip: Vec<Pair>,
}

/// Measures against the peer at this address, `runs` times.
pub fn measure(peer: SocketAddr, runs: usize, tell: &dyn Fn(&str)) -> Result<Figures, Error> {
    let failed = Error::file("a connection to the peer");
    let mut figures = Figures { upload: Vec::new(), download: Vec::new(), round_trip: Vec::new() };
    let mut all = || -> std::io::Result<()> {
        for run in 0..=runs {
            tell(&format!(
                "net: run {run} of {runs}{}",
                if run == 0 { " (not counted)" } else { "" }
            ));
            let upload =
                Pair { stack: bulk(peer, Task::Sink)?, plain: plain_bulk(peer, Task::Sink)? };
            let download =
                Pair { stack: bulk(peer, Task::Source)?, plain: plain_bulk(peer, Task::Source)? };
            let round_trip = Pair { stack: round_trip(peer)?, plain: plain_round_trip(peer)? };
            if run > 0 {
                figures.upload.push(upload);
                figures.download.push(download);
                figures.round_trip.push(round_trip);
            }
        }
        Ok(())
    };
    all().map_err(failed)?;
    Ok(figures)
}

/// Lets everything pass.
struct Open;

impl Gate for Open {
    fn open(&mut self, _now: Duration, _id: u64, flow: &cabana_netstack::Flow) -> Opening {
        Opening::Connect { to: flow.destination, inspect: false }
    }
}

/// Runs a conversation of the guest's through a stack until it is over; seconds from its first byte on.
fn through_stack(
    peer: SocketAddr,
    task: Task,
    amount: u64,
) -> std::io::Result<(Duration, Vec<f64>)> {
    let events = EventLoop::spawn("net")?;
    let config = NetworkConfig {
        mtu: MAX_MTU,
        limits: Limits::default(),
        gate: Box::new(Open),
        publish: Vec::new(),
        capture: None,
    };
    let network = Network::start(config, events.handle()).map_err(std::io::Error::other)?;
    let doorbell = Event::new()?;
    let notify = doorbell.try_clone()?;
    network.start(true, Arc::new(move || notify.signal()));
    let (sender, done) = channel();
    let mut wire = Wire::new(peer, task, amount);
    let link = network.clone();
    let token = events.handle().add_event(&doorbell, move || {
        if let Some(result) = wire.step(&link) {
            let _ = sender.send(result);
        }
    })?;
    doorbell.signal();
    let result = done.recv_timeout(Duration::from_secs(300)).map_err(std::io::Error::other);
    events.handle().remove(token);
    result
}

fn bulk(peer: SocketAddr, task: Task) -> std::io::Result<f64> {
    let (took, _) = through_stack(peer, task, BULK)?;
    Ok(gigabits(took))
}

fn round_trip(peer: SocketAddr) -> std::io::Result<f64> {
    let (_, trips) = through_stack(peer, Task::Echo, ROUND_TRIPS.into())?;
    Ok(median(trips))
}

fn plain_bulk(peer: SocketAddr, task: Task) -> std::io::Result<f64> {
    let mut stream = TcpStream::connect(peer)?;
    let began = Instant::now();
    stream.write_all(&[task as u8])?;
    let mut chunk = vec![7; CHUNK];
    if task == Task::Sink {
        let mut left = BULK;
        while left > 0 {
            let len = left.min(CHUNK as u64) as usize;
            stream.write_all(&chunk[..len])?;
            left -= len as u64;
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.read_exact(&mut [0; 8])?;
    } else {
        stream.write_all(&BULK.to_le_bytes())?;
        let mut left = BULK;
        while left > 0 {
            left -= stream.read(&mut chunk)? as u64;
        }
    }
    Ok(gigabits(began.elapsed()))
}

fn plain_round_trip(peer: SocketAddr) -> std::io::Result<f64> {
    let mut stream = TcpStream::connect(peer)?;
    stream.set_nodelay(true)?;
    stream.write_all(&[Task::Echo as u8])?;
    let mut trips = Vec::new();
    for _ in 0..ROUND_TRIPS {
        let began = Instant::now();
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0])?;
        trips.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(trips))
}

fn gigabits(took: Duration) -> f64 {
    BULK as f64 * 8.0 / 1e9 / took.as_secs_f64()
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Figures {
    /// A table for people.
    pub fn markdown(&self) -> String {
        let mut table =
            "| | through the stack | plain loopback TCP | |\n|---|---|---|---|\n".to_owned();
        for (name, pairs) in
            [("guest to host, Gbit/s", &self.upload), ("host to guest, Gbit/s", &self.download)]
        {
            let (stack, plain, ratio) = medians(pairs, |pair| pair.stack / pair.plain);
            table += &format!("| {name} | {stack:.1} | {plain:.1} | ratio {ratio:.2} |\n");
        }
        let (stack, plain, more) = medians(&self.round_trip, |pair| pair.stack - pair.plain);
        table += &format!("| there and back, µs | {stack:.1} | {plain:.1} | {more:.1} µs more |\n");
        table
    }
}

/// Medians of both sides, and of what `compare` makes of each run.
fn medians(pairs: &[Pair], compare: impl Fn(&Pair) -> f64) -> (f64, f64, f64) {
    let of = |pick: &dyn Fn(&Pair) -> f64| median(pairs.iter().map(pick).collect());
    (of(&|pair| pair.stack), of(&|pair| pair.plain), of(&compare))
}

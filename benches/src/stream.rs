//! A stream between guest and host, beside a virtio-serial port of QEMU's microvm: the same kernel, the same program
//! in the guest, the same reader and writer here.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use cabana_agent::initramfs;
use cabana_sandbox::{MachineConfig, Stream, Vmm};

use crate::Error;
use crate::peer::Qemu;
use crate::report::{Report, Row, Summary};

/// Bytes of one run.
const BYTES: usize = 16 << 20;
/// As much as goes at once.
const PIECE: usize = 64 << 10;
/// Runs of each kind that are not counted.
const COLD: usize = 2;
/// Guest RAM in MiB.
const MEMORY_MIB: u64 = 128;
/// How many times as fast as QEMU's the stream is to be.
const TARGET: f64 = 2.0;

/// MiB a second in each direction.
#[derive(Clone, Debug)]
pub struct Rates {
    /// From the guest to the host.
    pub up: Summary,
    /// From the host to the guest.
    pub down: Summary,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Streams {
    /// Cabana's vsock.
    pub cabana: Rates,
    /// QEMU's virtio-serial.
    pub qemu: Rates,
}

/// What is measured with.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// The guest kernel of both.
    pub kernel: &'a Path,
    /// The root image that Cabana's machine has.
    pub image: &'a Path,
    /// The program of the guest, static.
    pub program: &'a Path,
    /// QEMU's.
    pub qemu: &'a Path,
}

/// Measures both.
pub fn measure(files: Files<'_>, runs: usize, tell: &dyn Fn(&str)) -> Result<Streams, Error> {
    let folder = tempfile::tempdir().map_err(Error::file(Path::new("a folder")))?;
    let program = std::fs::read(files.program).map_err(Error::file(files.program))?;
    let initrd = folder.path().join("stream.cpio");
    std::fs::write(&initrd, initramfs::pack(&program)).map_err(Error::file(&initrd))?;
    tell("Cabana's vsock");
    let config = MachineConfig {
        memory: MEMORY_MIB << 20,
        kernel: files.kernel.to_owned(),
        agent: initrd.clone(),
        image: files.image.to_owned(),
        ..MachineConfig::default()
    };
    let broken = |error: &dyn std::fmt::Display| Error::Content {
        path: "the machine".into(),
        why: error.to_string(),
    };
    let vmm = Vmm::start(&config).map_err(|error| broken(&error))?;
    let stream = vmm.accept().map_err(|error| broken(&error))?;
    let read = |stream: &mut Stream, scratch: &mut [u8]| stream.pass_on(scratch, |_| Ok(()));
    let cabana = rates(stream, read, runs).map_err(|error| broken(&error))?;
    drop(vmm);

    tell("QEMU's virtio-serial");
    let socket = folder.path().join("port");
    let listener = UnixListener::bind(&socket).map_err(Error::file(&socket))?;
    let qemu = Qemu { program: files.qemu.to_owned(), memory_mib: MEMORY_MIB };
    let mut command = qemu.microvm(files.kernel, &initrd, "quiet panic=-1 reboot=t");
    command
        .args(["-device", "virtio-serial-device", "-device", "virtserialport,chardev=port"])
        .args(["-chardev", &format!("socket,id=port,path={}", socket.display())]);
    let mut machine = command.spawn().map_err(Error::file(files.qemu))?;
    let (stream, _) = listener.accept().map_err(Error::file(&socket))?;
    let qemu = rates(stream, UnixStream::read, runs).map_err(|error| broken(&error));
    machine.kill().and_then(|()| machine.wait()).map_err(Error::file(files.qemu))?;
    Ok(Streams { cabana, qemu: qemu? })
}

/// Measures one stream, from which `read` takes bytes into a buffer if it needs one.
fn rates<S: Read + Write>(
    mut stream: S,
    read: impl Fn(&mut S, &mut [u8]) -> std::io::Result<usize>,
    runs: usize,
) -> std::io::Result<Rates> {
    let mut piece = vec![0; PIECE];
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for _ in 0..COLD + runs {
        let begun = Instant::now();
        ask(&mut stream, b'w')?;
        let mut left = BYTES;
        while left > 0 {
            match read(&mut stream, &mut piece)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                count => left -= count,
            }
        }
        up.push(rate(begun));
        let begun = Instant::now();
        ask(&mut stream, b'r')?;
        for _ in 0..BYTES / PIECE {
            stream.write_all(&piece)?;
        }
        stream.read_exact(&mut piece[..1])?;
        down.push(rate(begun));
    }
    let summary = |all: &[f64]| Summary::of(&all[COLD..]).ok_or(std::io::ErrorKind::InvalidInput);
    Ok(Rates { up: summary(&up)?, down: summary(&down)? })
}

fn ask(stream: &mut impl Write, what: u8) -> std::io::Result<()> {
    let mut request = vec![what];
    request.extend((BYTES as u64).to_le_bytes());
    stream.write_all(&request)
}

/// MiB a second.
fn rate(begun: Instant) -> f64 {
    (BYTES >> 20) as f64 / begun.elapsed().as_secs_f64()
}

impl Streams {
    /// All of it, with a table of its own; more is better, so no row has a target.
    pub fn report(&self, clock: &str) -> Report {
        let row = |(what, cabana, qemu): (&str, &Summary, &Summary)| {
            Row::new(what, "MiB/s", clock).values(Some(cabana.clone()), Some(qemu.clone()))
        };
        let rows = self.ways().map(row).into();
        Report { rows, table: Some(self.markdown()), ..Report::default() }
    }

    fn ways(&self) -> [(&'static str, &Summary, &Summary); 2] {
        [
            ("guest to host", &self.cabana.up, &self.qemu.up),
            ("host to guest", &self.cabana.down, &self.qemu.down),
        ]
    }

    /// A table for people.
    fn markdown(&self) -> String {
        let mut table = "| | Cabana's vsock, least / median / greatest, MiB/s | QEMU microvm's virtio-serial | times | target |\n\
                         |---|---|---|---|---|\n"
            .to_owned();
        for (what, cabana, qemu) in self.ways() {
            let times = cabana.median / qemu.median;
            let reached = if times >= TARGET { "✓" } else { "✗" };
            let of =
                |rate: &Summary| format!("{:.0} / {:.0} / {:.0}", rate.min, rate.median, rate.max);
            let (cabana, qemu) = (of(cabana), of(qemu));
            table +=
                &format!("| {what} | {cabana} | {qemu} | {times:.1} | ≥ {TARGET} {reached} |\n");
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_is_reached() {
        let of = |value| Summary::of(&[value]).unwrap();
        let cabana = Rates { up: of(900.0), down: of(300.0) };
        let qemu = Rates { up: of(300.0), down: of(200.0) };
        let report = Streams { cabana, qemu }.report("ordinary");
        let table = report.markdown();
        assert!(table.contains("| 3.0 | ≥ 2 ✓ |") && table.contains("| 1.5 | ≥ 2 ✗ |"), "{table}");
        let medians = report.rows.iter().map(|row| row.cabana.as_ref().unwrap().median);
        assert_eq!(medians.collect::<Vec<_>>(), [900.0, 300.0]);
    }
}

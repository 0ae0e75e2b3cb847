//! iperf3 through Cabana's network and through QEMU's, with slirp and with passt: where KVM runs Linux. A server
//! runs in each guest behind a published port, and the client beside it on the host.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::median;
use crate::Error;
use crate::peer::Qemu;

const IPERF: &str = "/usr/bin/iperf3";
const PASST: &str = "/usr/bin/passt";
const BUSYBOX: &str = "/bin/busybox";
/// The port of iperf3's server.
const PORT: u16 = 5201;
/// How long a guest may take until its server answers.
const PATIENCE: Duration = Duration::from_secs(120);
/// A kernel that is quiet and measures nothing, as Cabana's own guests have it; the guest's addresses are for its
/// init, to which the kernel passes words that it does not know.
const WORDS: &str = "quiet rdinit=/init tsc=reliable no_timer_check random.trust_cpu=on \
                     address=10.0.2.15 gateway=10.0.2.2";

/// An init that sets the card up and serves.
const INIT: &str = r"#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox ifconfig lo 127.0.0.1 up
/bin/busybox ifconfig eth0 $address netmask 255.255.255.0 mtu $mtu up
/bin/busybox route add default gw $gateway
exec /lib/ld.so --library-path /lib /bin/iperf3 -s > /dev/null 2>&1
";

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Beside {
    /// The `cabana` program.
    pub cabana: PathBuf,
    /// QEMU's.
    pub qemu: PathBuf,
    /// The kernel that all guests boot.
    pub kernel: PathBuf,
    /// A folder for what is made.
    pub work: PathBuf,
    /// How often.
    pub runs: usize,
}

/// What one network did.
#[derive(Clone, Debug, Serialize)]
pub struct Speed {
    /// Whose.
    pub network: &'static str,
    /// Host to guest, Mbit/s, each run.
    pub to_guest: Vec<f64>,
    /// Guest to host, Mbit/s, each run.
    pub to_host: Vec<f64>,
}

/// Ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Beside {
    /// Measures all of them, one after the other.
    pub fn measure(&self, tell: &dyn Fn(&str)) -> Result<Vec<Speed>, Error> {
        let (folder, initramfs) = (self.work.join("iperf"), self.work.join("iperf.cpio"));
        self.prepare(&folder, &initramfs)?;
        let mut speeds = Vec::new();
        for network in ["cabana", "slirp", "passt"] {
            tell(&format!("net: iperf3 through {network}"));
            let port = free_port()?;
            let _running = match network {
                "cabana" => vec![self.cabana(&folder, port)?],
                "slirp" => vec![self.slirp(&initramfs, port)?],
                _ => self.passt(&initramfs, port)?,
            };
            await_server(port)?;
            let runs = |reverse| {
                (0..self.runs).map(|_| iperf(port, reverse)).collect::<Result<Vec<_>, _>>()
            };
            speeds.push(Speed { network, to_guest: runs(false)?, to_host: runs(true)? });
        }
        Ok(speeds)
    }

    /// iperf3 with its libraries in a folder, and an initramfs with the same.
    fn prepare(&self, folder: &Path, initramfs: &Path) -> Result<(), Error> {
        let root = self.work.join("root");
        for place in
            [folder, &root.join("bin"), &root.join("lib"), &root.join("proc"), &root.join("dev")]
        {
            fs::create_dir_all(place).map_err(Error::file(place))?;
        }
        let copy = |from: &Path, to: &Path| fs::copy(from, to).map(drop).map_err(Error::file(from));
        let listed = run(Command::new(IPERF).env("LD_TRACE_LOADED_OBJECTS", "1"))?;
        let libraries =
            listed.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new);
        for library in libraries {
            let Some(name) = library.file_name() else { continue };
            let loader = name.to_string_lossy().starts_with("ld-linux");
            let name = if loader { "ld.so".as_ref() } else { name };
            copy(library, &folder.join(name))?;
            copy(library, &root.join("lib").join(name))?;
        }
        copy(Path::new(IPERF), &folder.join("iperf3"))?;
        copy(Path::new(IPERF), &root.join("bin/iperf3"))?;
        copy(Path::new(BUSYBOX), &root.join("bin/busybox"))?;
        let init = root.join("init");
        fs::write(&init, INIT).map_err(Error::file(&init))?;
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&init, executable).map_err(Error::file(&init))?;
        let pack = format!("find . | cpio --quiet -o -H newc > {}", initramfs.display());
        run(Command::new("sh").arg("-c").arg(pack).current_dir(&root)).map(drop)
    }

    fn cabana(&self, folder: &Path, port: u16) -> Result<Running, Error> {
        let mut command = Command::new(&self.cabana);
        command
            .args(["run", "--publish", &format!("{port}:{PORT}")])
            .arg("--kernel")
            .arg(&self.kernel)
            .arg("--share")
            .arg(format!("{}:/iperf:ro", folder.display()))
            .args(["--", "/iperf/ld.so", "--library-path", "/iperf", "/iperf/iperf3", "-s"]);
        start(&mut command)
    }

    fn slirp(&self, initramfs: &Path, port: u16) -> Result<Running, Error> {
        let network = format!("user,id=n,hostfwd=tcp:127.0.0.1:{port}-:{PORT}");
        start(self.qemu(initramfs, 1500).args(["-netdev", &network]))
    }

    fn passt(&self, initramfs: &Path, port: u16) -> Result<Vec<Running>, Error> {
        let socket = self.work.join("passt.sock");
        let mut passt = Command::new(PASST);
        passt
            .args(["--foreground", "--socket"])
            .arg(&socket)
            .args(["--tcp-ports", &format!("127.0.0.1/{port}:{PORT}")])
            .args(["--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2"]);
        let passt = start(&mut passt)?;
        let deadline = Instant::now() + PATIENCE;
        while !socket.exists() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        let network =
            format!("stream,id=n,server=off,addr.type=unix,addr.path={}", socket.display());
        let qemu = start(self.qemu(initramfs, 65_520).args(["-netdev", &network]))?;
        Ok(vec![qemu, passt])
    }

    fn qemu(&self, initramfs: &Path, mtu: u16) -> Command {
        let qemu = Qemu { program: self.qemu.clone(), memory_mib: 512 };
        let mut command = qemu.microvm(&self.kernel, initramfs, &format!("{WORDS} mtu={mtu}"));
        command.args(["-device", "virtio-net-device,netdev=n"]);
        command
    }
}

/// Mbit/s of one run of five seconds, as the receiver saw it.
fn iperf(port: u16, reverse: bool) -> Result<f64, Error> {
    let mut command = Command::new(IPERF);
    command.args(["-c", "127.0.0.1", "-p", &port.to_string(), "-t", "5", "-O", "1", "-J"]);
    if reverse {
        command.arg("-R");
    }
    let text = run(&mut command)?;
    let report: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let why = || Error::Content { path: IPERF.into(), why: text.clone() };
    report["end"]["sum_received"]["bits_per_second"].as_f64().map(|bits| bits / 1e6).ok_or_else(why)
}

/// Waits until the guest's server answers a tiny run.
fn await_server(port: u16) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let port = port.to_string();
        match run(Command::new(IPERF).args(["-c", "127.0.0.1", "-p", &port, "-n", "1K"])) {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(500)),
            Ok(_) => return Ok(()),
        }
    }
}

fn free_port() -> Result<u16, Error> {
    let bound =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    Ok(bound.map_err(Error::file("a free port"))?.port())
}

fn start(command: &mut Command) -> Result<Running, Error> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    command.spawn().map(Running).map_err(Error::file(command.get_program()))
}

/// Runs a command to its end; what it wrote, if it ended well.
fn run(command: &mut Command) -> Result<String, Error> {
    let path = PathBuf::from(command.get_program());
    let output = command.stdin(Stdio::null()).output().map_err(Error::file(&path))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(text) } else { Err(Error::Content { path, why: text }) }
}

/// A table for people.
pub fn markdown(speeds: &[Speed]) -> String {
    let mut table =
        "| iperf3 through | host to guest, Mbit/s | guest to host, Mbit/s |\n|---|---|---|\n"
            .to_owned();
    for speed in speeds {
        let (there, back) = (median(speed.to_guest.clone()), median(speed.to_host.clone()));
        table += &format!("| {} | {there:.0} | {back:.0} |\n", speed.network);
    }
    table
}

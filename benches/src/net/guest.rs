//! iperf3 in a guest, beside QEMU's microvm with passt and with its own slirp: the same kernel, the same root image,
//! the same server on this host, one after the other in one run. Figures are what the receiving end says. It wants a
//! network namespace of its own (`unshare --net`), in which it gives the loopback device an address that looks public.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::Error;
use crate::peer::Qemu;
use crate::process;
use crate::report::Summary;
use crate::stage;

/// RAM of the guests, in MiB.
const MEMORY_MIB: u64 = 512;
/// Seconds of one transfer.
const SECONDS: u32 = 2;
/// Where the server listens: an address of this host's that is not its loopback's, which no guest reaches.
const SERVER: &str = "198.51.100.1";
/// What runs in the guest.
const CLIENT: &str = "iperf3";

/// What each guest runs in `/mnt`, with the number of runs. Each line says which way, and what iperf3 says.
const SCRIPT: &str = r#"
cd /mnt
export LD_LIBRARY_PATH=/mnt
for run in $(seq 0 "$1"); do
    echo "up $(./iperf3 -c SERVER -t SECONDS -f m | grep receiver)"
    echo "down $(./iperf3 -c SERVER -t SECONDS -f m -R | grep receiver)"
done
"#;

/// Gives QEMU's guests the address that both user-mode networks expect: the root image has no program for it.
const ADDRESS: &str = r#"
import fcntl, socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def address(text): return struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))
def interface(number, value): fcntl.ioctl(s, number, struct.pack("16s24s", b"eth0", value))
interface(0x8922, struct.pack("i", int(sys.argv[1])))
interface(0x8916, address("10.0.2.15"))
interface(0x891c, address("255.255.255.0"))
interface(0x8914, struct.pack("H", 0x41))
route = struct.pack("Q", 0) + address("0.0.0.0") + address("10.0.2.2") + address("0.0.0.0")
fcntl.ioctl(s, 0x890b, route + struct.pack("HhQQhPQQH6x", 3, 0, 0, 0, 0, 0, 0, 0, 0))
"#;

/// What is measured and with what.
#[derive(Debug)]
pub struct Guest {
    /// The `cabana` program.
    pub cabana: PathBuf,
    /// QEMU's program.
    pub qemu: PathBuf,
    /// The kernel that all boot.
    pub kernel: PathBuf,
    /// The root image that all have.
    pub image: PathBuf,
    /// A folder for files, on a file system in memory.
    pub work: PathBuf,
    /// Move into a root in memory first; see [`stage::enter`].
    pub stage: bool,
    /// Runs of each way in each guest, after one that is not counted.
    pub runs: usize,
}

/// Mbit/s each way.
#[derive(Clone, Debug)]
pub struct Rates {
    /// Guest to host.
    up: Summary,
    /// Host to guest.
    down: Summary,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Figures {
    cabana: Rates,
    passt: Rates,
    slirp: Rates,
}

impl Guest {
    /// Measures, with `progress` told what comes.
    pub fn measure(&self, progress: &dyn Fn(&str)) -> Result<Figures, Error> {
        let folder = self.work.join("folder");
        fs::create_dir(&folder).map_err(Error::file(&folder))?;
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).map_err(Error::file(&path))
        };
        let script = SCRIPT.replace("SERVER", SERVER).replace("SECONDS", &SECONDS.to_string());
        write("script", &script)?;
        write("address", ADDRESS)?;
        let client = which(CLIENT)?;
        stage::copy_with_libraries(&client, &folder)?;
        let disk = self.work.join("disk.erofs");
        process::run(Command::new("mkfs.erofs").arg("--quiet").arg(&disk).arg(&folder), 0)?;
        let to = format!("{SERVER}/32");
        process::run(Command::new("ip").args(["link", "set", "lo", "up"]), 0)?;
        process::run(Command::new("ip").args(["addr", "replace", &to, "dev", "lo"]), 0)?;
        // It leaves its root, which it cannot from where everything else goes. It takes the loopback device for a
        // network if it is told a hardware address.
        let socket = self.work.join("passt");
        let mut passt = Command::new("passt");
        passt.args(["--foreground", "--quiet", "--one-off", "-4", "--runas", "0", "-i", "lo"]);
        passt.args(["-M", "02:00:00:00:00:01", "-a", "10.0.2.15", "-n", "24", "-g", "10.0.2.2"]);
        passt.args(["-m", "65520", "-s"]).arg(&socket).stderr(Stdio::null());
        let passt = passt.spawn().map_err(Error::file(Path::new("passt")));
        let mut passt = Ended(passt?);
        while !socket.exists() {
            if let Ok(Some(status)) = passt.0.try_wait() {
                let why = format!("it has ended: {status}");
                return Err(Error::Content { path: "passt".into(), why });
            }
            sleep(Duration::from_millis(10));
        }
        if self.stage {
            progress("copying everything into memory");
            let programs: [&Path; 4] = [&self.cabana, &self.qemu, &client, Path::new("/bin/sh")];
            stage::enter(&self.work.join("root"), &programs)?;
        }
        let mut server = Command::new(&client);
        server.args(["-s", "-B", SERVER]).stdout(Stdio::null());
        let _server = Ended(server.spawn().map_err(Error::file(&client))?);
        sleep(Duration::from_millis(200));

        progress("Cabana");
        let cabana = self.cabana(&folder)?;
        progress("QEMU and passt");
        let netdev =
            format!("stream,id=net,server=off,addr.type=unix,addr.path={}", socket.display());
        let with_passt = self.microvm(&disk, &netdev, 65520)?;
        progress("QEMU and slirp");
        let slirp = self.microvm(&disk, "user,id=net", 1500)?;
        Ok(Figures { cabana, passt: with_passt, slirp })
    }

    fn cabana(&self, folder: &Path) -> Result<Rates, Error> {
        let mut command = Command::new(&self.cabana);
        command.args(["run", "--memory", &format!("{MEMORY_MIB}M"), "--allow"]);
        command.arg(format!("any://{SERVER}")).arg("--share");
        command.arg(format!("{}:/mnt:ro", folder.display()));
        command.args(["--", "sh", "/mnt/script", &self.runs.to_string()]);
        let ended = process::run(&mut command, 0)?;
        rates(&ended.stdout)
    }

    fn microvm(&self, disk: &Path, netdev: &str, mtu: u32) -> Result<Rates, Error> {
        let said = self.work.join("said");
        let init = format!(
            "mount -t proc proc /proc; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp; \
             mount -t erofs -o ro /dev/vdb /mnt; exec >/dev/hvc0 2>&1; \
             python3 /mnt/address {mtu}; sh /mnt/script {}",
            self.runs
        );
        let qemu = Qemu { program: self.qemu.clone(), memory_mib: MEMORY_MIB };
        let mut command = qemu.of_image(&self.kernel, &self.image, &init);
        command
            .arg("-drive")
            .arg(format!("file={},format=raw,if=none,id=mnt,readonly=on", disk.display()))
            .args(["-device", "virtio-blk-device,drive=mnt"])
            .args(["-netdev", netdev, "-device", "virtio-net-device,netdev=net"])
            .args(["-chardev", &format!("file,id=said,path={}", said.display())])
            .args(["-device", "virtio-serial-device", "-device", "virtconsole,chardev=said"]);
        process::run(&mut command, 0)?;
        rates(&fs::read_to_string(&said).map_err(Error::file(&said))?)
    }
}

/// A process that ends with this.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program of the path's.
fn which(name: &str) -> Result<PathBuf, Error> {
    let found = process::run(Command::new("sh").args(["-c", &format!("command -v {name}")]), 0)?;
    Ok(found.stdout.trim().into())
}

/// What the script has said, without the first run.
fn rates(said: &str) -> Result<Rates, Error> {
    let of = |way: &str| {
        let lines = said.lines().filter_map(|line| line.strip_prefix(way));
        let rates: Vec<f64> = lines.filter_map(rate).skip(1).collect();
        Summary::of(&rates).ok_or_else(|| Error::Content {
            path: CLIENT.into(),
            why: format!("no rate in {said:?}"),
        })
    };
    Ok(Rates { up: of("up ")?, down: of("down ")? })
}

/// The number before `Mbits/sec`.
fn rate(line: &str) -> Option<f64> {
    line.split_once("Mbits/sec")?.0.split_whitespace().last()?.parse().ok()
}

impl Figures {
    /// A table for people.
    pub fn markdown(&self) -> String {
        let mut table = "| iperf3 in a guest, Mbit/s | Cabana | QEMU and passt | times | target | QEMU and slirp | times | target |\n\
                         |---|---|---|---|---|---|---|---|\n"
            .to_owned();
        let of = |rate: &Summary| format!("{:.0} / {:.0} / {:.0}", rate.min, rate.median, rate.max);
        for (way, pick) in [
            ("guest to host", (|rates: &Rates| &rates.up) as fn(&Rates) -> &Summary),
            ("host to guest", |rates: &Rates| &rates.down),
        ] {
            let [cabana, passt, slirp] = [&self.cabana, &self.passt, &self.slirp].map(pick);
            table += &format!("| {way} | {} |", of(cabana));
            for (other, target) in [(passt, 1.0), (slirp, 2.0)] {
                let times = cabana.median / other.median;
                let mark = if times >= target { '✓' } else { '✗' };
                table += &format!(" {} | {times:.2} | ≥ {target} {mark} |", of(other));
            }
            table.push('\n');
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_what_the_receiver_says_after_the_first_run() {
        let line = |way, rate: u32| {
            format!(
                "{way} [  5]   0.00-0.50   sec   128 MBytes  {rate} Mbits/sec                  receiver\n"
            )
        };
        let said = [("up", 1), ("down", 2), ("up", 300), ("down", 4000)].map(|(a, b)| line(a, b));
        let rates = rates(&said.concat()).unwrap();
        assert!(
            rates.up.median > 299.0 && rates.up.median < 301.0 && rates.down.median > 3999.0,
            "{rates:?}"
        );
        assert!(super::rates("up \ndown \n").is_err());
        let table =
            Figures { cabana: rates.clone(), passt: rates.clone(), slirp: rates }.markdown();
        assert!(
            table.contains("| 1.00 | ≥ 1 ✓ |") && table.contains("| 1.00 | ≥ 2 ✗ |"),
            "{table}"
        );
    }
}

//! The measurements themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::Error;
use crate::guests::Guests;
use crate::kvm_trace::KvmTrace;
use crate::memory::{Footprint, footprint};
use crate::peer::{QEMU_EXIT, Qemu};
use crate::process::{self, Ended};
use crate::report::{ExitTable, Report, Row, Summary, Timeline};
use crate::stage;
use crate::trace::{TraceExits, TracedStart};

/// What both VMMs tell the kernel that boots the trivial init: what `cabana run` says, without a
/// console, since there is none.
const COMMAND_LINE: &str = "quiet panic=-1 reboot=t tsc=reliable no_timer_check percpu_alloc=page";

/// RAM of a guest with a trivial init, and of one of `cabana run` (its default).
const SMALL_MIB: u64 = 128;
const RUN_MIB: u64 = 512;

/// How long a guest is left alone between two looks, and how often it is looked at until it counts as
/// idle. Several looks, because the instruction clock runs away while files come from the host.
const SETTLE: Duration = Duration::from_secs(5);
const LOOKS: usize = 10;

/// Runs that are made and thrown away: in the first every file comes into the page cache, and hashes of
/// a store that was moved are found.
const COLD_RUNS: usize = 2;

/// Targets, each for the median.
const SAME_KERNEL_MS: f64 = 25.0;
const READY_MS: f64 = 40.0;
const WHOLE_MS: f64 = 55.0;
const READY_USER_EXITS: f64 = 150.0;
const READY_EXITS: f64 = 2100.0;
const START_UP_MS: f64 = 3.0;
const MEMORY_MIB: f64 = 3.0;

/// What is measured and with what.
#[derive(Debug)]
pub struct Boot {
    /// The `cabana` program.
    pub cabana: PathBuf,
    /// The `cabana-bench-bare` program.
    pub bare: PathBuf,
    /// QEMU's program.
    pub qemu: PathBuf,
    /// The guest kernel that both boot.
    pub kernel: PathBuf,
    /// A folder for files, on a file system in memory.
    pub work: PathBuf,
    /// Move into a root in memory first; see [`stage::enter`].
    pub stage: bool,
    /// Runs of each kind, besides the cold one.
    pub runs: usize,
    /// The clock's name in the report.
    pub clock: String,
}

impl Boot {
    /// Start-up and memory beside QEMU, with `progress` told what comes.
    pub fn measure(&self, progress: &dyn Fn(&str)) -> Result<Report, Error> {
        if self.stage {
            progress("copying everything into memory");
            stage::enter(&self.work.join("root"), &[&self.cabana, &self.bare, &self.qemu])?;
        }
        let guests = Guests::make(&self.work)?;
        let bench = Bench { boot: self, guests, trace: KvmTrace::open() };
        let mut report = Report::default();
        progress("the same kernel with a trivial init");
        report.rows.extend(bench.same_kernel()?);
        progress("cabana run with all of its devices");
        let (rows, timeline) = bench.all_devices()?;
        report.rows.extend(rows);
        report.timelines.extend(timeline);
        progress("memory of idle machines");
        report.rows.extend(bench.idle_memory()?);
        if let Some(trace) = &bench.trace {
            progress("exits by kind");
            report.exits = bench.exits(trace)?;
        }
        report.environment = vec![
            ("host kernel of both VMMs".to_owned(), host_kernel()),
            ("guest kernel".to_owned(), guest_kernel(&self.kernel)?),
            ("QEMU".to_owned(), bench.qemu_version()?),
        ];
        Ok(report)
    }
}

/// Everything in its place.
struct Bench<'a> {
    boot: &'a Boot,
    guests: Guests,
    trace: Option<KvmTrace>,
}

impl Bench<'_> {
    /// One vCPU, 128 MiB, no devices, an init that writes to the exit port at once.
    fn same_kernel(&self) -> Result<Vec<Row>, Error> {
        let cabana = self.starts(|| self.bare(&self.guests.ending), 0)?;
        let qemu = self.starts(|| self.microvm(&self.guests.ending), QEMU_EXIT)?;
        let init = |starts: &[(Ended, Option<Duration>)]| {
            let moments = starts.iter().filter_map(|(ended, init)| Some(ended.ms_to((*init)?)));
            Summary::of(&moments.collect::<Vec<_>>())
        };
        let end = |starts: &[(Ended, Option<Duration>)]| {
            Summary::of(&starts.iter().map(|(ended, _)| ended.ms()).collect::<Vec<_>>())
        };
        let entered = cabana.iter().filter_map(|(ended, _)| first_instruction(ended));
        let entered = Summary::of(&entered.collect::<Vec<_>>());
        let mut rows = vec![
            self.row("same kernel, trivial init, no devices: process start to init", "ms")
                .key("same-kernel-init")
                .values(init(&cabana), init(&qemu)),
            self.row("– to the process's end", "ms").values(end(&cabana), end(&qemu)),
            self.row("– to the guest's first instruction", "ms").values(entered, None),
        ];
        // Without tracepoints only the process's end is seen, which is later.
        let judged = usize::from(rows[0].cabana.is_none());
        rows[judged].target = Some(SAME_KERNEL_MS);
        rows.retain(|row| row.cabana.is_some());
        Ok(rows)
    }

    /// `cabana run`, traced, and as a user runs it.
    fn all_devices(&self) -> Result<(Vec<Row>, Option<Timeline>), Error> {
        let file = self.boot.work.join("trace.json");
        let starts = self.warm(|| {
            TracedStart::run(self.run_verb().arg("--share").arg(&self.boot.work), &file)
        })?;
        let of = |value: &dyn Fn(&TracedStart) -> Option<f64>| {
            Summary::of(&starts.iter().filter_map(value).collect::<Vec<_>>())
        };
        let exits = |value: fn(&TraceExits) -> Option<u64>| {
            of(&|start| Some(value(start.trace.exits.as_ref()?)? as f64))
        };
        let whole = self.warm(|| process::run(self.run_verb().args(["--", "true"]), 0))?;
        let whole = Summary::of(&whole.iter().map(Ended::ms).collect::<Vec<_>>());
        let rows = vec![
            self.row("cabana run, all devices, a share: process start to ready", "ms")
                .key("run-ready")
                .values(of(&|start| Some(start.ready_ms)), None)
                .target(READY_MS),
            self.row("– to the command's first output", "ms")
                .key("run-first-output")
                .values(of(&|start| Some(start.first_output_ms)), None),
            self.row("– exits to user space until ready", "exits")
                .key("run-user-exits")
                .values(exits(|exits| Some(exits.to_user_space)), None)
                .target(READY_USER_EXITS),
            self.row("– all exits until ready", "exits")
                .key("run-exits")
                .values(exits(|exits| exits.total), None)
                .target(READY_EXITS),
            self.row("cabana run -- true: process start to end", "ms")
                .key("run-true")
                .values(whole, None)
                .target(WHOLE_MS),
        ];
        let what = "cabana run, cold, all devices, a share";
        Ok((rows, TracedStart::timeline(&starts, what, &self.boot.clock)))
    }

    /// PSS without guest RAM, once the guest sleeps.
    fn idle_memory(&self) -> Result<Vec<Row>, Error> {
        let mut command = self.run_verb();
        let mut machine =
            process::start(command.args(["--", "sh", "-c", "echo up; exec sleep 3600"]))?;
        machine.next_byte()?;
        let full = settled(&machine, RUN_MIB)?;
        drop(machine);
        let bare = settled(&process::start(&mut self.bare(&self.guests.idle))?, SMALL_MIB)?;
        let qemu = settled(&process::start(&mut self.microvm(&self.guests.idle))?, SMALL_MIB)?;
        let one = |value: f64| Summary::of(&[value]);
        let mut rows = vec![
            self.row("idle cabana run, all devices, beside an empty microvm: VMM's own PSS", "MiB")
                .key("run-vmm-memory")
                .values(one(full.vmm), one(qemu.vmm))
                .target(MEMORY_MIB),
            self.row("– guest RAM touched (of 512 MiB, and of 128 MiB)", "MiB")
                .key("run-guest-memory")
                .values(one(full.guest_ram), one(qemu.guest_ram)),
            self.row("– root image mapped from the page cache", "MiB")
                .values(one(full.image), None),
            self.row("idle, no devices, 128 MiB: VMM's own PSS", "MiB")
                .key("bare-vmm-memory")
                .values(one(bare.vmm), one(qemu.vmm)),
            self.row("– guest RAM touched", "MiB").values(one(bare.guest_ram), one(qemu.guest_ram)),
        ];
        // No time is in these.
        for row in &mut rows {
            "–".clone_into(&mut row.clock);
        }
        Ok(rows)
    }

    /// One warm run of each, with every exit counted.
    fn exits(&self, trace: &KvmTrace) -> Result<Vec<ExitTable>, Error> {
        let count = |of: &str, mut command: Command, code| {
            let (_, exits) = trace.exits(|| process::run(&mut command, code))?;
            Ok(ExitTable { of: of.to_owned(), by_reason: exits.by_reason, to_user: exits.to_user })
        };
        let mut whole = self.run_verb();
        whole.args(["--", "true"]);
        Ok(vec![
            count("Cabana, trivial init, to its end", self.bare(&self.guests.ending), 0)?,
            count("QEMU, trivial init, to its end", self.microvm(&self.guests.ending), QEMU_EXIT)?,
            count("cabana run -- true, to its end", whole, 0)?,
        ])
    }

    /// Warm starts of a guest that ends itself, each with the moment of its end's asking.
    fn starts(
        &self,
        command: impl Fn() -> Command,
        code: i32,
    ) -> Result<Vec<(Ended, Option<Duration>)>, Error> {
        self.warm(|| {
            let run = || process::run(&mut command(), code);
            match &self.trace {
                Some(trace) => trace.exit_port(run),
                None => Ok((run()?, None)),
            }
        })
    }

    /// Several runs, the cold ones left out.
    fn warm<T>(&self, run: impl Fn() -> Result<T, Error>) -> Result<Vec<T>, Error> {
        for _ in 0..COLD_RUNS {
            run()?;
        }
        (0..self.boot.runs).map(|_| run()).collect()
    }

    fn run_verb(&self) -> Command {
        let mut command = Command::new(&self.boot.cabana);
        command.args(["run", "--cpus", "1", "--memory", &format!("{RUN_MIB}M")]);
        command
    }

    fn bare(&self, initrd: &Path) -> Command {
        let mut command = Command::new(&self.boot.bare);
        command.arg(&self.boot.kernel).arg(initrd).args([&SMALL_MIB.to_string(), COMMAND_LINE]);
        command
    }

    fn microvm(&self, initrd: &Path) -> Command {
        let qemu = Qemu { program: self.boot.qemu.clone(), memory_mib: SMALL_MIB };
        qemu.microvm(&self.boot.kernel, initrd, COMMAND_LINE)
    }

    fn qemu_version(&self) -> Result<String, Error> {
        let said = process::run(Command::new(&self.boot.qemu).arg("--version"), 0)?.stdout;
        let version = said.lines().next().unwrap_or_default();
        Ok(version.trim_start_matches("QEMU emulator version ").to_owned())
    }

    fn row(&self, figure: &str, unit: &str) -> Row {
        Row::new(figure, unit, &self.boot.clock)
    }
}

/// VMM start-up alone: `cabana boot` with a kernel whose first instructions say a byte, which is seen
/// from outside. Bare metal runs on any `/dev/kvm`.
pub fn start_up(cabana: &Path, work: &Path, runs: usize) -> Result<Report, Error> {
    let guests = Guests::make(work)?;
    let command = || {
        let mut command = Command::new(cabana);
        command.args(["boot", "--memory", "128M", "--kernel"]).arg(&guests.kernel);
        command
    };
    let mut starts = Vec::with_capacity(runs);
    for run in 0..COLD_RUNS + runs {
        let ended = process::run(&mut command(), 0)?;
        if ended.stdout != "!" {
            let what = format!("said {:?} in place of the guest's byte", ended.stdout);
            let program = cabana.display().to_string();
            return Err(Error::Behaviour { program, what, said: ended.stderr });
        }
        if run >= COLD_RUNS {
            starts.push(ended);
        }
    }
    let first = starts.iter().map(|ended| ended.ms_to(ended.first_output.unwrap_or(ended.end)));
    let first = Summary::of(&first.collect::<Vec<_>>());
    let end = Summary::of(&starts.iter().map(Ended::ms).collect::<Vec<_>>());
    let clock = "ordinary, on the host";
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').take(3).collect::<Vec<_>>().join(" ");
    Ok(Report {
        environment: vec![
            ("this machine's kernel".to_owned(), host_kernel()),
            ("its load then".to_owned(), load),
        ],
        rows: vec![
            Row::new(
                "cabana boot, bare-metal kernel: process start to its first byte",
                "ms",
                clock,
            )
            .values(first, None)
            .target(START_UP_MS),
            Row::new("– to the process's end", "ms", clock).values(end, None),
        ],
        ..Report::default()
    })
}

/// When the machine of `cabana-bench-bare` entered its guest, by its own word.
fn first_instruction(ended: &Ended) -> Option<f64> {
    let marks = ended.stdout.lines().filter_map(|line| line.split_once(' '));
    let (nanoseconds, _) = marks.clone().find(|(_, name)| *name == "first guest instruction")?;
    Some(ended.ms_to(Duration::from_nanos(nanoseconds.parse().ok()?)))
}

/// The footprint of a machine once two looks see the same.
fn settled(machine: &process::Running, ram_mib: u64) -> Result<Footprint, Error> {
    let mut before = None;
    let look = || {
        thread::sleep(SETTLE);
        footprint(machine.id(), ram_mib << 20)
    };
    for _ in 1..LOOKS {
        let now = look().ok();
        if let (Some(now), true) = (now, now == before) {
            return Ok(now);
        }
        before = now;
    }
    look()
}

fn host_kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The version that a kernel file says of itself.
fn guest_kernel(kernel: &Path) -> Result<String, Error> {
    const BANNER: &[u8] = b"Linux version ";
    let bytes = fs::read(kernel).map_err(Error::file(kernel))?;
    let at = bytes.windows(BANNER.len()).position(|window| window == BANNER);
    let version = at.map(|at| &bytes[at + BANNER.len()..]).unwrap_or_default();
    let word = version.split(|byte| *byte == b' ').next().unwrap_or_default();
    Ok(String::from_utf8_lossy(&word[..word.len().min(64)]).into_owned())
}

//! `cargo xtask bench`: measures Cabana beside QEMU, and prints a table.

mod lab;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use cabana_store::{Kind, Store};
use clap::ValueEnum;

use cabana_kernel::Architecture;

use crate::artifacts::musl;
use crate::failure::{Failure, output, succeed};
use crate::progress::say;
use crate::{cargo, kvm, setup, wheel};

/// What `target/bench` may hold for the page, and its titles there.
const PARTS: [(&str, &str); 9] = [
    ("Start-up, exits and memory", "boot.json"),
    ("A command, beside other products", "products.md"),
    ("Snapshots", "restore.json"),
    ("Memory of machines", "memory.json"),
    ("Commands and sessions", "exec.json"),
    ("Streams", "stream.json"),
    ("Network stack", "net.md"),
    ("Shared folders", "fs.md"),
    ("Journals of shared folders", "journal.md"),
];

/// Other products for sandboxes, from Python's package index.
const PRODUCTS: [(&str, &str); 2] =
    [("microsandbox", "microsandbox==0.7.11"), ("boxlite", "boxlite==0.10.8")];

/// The most runs of what takes a minute each in the lab.
const GUEST_RUNS: usize = 3;

/// What can be measured.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Bench {
    /// Start-up, exits and memory.
    Boot,
    /// A command in a machine of its own, beside microsandbox and boxlite.
    Products,
    /// Starts from a snapshot, forks and their memory.
    Restore,
    /// What machines take of the host's memory, and how soon they give it back.
    Memory,
    /// Commands and sessions in a guest, beside its own processes.
    Exec,
    /// A stream between guest and host, beside QEMU's virtio-serial.
    Stream,
    /// The network stack alone, beside plain loopback TCP, and iperf3 in a guest, beside passt and slirp.
    Net,
    /// The file server's device, beside bare system calls, and a folder in a guest, beside virtiofsd.
    Fs,
    /// What a share's journal costs.
    Journal,
}

/// The lab's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    /// For what programs do.
    Instructions,
    /// For what they wait for: while all are idle the other clock jumps from timer to timer.
    Ordinary,
}

/// Sets up, measures, prints the table, and leaves it in `target/bench`, with a page for a browser of all
/// that has been measured. With `gate` it fails if a figure is more than `benches/budget.toml` allows.
pub(crate) fn bench(bench: Option<Bench>, runs: usize, gate: bool) -> Result<ExitCode, Failure> {
    if gate && !matches!(bench, Some(Bench::Boot)) {
        let why = "only `bench boot` has a budget; leave --gate out";
        return Err(Failure::Sentence(why.to_owned()));
    }
    let benches = bench.as_ref().map_or(Bench::value_variants(), std::slice::from_ref);
    for bench in benches {
        measure(*bench, runs, gate)?;
    }
    page()?;
    Ok(ExitCode::SUCCESS)
}

/// Measures a commit and then what stands here, and prints what changed. The commit's checkout stays in
/// `target/before`, so that the next comparison need not build everything again.
pub(crate) fn compare(
    bench: Option<Bench>,
    runs: usize,
    commit: &str,
) -> Result<ExitCode, Failure> {
    let name = match bench {
        Some(Bench::Boot) => "boot",
        Some(Bench::Restore) => "restore",
        Some(Bench::Memory) => "memory",
        _ => {
            let why = "--compare is for the benches `boot`, `restore` and `memory`; name one";
            return Err(Failure::Sentence(why.to_owned()));
        }
    };
    let before = cargo::target_folder().join("before");
    let git = |folder: &Path| {
        let mut git = Command::new("git");
        git.arg("-C").arg(folder);
        git
    };
    say(&format!("bench: measuring {commit} first"));
    if before.exists() {
        succeed(git(&before).args(["checkout", "--quiet", "--detach", commit]))?;
    } else {
        // Forced, since git may remember one that went with `target`.
        let mut add = git(cargo::workspace());
        succeed(add.args(["worktree", "add", "--force", "--detach"]).arg(&before).arg(commit))?;
    }
    let runs_text = runs.to_string();
    let mut measure = Command::new("cargo");
    measure.current_dir(&before).env_remove("CARGO_TARGET_DIR");
    succeed(measure.args(["xtask", "bench", name, "--runs", &runs_text]))?;
    say("bench: measuring what stands here");
    self::bench(bench, runs, false)?;
    let report = format!("{name}.json");
    let (then, now) = (before.join("target/bench").join(&report), folder()?.join(&report));
    succeed(Command::new(program("cabana-bench")?).arg("compare").arg(then).arg(now))?;
    Ok(ExitCode::SUCCESS)
}

fn measure(bench: Bench, runs: usize, gate: bool) -> Result<(), Failure> {
    match bench {
        Bench::Boot => boot(runs, gate),
        Bench::Products => products(runs),
        Bench::Restore => in_guests("restore", runs, Clock::Instructions),
        Bench::Memory => in_guests("memory", runs, Clock::Ordinary),
        Bench::Exec => exec(runs),
        Bench::Stream => stream(runs),
        Bench::Net => net(runs),
        Bench::Fs => shared_folders(runs),
        Bench::Journal => journal(runs),
    }
}

/// In one guest: here where KVM runs Linux, else on the instruction clock.
fn exec(runs: usize) -> Result<(), Failure> {
    setup::cabana()?;
    let bench = program("cabana-bench")?;
    let runs = runs.to_string();
    let words = vec![bench.into(), "exec".into(), "--runs".into(), runs.into()];
    report("exec", &where_linux_runs(words, Clock::Instructions, &["--clock", "instructions"])?)
}

/// In two guests, one after the other.
fn stream(runs: usize) -> Result<(), Failure> {
    setup::cabana()?;
    let bench = program("cabana-bench")?;
    let name = "cabana-bench-stream";
    let guest =
        cargo::build_binary(name, name, &["--release", "--target", &musl(Architecture::HOST)])?;
    let store = Store::open()?;
    let kernel = store.find(Kind::Kernel, "default")?.file("vmlinux")?;
    let image = store.find(Kind::Image, "default")?.file("root.erofs")?;
    let mut words: Vec<OsString> = vec![bench.into(), "stream".into()];
    for (option, path) in [("--program", &guest), ("--kernel", &kernel), ("--image", &image)] {
        words.extend([option.into(), path.into()]);
    }
    words.extend(["--runs".into(), runs.to_string().into()]);
    report("stream", &where_linux_runs(words, Clock::Instructions, &["--clock", "instructions"])?)
}

/// Leaves a table beside the others, with the commit that it is of.
fn leave(name: &str, table: &str) -> Result<(), Failure> {
    let text = format!("{table}\nCabana: {}\n", commit());
    let path = keep(&folder()?.join(format!("{name}.md")), text.as_bytes())?;
    say(&format!("bench: written to {}", path.display()));
    Ok(())
}

/// Prints the table of one program's figures, and leaves both beside the others.
fn report(of: &str, figures: &[u8]) -> Result<(), Failure> {
    let folder = folder()?;
    let figures = keep(&folder.join(format!("{of}-guests.json")), figures)?;
    let mut report = Command::new(program("cabana-bench")?);
    report.args(["report", "--of", of, "--to"]).arg(&folder).arg(figures);
    succeed(report.args(["--fact", &format!("Cabana={}", commit())]))?;
    say(&format!("bench: written to {}", folder.display()));
    Ok(())
}

/// The stack alone on this machine, then iperf3 in a guest, beside QEMU's.
fn net(runs: usize) -> Result<(), Failure> {
    let cabana = setup::cabana()?;
    let bench = program("cabana-bench-net")?;
    let folder = folder()?;
    let mut stack = Command::new(&bench);
    stack.args(["stack", "--runs"]).arg(runs.to_string()).arg("--to").arg(folder.join("net.json"));
    let mut table = output(&mut stack)?;
    println!("{table}");
    let store = Store::open()?;
    let kernel = store.find(Kind::Kernel, "default")?.file("vmlinux")?;
    let image = store.find(Kind::Image, "default")?.file(cabana_builder::ROOT)?;
    // A network of its own, so that this host's is left alone.
    let mut measure: Vec<OsString> = vec!["/usr/bin/unshare".into(), "--net".into()];
    measure.extend([program("cabana-bench")?.into(), "net-guest".into()]);
    for (option, path) in [("--cabana", &cabana), ("--kernel", &kernel), ("--image", &image)] {
        measure.extend([option.into(), path.into()]);
    }
    measure.extend(["--runs".into(), runs.min(GUEST_RUNS).to_string().into()]);
    let in_guest = where_linux_runs(measure, Clock::Instructions, &["--stage"])?;
    let in_guest = String::from_utf8_lossy(&in_guest).into_owned();
    print!("{in_guest}");
    table += &format!("\n\n{in_guest}");
    leave("net", &table)
}

/// The device alone, then a folder in a guest, beside QEMU's.
fn shared_folders(runs: usize) -> Result<(), Failure> {
    let cabana = setup::cabana()?;
    let bench = program("cabana-bench")?;
    let store = Store::open()?;
    let kernel = store.find(Kind::Kernel, "default")?.file("vmlinux")?;
    let image = store.find(Kind::Image, "default")?.file(cabana_builder::ROOT)?;
    let times = runs.to_string();
    let mut table = output(Command::new(files()?).args(["device", "--runs", &times]))?;
    print!("{table}");
    let mut measure: Vec<OsString> = vec![bench.into(), "fs-guest".into()];
    for (option, path) in [("--cabana", &cabana), ("--kernel", &kernel), ("--image", &image)] {
        measure.extend([option.into(), path.into()]);
    }
    measure.extend(["--runs".into(), runs.min(GUEST_RUNS).to_string().into()]);
    // With many more files the lab gets stuck on this clock (docs/measurements.md).
    let in_guest = where_linux_runs(measure, Clock::Instructions, &["--stage", "--hundreds", "2"])?;
    let in_guest = String::from_utf8_lossy(&in_guest).into_owned();
    print!("\n{in_guest}");
    table += &format!("\n{in_guest}");
    leave("fs", &table)
}

/// On the ordinary clock: they wait for things, with limits of time.
fn products(runs: usize) -> Result<(), Failure> {
    let cabana = setup::cabana()?;
    let mut measure: Vec<OsString> = vec![program("cabana-bench")?.into(), "products".into()];
    measure.extend(["--cabana".into(), cabana.into()]);
    for (name, wheel) in PRODUCTS {
        let folder = cargo::target_folder().join("tools").join(name);
        if let Err(failure) = wheel::install(wheel, &folder) {
            say(&format!("bench: SKIPPED, since {name} cannot be had: {failure}"));
            return Ok(());
        }
        measure.extend([format!("--{name}").into(), folder.into()]);
    }
    measure.extend(["--runs".into(), runs.min(GUEST_RUNS).to_string().into()]);
    let table = where_linux_runs(measure, Clock::Ordinary, &[])?;
    let table = String::from_utf8_lossy(&table).into_owned();
    print!("{table}");
    leave("products", &table)
}

/// Needs no guest: what a share's journal costs.
fn journal(runs: usize) -> Result<(), Failure> {
    let table = output(Command::new(files()?).args(["journal", "--runs", &runs.to_string()]))?;
    let path = keep(&folder()?.join("journal.md"), table.as_bytes())?;
    print!("{table}");
    say(&format!("bench: written to {}", path.display()));
    Ok(())
}

fn boot(runs: usize, gate: bool) -> Result<(), Failure> {
    let cabana = setup::cabana()?;
    let (bench, bare) = (program("cabana-bench")?, program("cabana-bench-bare")?);
    let kernel = Store::open()?.find(Kind::Kernel, "default")?.file("vmlinux")?;
    let folder = folder()?;

    let mut measure: Vec<OsString> = vec![bench.clone().into(), "boot".into()];
    for (option, path) in [("--cabana", &cabana), ("--bare", &bare), ("--kernel", &kernel)] {
        measure.extend([option.into(), path.into()]);
    }
    measure.extend(["--runs".into(), runs.to_string().into()]);
    let figures =
        where_linux_runs(measure, Clock::Instructions, &["--stage", "--clock", "instructions"])?;
    let in_guest = keep(&folder.join("guests.json"), &figures)?;
    say("bench: the VMM's start-up alone, on this machine's own KVM");
    let figures = output(Command::new(&bench).arg("start-up").arg("--cabana").arg(&cabana))?;
    let start_up = keep(&folder.join("start-up.json"), figures.as_bytes())?;

    let mut report = Command::new(&bench);
    report.arg("report").arg("--to").arg(&folder).arg(in_guest).arg(start_up);
    report.args(["--fact", &format!("Cabana={}", commit())]);
    if gate {
        report.arg("--budget").arg(cargo::workspace().join("benches/budget.toml"));
    }
    succeed(&mut report)?;
    say(&format!("bench: written to {}", folder.display()));
    Ok(())
}

/// A part of `cabana-bench` that needs nothing but `cabana`.
fn in_guests(what: &str, runs: usize, clock: Clock) -> Result<(), Failure> {
    let cabana = setup::cabana()?;
    let bench = program("cabana-bench")?;
    let mut measure: Vec<OsString> = vec![bench.into(), what.into()];
    measure.extend(["--cabana".into(), cabana.into(), "--runs".into(), runs.to_string().into()]);
    let name = match clock {
        Clock::Instructions => "instructions",
        Clock::Ordinary => "ordinary, in the lab",
    };
    report(what, &where_linux_runs(measure, clock, &["--stage", "--clock", name])?)
}

/// Makes the page of what has been measured since `target/bench` was last removed.
fn page() -> Result<(), Failure> {
    let folder = folder()?;
    let parts = PARTS.iter().filter_map(|(title, file)| {
        let path = folder.join(file);
        path.exists().then(|| format!("{title}={}", path.display()))
    });
    let page = folder.join("index.html");
    let bench = program("cabana-bench")?;
    succeed(Command::new(bench).args(["page", "--to"]).arg(&page).args(parts))?;
    say(&format!("bench: a page of all that was measured: {}", page.display()));
    Ok(())
}

/// Where figures are left.
fn folder() -> Result<PathBuf, Failure> {
    let folder = cargo::target_folder().join("bench");
    fs::create_dir_all(&folder).map_err(Failure::file(&folder))?;
    Ok(folder)
}

/// What measures the file server with no guest.
fn files() -> Result<PathBuf, Failure> {
    let name = "cabana-bench-files";
    cargo::build_binary(name, name, &["--release"])
}

fn program(name: &str) -> Result<PathBuf, Failure> {
    cargo::build_binary("cabana-benches", name, &["--release"])
}

/// Runs a command here where KVM runs Linux, else in the lab, with these words more; its standard output.
fn where_linux_runs(
    mut argv: Vec<OsString>,
    clock: Clock,
    in_a_lab: &[&str],
) -> Result<Vec<u8>, Failure> {
    match kvm::runs_linux() {
        Ok(()) => Ok(output(Command::new(&argv[0]).args(&argv[1..]))?.into_bytes()),
        Err(why) => {
            say(&format!("bench: measuring in the lab, because {why}"));
            argv.extend(in_a_lab.iter().map(OsString::from));
            lab::run(&argv, clock)
        }
    }
}

fn keep(path: &Path, bytes: &[u8]) -> Result<PathBuf, Failure> {
    fs::write(path, bytes).map_err(Failure::file(path))?;
    Ok(path.to_owned())
}

/// The commit that is checked out, and whether there is more than it.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        output(Command::new("git").current_dir(cargo::workspace()).args(arguments))
    };
    match (git(&["log", "-1", "--format=%h"]), git(&["status", "--porcelain", "-uno"])) {
        (Ok(commit), Ok(changes)) if changes.is_empty() => commit.trim().to_owned(),
        (Ok(commit), _) => format!("{} with changes", commit.trim()),
        _ => "of unknown commit".to_owned(),
    }
}

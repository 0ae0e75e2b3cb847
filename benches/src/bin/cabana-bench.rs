//! Measures Cabana where this program stands: in the lab or on the machine itself. The figures go to
//! standard output as JSON; `report` makes a table of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cabana_benches::budget::Budget;
use cabana_benches::compare::compare;
use cabana_benches::fs::{self as shares, Guest};
use cabana_benches::machine_memory::MachineMemory;
use cabana_benches::measure::{self, Boot};
use cabana_benches::page::{Section, page};
use cabana_benches::plot::plots;
use cabana_benches::products::Products;
use cabana_benches::report::Report;
use cabana_benches::restore::Restore;
use cabana_benches::{Error, exec, net, stream};
use clap::{Parser, Subcommand};

/// `report`'s status when a figure is more than its budget.
const OVER_BUDGET: u8 = 3;

/// Measures Cabana, and makes tables of what was measured.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Start-up, exits and memory beside QEMU, where KVM runs Linux.
    Boot {
        /// The `cabana` program.
        #[arg(long, value_name = "FILE")]
        cabana: PathBuf,
        /// The `cabana-bench-bare` program.
        #[arg(long, value_name = "FILE")]
        bare: PathBuf,
        /// QEMU's program.
        #[arg(long, value_name = "FILE", default_value = "/usr/bin/qemu-system-x86_64")]
        qemu: PathBuf,
        /// The guest kernel that both boot.
        #[arg(long, value_name = "FILE")]
        kernel: PathBuf,
        /// How often.
        #[arg(long, value_name = "N", default_value_t = 7)]
        runs: usize,
        /// Move into a root in memory first: for the lab, where every file is a wait for the host.
        #[arg(long)]
        stage: bool,
        /// What the clock is called in the report.
        #[arg(long, value_name = "NAME", default_value = "ordinary")]
        clock: String,
    },
    /// Starts from a snapshot, forks and their memory, where KVM runs Linux.
    Restore {
        /// The `cabana` program.
        #[arg(long, value_name = "FILE")]
        cabana: PathBuf,
        /// How often.
        #[arg(long, value_name = "N", default_value_t = 7)]
        runs: usize,
        /// Move into a root in memory first: for the lab, where every file is a wait for the host.
        #[arg(long)]
        stage: bool,
        /// What the clock is called in the report.
        #[arg(long, value_name = "NAME", default_value = "ordinary")]
        clock: String,
    },
    /// What machines take of the host's memory and give back, where KVM runs Linux.
    Memory {
        /// The `cabana` program.
        #[arg(long, value_name = "FILE")]
        cabana: PathBuf,
        /// How often.
        #[arg(long, value_name = "N", default_value_t = 5)]
        runs: usize,
        /// Move into a root in memory first: for the lab, where every file is a wait for the host.
        #[arg(long)]
        stage: bool,
        /// What the clock is called in the report.
        #[arg(long, value_name = "NAME", default_value = "ordinary")]
        clock: String,
    },
    /// Commands and sessions in a guest, where KVM runs Linux.
    Exec {
        /// How often.
        #[arg(long, value_name = "N", default_value_t = 21)]
        runs: usize,
        /// What the clock is called in the report.
        #[arg(long, value_name = "NAME", default_value = "ordinary")]
        clock: String,
    },
    /// A stream between guest and host beside QEMU's virtio-serial, where KVM runs Linux.
    Stream {
        /// The program of the guests, static.
        #[arg(long, value_name = "FILE")]
        program: PathBuf,
        /// The guest kernel that both boot.
        #[arg(long, value_name = "FILE")]
        kernel: PathBuf,
        /// The root image.
        #[arg(long, value_name = "FILE")]
        image: PathBuf,
        /// QEMU's program.
        #[arg(long, value_name = "FILE", default_value = "/usr/bin/qemu-system-x86_64")]
        qemu: PathBuf,
        /// How often.
        #[arg(long, value_name = "N", default_value_t = 5)]
        runs: usize,
        /// What the clock is called in the report.
        #[arg(long, value_name = "NAME", default_value = "ordinary")]
        clock: String,
    },
    /// VMM start-up alone, with a bare-metal kernel, on any /dev/kvm.
    StartUp {
        /// The `cabana` program.
        #[arg(long, value_name = "FILE")]
        cabana: PathBuf,
        /// How often.
        #[arg(long, value_name = "N", default_value_t = 41)]
        runs: usize,
    },
    /// A folder in a guest beside QEMU with virtiofsd, where KVM runs Linux; prints the table.
    FsGuest {
        /// The `cabana` program.
        #[arg(long, value_name = "FILE")]
        cabana: PathBuf,
        /// QEMU's program.
        #[arg(long, value_name = "FILE", default_value = "/usr/bin/qemu-system-x86_64")]
        qemu: PathBuf,
        /// The server that QEMU's guest has.
        #[arg(long, value_name = "FILE", default_value = "/usr/lib/qemu/virtiofsd")]
        virtiofsd: PathBuf,
        /// The guest kernel that both boot.
        #[arg(long, value_name = "FILE")]
        kernel: PathBuf,
        /// The root image that both have.
        #[arg(long, value_name = "FILE")]
        image: PathBuf,
        /// Files of the tree, in hundreds.
        #[arg(long, value_name = "N", default_value_t = 200)]
        hundreds: usize,
        /// Leave the large file out.
        #[arg(long)]
        small: bool,
        /// How often.
        #[arg(long, value_name = "N", default_value_t = 3)]
        runs: usize,
        /// Move into a root in memory first: for the lab, where every file is a wait for the host.
        #[arg(long)]
        stage: bool,
    },
    /// iperf3 in a guest beside QEMU with passt and with slirp, where KVM runs Linux; prints the table.
    NetGuest {
        /// The `cabana` program.
        #[arg(long, value_name = "FILE")]
        cabana: PathBuf,
        /// QEMU's program.
        #[arg(long, value_name = "FILE", default_value = "/usr/bin/qemu-system-x86_64")]
        qemu: PathBuf,
        /// The guest kernel that all boot.
        #[arg(long, value_name = "FILE")]
        kernel: PathBuf,
        /// The root image that all have.
        #[arg(long, value_name = "FILE")]
        image: PathBuf,
        /// How often.
        #[arg(long, value_name = "N", default_value_t = 3)]
        runs: usize,
        /// Move into a root in memory first: for the lab, where every file is a wait for the host.
        #[arg(long)]
        stage: bool,
    },
    /// A command in a machine of its own, beside microsandbox and boxlite, where KVM runs Linux; prints the table.
    Products {
        /// The `cabana` program.
        #[arg(long, value_name = "FILE")]
        cabana: PathBuf,
        /// What microsandbox's wheel has.
        #[arg(long, value_name = "DIR")]
        microsandbox: PathBuf,
        /// What boxlite's wheel has.
        #[arg(long, value_name = "DIR")]
        boxlite: PathBuf,
        /// A static busybox, which is all that their machines have.
        #[arg(long, value_name = "FILE", default_value = "/bin/busybox")]
        busybox: PathBuf,
        /// How often.
        #[arg(long, value_name = "N", default_value_t = 5)]
        runs: usize,
    },
    /// Joins JSON reports; prints the table, and writes it and the whole as JSON.
    Report {
        /// What they are of: the files' name.
        #[arg(long, value_name = "NAME", default_value = "boot")]
        of: String,
        /// Where to write `NAME.md` and `NAME.json`.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// What else there is to say of where this was measured.
        #[arg(long, value_name = "NAME=VALUE")]
        fact: Vec<String>,
        /// A file with what figures may be at most; one that is more, or missing, is a failure.
        #[arg(long, value_name = "FILE")]
        budget: Option<PathBuf>,
        /// The reports.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Prints what changed between two JSON reports.
    Compare {
        /// The report of before.
        before: PathBuf,
        /// The report of now.
        now: PathBuf,
    },
    /// Makes a page for a browser, and beside it the pictures of each JSON report as SVG files.
    Page {
        /// The file to write.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// What was measured, in order: JSON reports (`.json`) and tables as text, each with its title.
        #[arg(required = true, value_name = "TITLE=FILE")]
        parts: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Boot { cabana, bare, qemu, kernel, runs, stage, clock } => in_folder(|work| {
            let work = work.to_owned();
            let boot = Boot { cabana, bare, qemu, kernel, work, runs, stage, clock };
            boot.measure(&|what| eprintln!("bench: {what}"))
        })
        .and_then(|report| print(&report)),
        Task::Restore { cabana, runs, stage, clock } => in_folder(|work| {
            let restore = Restore { cabana, work: work.to_owned(), stage, runs, clock };
            restore.measure(&|what| eprintln!("bench: {what}"))
        })
        .and_then(|report| print(&report)),
        Task::Memory { cabana, runs, stage, clock } => in_folder(|work| {
            let memory = MachineMemory { cabana, work: work.to_owned(), stage, runs, clock };
            memory.measure(&|what| eprintln!("bench: {what}"))
        })
        .and_then(|report| print(&report)),
        Task::StartUp { cabana, runs } => in_folder(|work| measure::start_up(&cabana, work, runs))
            .and_then(|report| print(&report)),
        Task::Exec { runs, clock } => exec::measure(runs, &|what| eprintln!("bench: {what}"))
            .and_then(|figures| print(&figures.report(&clock))),
        Task::Stream { program, kernel, image, qemu, runs, clock } => {
            let files =
                stream::Files { kernel: &kernel, image: &image, program: &program, qemu: &qemu };
            stream::measure(files, runs, &|what| eprintln!("bench: {what}"))
                .and_then(|streams| print(&streams.report(&clock)))
        }
        Task::FsGuest { cabana, qemu, virtiofsd, kernel, image, hundreds, small, runs, stage } => {
            let parent = std::env::temp_dir();
            tempfile::tempdir_in(&parent).map_err(Error::file(&parent)).and_then(|folder| {
                let work = folder.path().to_owned();
                let guest = Guest {
                    cabana,
                    qemu,
                    virtiofsd,
                    kernel,
                    image,
                    hundreds,
                    small,
                    work,
                    stage,
                    runs,
                };
                let figures = guest.measure(&|what| eprintln!("bench: {what}"))?;
                print!("{}", shares::markdown(&figures, hundreds));
                Ok(())
            })
        }
        Task::NetGuest { cabana, qemu, kernel, image, runs, stage } => {
            let parent = std::env::temp_dir();
            tempfile::tempdir_in(&parent).map_err(Error::file(&parent)).and_then(|folder| {
                let work = folder.path().to_owned();
                let guest = net::guest::Guest { cabana, qemu, kernel, image, work, stage, runs };
                let figures = guest.measure(&|what| eprintln!("bench: {what}"))?;
                print!("{}", figures.markdown());
                Ok(())
            })
        }
        Task::Products { cabana, microsandbox, boxlite, busybox, runs } => {
            let products = Products { cabana, microsandbox, boxlite, busybox };
            products
                .measure(runs, &|what| eprintln!("bench: {what}"))
                .map(|figures| print!("{}", figures.markdown()))
        }
        Task::Compare { before, now } => read(&before)
            .and_then(|before| read(&now).map(|now| print!("{}", compare(&before, &now)))),
        Task::Page { to, parts } => whole_page(&to, &parts),
        Task::Report { of, to, fact, budget, files } => {
            return match report(&of, &to, &fact, &files).and_then(|whole| judge(budget, &whole)) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::from(OVER_BUDGET),
                Err(error) => failed(&error),
            };
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &Error) -> ExitCode {
    eprintln!("bench: {error}");
    ExitCode::FAILURE
}

/// Measures with a folder that is gone afterwards.
fn in_folder(measure: impl FnOnce(&Path) -> Result<Report, Error>) -> Result<Report, Error> {
    let folder = tempfile::tempdir().map_err(Error::file(std::env::temp_dir()))?;
    measure(folder.path())
}

fn print(report: &Report) -> Result<(), Error> {
    println!("{}", json(report, Path::new("standard output"))?);
    Ok(())
}

fn json(report: &Report, path: &Path) -> Result<String, Error> {
    serde_json::to_string_pretty(report)
        .map_err(|error| Error::Content { path: path.to_owned(), why: error.to_string() })
}

fn read(path: &Path) -> Result<Report, Error> {
    let text = fs::read_to_string(path).map_err(Error::file(path))?;
    serde_json::from_str(&text)
        .map_err(|error| Error::Content { path: path.to_owned(), why: error.to_string() })
}

/// Joins reports, prints the table and writes it.
fn report(of: &str, to: &Path, facts: &[String], files: &[PathBuf]) -> Result<Report, Error> {
    let mut whole = Report::default();
    for path in files {
        whole.join(read(path)?);
    }
    for fact in facts {
        let (name, value) = fact.split_once('=').unwrap_or((fact, ""));
        whole.environment.push((name.to_owned(), value.to_owned()));
    }
    let table = whole.markdown();
    let (markdown, everything) = (to.join(format!("{of}.md")), to.join(format!("{of}.json")));
    fs::write(&markdown, &table).map_err(Error::file(&markdown))?;
    fs::write(&everything, json(&whole, &everything)? + "\n").map_err(Error::file(&everything))?;
    print!("{table}");
    Ok(whole)
}

fn whole_page(to: &Path, parts: &[String]) -> Result<(), Error> {
    let section = |part: &String| {
        let (title, path) = part.split_once('=').unwrap_or(("", part));
        let path = PathBuf::from(path);
        if path.extension().is_some_and(|extension| extension == "json") {
            let report = read(&path)?;
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            for plot in plots(&report) {
                let picture = to.with_file_name(format!("{stem}-{}.svg", plot.kind));
                fs::write(&picture, plot.file()).map_err(Error::file(&picture))?;
            }
            return Ok(Section::Figures(title.to_owned(), report));
        }
        let text = fs::read_to_string(&path).map_err(Error::file(&path))?;
        Ok(Section::Table(title.to_owned(), text))
    };
    let sections = parts.iter().map(section).collect::<Result<Vec<_>, Error>>()?;
    fs::write(to, page(&sections)).map_err(Error::file(to))
}

/// Prints what came of each line of the budget; false if one does not pass.
fn judge(budget: Option<PathBuf>, report: &Report) -> Result<bool, Error> {
    let Some(path) = budget else { return Ok(true) };
    let mut passes = true;
    println!("\nBudget:");
    for (key, most, verdict) in Budget::read(&path)?.judge(report) {
        passes &= verdict.passes();
        println!("  {key} at most {most}: {}", verdict.text());
    }
    Ok(passes)
}

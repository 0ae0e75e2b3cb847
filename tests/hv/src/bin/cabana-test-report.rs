//! What this machine makes of Cabana, for those who have no such machine: runs what is there for its system and
//! processor, and leaves a report to send back.
//!
//!     cargo run -p cabana-test-hv --bin cabana-test-report

use std::env::{self, consts};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};

use cabana_test_hv::backends;

const REPORT: &str = "cabana-report.txt";

/// What has tests on every system.
const EVERYWHERE: &[&str] = &[
    "cabana-api",
    "cabana-balloon",
    "cabana-block",
    "cabana-boot",
    "cabana-bus",
    "cabana-console",
    "cabana-egress",
    "cabana-hv",
    "cabana-hv-x86",
    "cabana-machine",
    "cabana-memory",
    "cabana-net",
    "cabana-netstack",
    "cabana-os",
    "cabana-platform",
    "cabana-pmem",
    "cabana-protocol",
    "cabana-rng",
    "cabana-snapshot",
    "cabana-test-hv",
    "cabana-virtio",
    "cabana-vsock",
];

/// This system's backend and what else it has, and how it tells its version.
#[cfg(target_os = "linux")]
const OWN: (&[&str], &[&str]) = (&["cabana-hv-kvm", "cabana-store"], &["uname", "-srvm"]);
#[cfg(target_os = "macos")]
const OWN: (&[&str], &[&str]) = (&["cabana-hv-hvf", "cabana-store"], &["sw_vers"]);
#[cfg(windows)]
const OWN: (&[&str], &[&str]) = (&["cabana-hv-whp"], &["cmd", "/c", "ver"]);

/// How suites and libtest begin lines that are worth repeating at the end.
const TOLD: [&str; 3] = ["case: ", "test result: ", "error"];
const FAILED: &str = " ... FAILED";

fn main() -> ExitCode {
    match report() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the report could not be made: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything passed.
fn report() -> io::Result<bool> {
    let mut file = File::create(REPORT)?;
    let mut tell = |text: &str| {
        println!("{text}");
        writeln!(file, "{text}")
    };
    tell(&host())?;
    for backend in backends() {
        tell(&format!("{}: {:?}", backend.name, backend.probe()))?;
    }
    let (output, errors) =
        io::pipe().and_then(|(reader, writer)| Ok((reader, (writer.try_clone()?, writer))))?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["test", "--no-fail-fast"]);
    for package in EVERYWHERE.iter().chain(OWN.0) {
        cargo.args(["--package", package]);
    }
    // A process may have one VM alone.
    cargo.args(["--", "--show-output", "--test-threads=1"]);
    cargo.stdin(Stdio::null()).stdout(errors.0).stderr(errors.1);
    let mut running = cargo.spawn()?;
    // Ours of the pipe's ends.
    drop(cargo);
    let mut end = String::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        tell(&line)?;
        if TOLD.iter().any(|told| line.starts_with(told)) || line.ends_with(FAILED) {
            let _ = writeln!(end, "{line}");
        }
    }
    let passed = running.wait()?.success();
    tell(&format!("\n== In short\n{end}{}", if passed { "all passed" } else { "not all passed" }))?;
    println!("\nPlease send back the file {REPORT}.");
    Ok(passed)
}

fn host() -> String {
    let [program, arguments @ ..] = OWN.1 else { return String::new() };
    let version = Command::new(program).args(arguments).output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let version = version.unwrap_or_else(|error| error.to_string());
    format!("{} {} ({}), {version}", consts::OS, consts::ARCH, env!("CARGO_PKG_VERSION"))
}

//! `cabana doctor`: what this host can do, and what to do about what it cannot.

use cabana_sandbox::{Probe, probe};
use cabana_store::{Kind, Store};
use serde::Serialize;

use crate::Failure;
use crate::args::DoctorArgs;

/// Everything looked at. The names are stable: programs read them.
#[derive(Serialize)]
struct Report {
    /// Can machines with Linux in them run here?
    usable: bool,
    hypervisor: Probe,
    artifacts: Vec<ArtifactCheck>,
    store: String,
}

#[derive(Serialize)]
struct ArtifactCheck {
    kind: &'static str,
    name: &'static str,
    /// Why it cannot be used, and what to do.
    problem: Option<String>,
}

pub(crate) fn doctor(args: &DoctorArgs) -> Result<u8, Failure> {
    let store = Store::open()?;
    let hypervisor = probe();
    let artifacts: Vec<_> = Kind::ALL.into_iter().map(|kind| check(&store, kind)).collect();
    let usable = hypervisor.verdict.runs_linux()
        && artifacts.iter().all(|artifact| artifact.problem.is_none());
    let store = store.path().display().to_string();
    let report = Report { usable, hypervisor, artifacts, store };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(u8::from(!usable))
}

fn check(store: &Store, kind: Kind) -> ArtifactCheck {
    let name = "default";
    let problem = store.find(kind, name).err().map(|error| error.to_string());
    ArtifactCheck { kind: kind.as_str(), name, problem }
}

fn print(report: &Report) {
    let Probe { hypervisor, verdict, instructions_per_second, max_vcpus, quirks } =
        &report.hypervisor;
    match verdict.why() {
        None => line("ok", hypervisor, "runs Linux guests"),
        Some(why) => line("NO", hypervisor, why),
    }
    if let Some(speed) = instructions_per_second {
        line("", "speed", &format!("{} million instructions a second", speed / 1_000_000));
    }
    if let Some(max) = max_vcpus {
        line("", "vCPUs", &format!("up to {max} in a machine"));
    }
    for quirk in quirks {
        line("", "note", quirk);
    }
    for artifact in &report.artifacts {
        match &artifact.problem {
            None => line("ok", artifact.kind, "found and verified"),
            Some(problem) => line("NO", artifact.kind, problem),
        }
    }
    line("", "store", &report.store);
}

fn line(mark: &str, name: &str, text: &str) {
    println!("{mark:2}  {name:8}  {text}");
}

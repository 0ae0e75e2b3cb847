//! The command itself, on every system: what it says and how it ends where nothing boots.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output};

use cabana_store::{Kind, Store};
use serde_json::Value;
use tempfile::TempDir;

/// `cabana`, with a store of this test's own.
fn cabana(home: &TempDir, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cabana"));
    command.args(arguments).env("CABANA_HOME", home.path()).output().expect("cabana starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// What it said on its standard output, of an end without a complaint.
fn said(home: &TempDir, arguments: &[&str]) -> String {
    let output = cabana(home, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "{arguments:?}");
    text(&output.stdout)
}

/// The one sentence that it said of why Cabana itself failed.
fn complaint(home: &TempDir, arguments: &[&str]) -> String {
    let output = cabana(home, arguments);
    let complaint = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{arguments:?}: {complaint}");
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    complaint.trim_end().strip_prefix("cabana: ").expect("it says who speaks").to_owned()
}

/// The head of an ELF file for x86-64 with one empty segment: what the loader takes for a kernel.
fn kernel() -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    // ET_EXEC, EM_X86_64; version; entry, program headers, section headers.
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend([0x10_0000_u64, 64, 0].map(u64::to_le_bytes).concat());
    elf.extend(0_u32.to_le_bytes());
    elf.extend([64_u16, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat());
    // PT_LOAD that is readable, writable, executable.
    elf.extend([1_u32, 7].map(u32::to_le_bytes).concat());
    elf.extend([0, 0x10_0000, 0x10_0000, 4096, 4096, 4096_u64].map(u64::to_le_bytes).concat());
    elf.resize(4096, 0);
    elf
}

/// Artifacts by their names, with nothing in them that would boot.
fn fill(home: &TempDir) {
    let store = Store::open_at(home.path()).unwrap();
    let empty = || vec![0; 4096];
    let files = [
        (Kind::Kernel, vec![("vmlinux", kernel())]),
        (Kind::Agent, vec![("agent.cpio", empty())]),
        (Kind::Image, vec![("root.erofs", empty()), ("scratch.ext4", empty())]),
    ];
    for (kind, files) in files {
        let staging = store.stage(kind, "default").unwrap();
        for (name, content) in files {
            fs::write(staging.path().join(name), content).unwrap();
        }
        let facts = BTreeMap::from([("summary".to_owned(), "nothing that boots".to_owned())]);
        staging.commit("00", facts).unwrap();
    }
}

fn doctor(home: &TempDir) -> Value {
    let output = cabana(home, &["doctor", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let status = i32::from(report["usable"] == false);
    assert_eq!(output.status.code(), Some(status), "{report:#}");
    report
}

#[test]
fn it_says_what_it_can_do_and_who_it_is() {
    let home = TempDir::new().unwrap();
    let help = said(&home, &["--help"]);
    for verb in ["run", "doctor", "image", "up", "serve"] {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb}: {help}");
    }
    assert_eq!(
        said(&home, &["--version"]).trim_end(),
        format!("cabana {}", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(cabana(&home, &["no-such-verb"]).status.code(), Some(125));
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "nothing is made by asking");
}

#[test]
fn it_lists_what_the_store_has() {
    let home = TempDir::new().unwrap();
    assert!(said(&home, &["image", "list"]).contains("the store is empty"));
    fill(&home);
    let list = said(&home, &["image", "list"]);
    let kinds: Vec<_> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(kinds, ["kernel", "agent", "image"], "{list}");
    assert!(list.lines().all(|line| line.ends_with("nothing that boots")), "{list}");
    assert!(said(&home, &["image", "remove", "default"]).starts_with("removed image default: "));
    assert_eq!(said(&home, &["image", "list"]).lines().count(), 2);
}

#[test]
fn what_is_missing_is_said_in_a_sentence() {
    let home = TempDir::new().unwrap();
    let why = complaint(&home, &["run", "--", "true"]);
    assert!(why.starts_with("there is no image 'default' in "), "{why}");
    let artifacts = doctor(&home)["artifacts"].as_array().expect("a list").clone();
    assert_eq!(artifacts.len(), 3);
    assert!(artifacts.iter().all(|artifact| artifact["problem"].is_string()));
}

#[test]
fn what_the_host_lacks_is_said_as_the_doctor_says_it() {
    let home = TempDir::new().unwrap();
    fill(&home);
    let report = doctor(&home);
    for artifact in report["artifacts"].as_array().expect("a list") {
        assert_eq!(artifact["problem"], Value::Null);
    }
    let verdict = &report["hypervisor"]["verdict"];
    let Some(why) = verdict["why"].as_str().filter(|_| verdict["kind"] != "emulated") else {
        return println!("skipped: this host has a hypervisor");
    };
    let people = text(&cabana(&home, &["doctor"]).stdout);
    assert!(people.starts_with("NO ") && people.contains(why), "{people}");
    let complaint = complaint(&home, &["run", "--", "true"]);
    assert_eq!(complaint, format!("this host cannot run virtual machines: {why}"));
}

#[test]
fn images_are_built_on_linux() {
    if std::env::consts::OS == "linux" {
        return println!("skipped: it is for the other systems");
    }
    let home = TempDir::new().unwrap();
    let why = complaint(&home, &["image", "build", "default"]);
    assert!(why.contains("images are built on Linux"), "{why}");
}

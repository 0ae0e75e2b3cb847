//! The command and the engine on arm64, with the smallest image: what CI runs in the Arm lab. Every other suite here
//! runs there, too, once the default image is built (`cargo xtask setup --arch aarch64`).

#![cfg(target_arch = "aarch64")]

use std::fs;

use cabana_engine::{CommandSpec, Engine, EngineConfig, Exit, MachineSpec, ShareSpec, WorkerKind};
use cabana_test_guest::{Host, tiny_host};

/// `cabana run` with the smallest image and these words.
fn run(host: &Host, words: &[&str]) -> cabana_test_guest::Call {
    host.cabana([&["run", "--image", "tiny"], words].concat())
}

#[test]
fn a_command_runs_and_its_streams_and_its_status_are_its_own() {
    let Some(host) = tiny_host() else { return };
    assert_eq!(run(host, &["--", "echo", "hello"]).end().succeeded(), "hello\n");
    let script = "uname -m; nproc; cat; echo err >&2; exit 7";
    let call = run(host, &["--cpus", "2", "-i", "--", "sh", "-c", script]);
    let ended = call.input("from the host\n").end();
    assert_eq!(ended.text(), "aarch64\n2\nfrom the host\n");
    assert_eq!((ended.stderr.as_str(), ended.status()), ("err\n", 7));
}

#[test]
fn a_folder_is_shared_and_the_disk_is_written() {
    let Some(host) = tiny_host() else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("in"), "of the host\n").unwrap();
    let share = format!("{}:/mnt/share", folder.path().display());
    let script =
        "cat /mnt/share/in; echo of the guest >/mnt/share/out; echo x >/root/x; cat /root/x";
    let ended = run(host, &["--share", &share, "--", "sh", "-c", script]).end();
    assert_eq!(ended.succeeded(), "of the host\nx\n");
    assert_eq!(fs::read_to_string(folder.path().join("out")).unwrap(), "of the guest\n");
}

#[test]
fn the_engines_machine_has_a_confined_worker_and_sessions() {
    let Some(host) = tiny_host() else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("in"), "of the host\n").unwrap();
    let worker = WorkerKind::Program(host.binary.clone());
    let engine = Engine::new(EngineConfig { worker, ..EngineConfig::default() }).unwrap();
    let share = ShareSpec {
        host: folder.path().into(),
        guest: "/shared".to_owned(),
        read_only: false,
        journal: None,
    };
    let spec = MachineSpec {
        name: "m".to_owned(),
        image: "tiny".to_owned(),
        shares: vec![share],
        ..MachineSpec::default()
    };
    let machine = engine.machine(spec).unwrap();
    let command = CommandSpec::new(["sh", "-c", "cat /shared/in; hostname"]);
    for _ in 0..2 {
        let output = machine.exec(&command).unwrap().output().unwrap();
        assert_eq!(output.exit, Exit::Code(0), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "of the host\nm\n");
        // Standing still, and going on.
        assert!(machine.suspend().unwrap());
    }
}

#[test]
fn a_machine_goes_on_out_of_a_snapshot() {
    let Some(host) = tiny_host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("warm").display().to_string();
    let script = "echo disk >/root/kept; echo memory >/dev/shm/kept; cat /etc/machine-id";
    let options = ["--image", "tiny", "--cpus", "2"];
    let save = [&["snapshot", "save", &file], &options[..], &["--", "sh", "-ec", script]].concat();
    let first = host.cabana(save).end().succeeded();
    let script = "cat /root/kept /dev/shm/kept /etc/machine-id; nproc";
    let mut seen = vec![first];
    for _ in 0..2 {
        let words = ["run", "--from", &file, "--", "sh", "-ec", script];
        let text = host.cabana(words).end().succeeded();
        let identity =
            text.strip_prefix("disk\nmemory\n").and_then(|text| text.strip_suffix("2\n"));
        let identity = identity.unwrap_or_else(|| panic!("{text}")).to_owned();
        assert!(!seen.contains(&identity), "{identity} twice");
        seen.push(identity);
    }
}

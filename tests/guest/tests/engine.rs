//! The engine's API: lives and deaths of machines in workers.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use cabana_engine::{
    CommandSpec, Engine, EngineConfig, Exit, Machine, MachineEvent, MachineSpec, MachineState,
    ProcessEvent, ShareSpec, WorkerKind,
};
use cabana_test_guest::{Host, LIMIT, host};

fn engine(host: &Host) -> Engine {
    let worker = WorkerKind::Program(host.binary.clone());
    Engine::new(EngineConfig { worker, ..EngineConfig::default() }).unwrap()
}

fn sh(machine: &Machine, script: &str) -> String {
    let output = machine.exec(&CommandSpec::new(["sh", "-c", script])).unwrap().output().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn kill(process: u32) {
    let process = rustix::process::Pid::from_raw(process as i32).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_machine_lives_lazily_stands_still_and_dies_by_name() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "of the host\n").unwrap();
    let disk = folder.path().join("disk");
    let engine = engine(host);
    let machine = engine
        .machine(MachineSpec {
            name: "m".to_owned(),
            disk: Some(disk.clone()),
            shares: vec![ShareSpec {
                host: folder.path().into(),
                guest: "/shared".to_owned(),
                read_only: false,
                journal: None,
            }],
            ..MachineSpec::default()
        })
        .unwrap();
    assert_eq!(machine.status().state, MachineState::Idle);
    let events = machine.events();

    // The first command starts it, with all it was promised.
    assert_eq!(sh(&machine, "cat /shared/file; hostname"), "of the host\nm\n");
    assert_eq!(events.next_event(), Some(MachineEvent::Starting { generation: 1 }));
    for step in ["confined", "booting", "connected"] {
        assert_eq!(events.next_event(), Some(MachineEvent::Progress { step: step.to_owned() }));
    }
    let Some(MachineEvent::Ready { warnings }) = events.next_event() else { panic!("not ready") };
    assert_eq!(warnings, [] as [&str; 0]);

    // Standing still costs no processor, and a command ends it.
    assert!(machine.suspend().unwrap());
    assert_eq!(machine.status().state, MachineState::Suspended);
    let worker = machine.status().worker.unwrap();
    let used = processor_time(worker);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(processor_time(worker), used);
    sh(&machine, "echo kept > /root/file; sync; echo shared > /shared/from-guest");
    assert_eq!(events.next_event(), Some(MachineEvent::Suspended));
    assert_eq!(events.next_event(), Some(MachineEvent::Resumed));
    assert_eq!(fs::read_to_string(folder.path().join("from-guest")).unwrap(), "shared\n");

    // Many at once, nothing lost, nothing mixed up.
    thread::scope(|scope| {
        for number in 0..12 {
            let machine = machine.clone();
            scope.spawn(move || {
                let script = format!("for i in $(seq 300); do echo {number} $i; done");
                let expected: Vec<_> = (1..=300).map(|i| format!("{number} {i}")).collect();
                assert_eq!(sh(&machine, &script).lines().collect::<Vec<_>>(), expected);
            });
        }
    });

    // Its worker's death ends what runs, is an event, and the next command finds a fresh machine.
    let mut process = machine.exec(&CommandSpec::new(["sleep", "1000"])).unwrap();
    assert!(matches!(process.next_event().unwrap(), Some(ProcessEvent::Started(_))));
    kill(worker);
    assert_eq!(process.next_event().unwrap_err().code(), "worker-died");
    assert!(process.next_event().unwrap().is_none());
    let died = events.next_event().unwrap();
    assert!(matches!(&died, MachineEvent::Died { code, .. } if code == "worker-died"), "{died:?}");
    assert_eq!(sh(&machine, "cat /root/file /shared/file"), "kept\nof the host\n");
    assert_eq!(machine.status().generation, 2);

    // A disk has one machine; the other engine hears which disk.
    let other = self::engine(host)
        .machine(MachineSpec { disk: Some(disk.clone()), ..MachineSpec::default() })
        .unwrap();
    let error = other.start().unwrap_err();
    assert_eq!(error.code(), "disk", "{error}");
    assert!(error.to_string().contains(disk.to_str().unwrap()), "{error}");

    // An orderly end keeps the disk and is no death; after it the disk is free.
    sh(&machine, "echo late > /root/file");
    machine.shutdown().unwrap();
    assert_eq!(machine.status().state, MachineState::Idle);
    assert_eq!(sh(&other, "cat /root/file"), "late\n");
    let told: Vec<_> = std::iter::from_fn(|| events.next_within(Duration::ZERO)).collect();
    assert_eq!(told.last(), Some(&MachineEvent::Stopped), "{told:?}");
}

/// User and system time of a process, in ticks.
fn processor_time(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn what_runs_in_the_background_is_left_found_and_taken_up_again() {
    let Some(host) = host() else { return };
    let machine = engine(host).machine(MachineSpec::default()).unwrap();
    let events = machine.events();
    assert_eq!(machine.background_commands().unwrap(), []);
    let command = CommandSpec { background: true, stdin: true, ..CommandSpec::new(["sh", "-c"]) };
    let script = "read line; seq 1 200000; echo $line; exit 7";
    let mut argv = command.argv.clone();
    argv.push(script.to_owned());
    let mut first = machine.exec(&CommandSpec { argv, ..command }).unwrap();
    assert!(matches!(first.next_event().unwrap(), Some(ProcessEvent::Started(_))));
    let number = first.background().unwrap();

    // One that is left as it should be, one that is gone, and one in whose place another comes.
    first.input().detach();
    assert_eq!(first.next_event().unwrap(), Some(ProcessEvent::Detached));
    assert_eq!(first.next_event().unwrap(), None);
    assert_eq!(machine.status().processes, 0);
    assert!(!machine.suspend().unwrap(), "it runs in the background");
    let mut second = machine.attach(number).unwrap();
    assert!(matches!(second.next_event().unwrap(), Some(ProcessEvent::Started(_))));
    drop(second);
    let mut third = machine.attach(number).unwrap();
    assert!(matches!(third.next_event().unwrap(), Some(ProcessEvent::Started(_))));
    let listed = machine.background_commands().unwrap().remove(0);
    assert_eq!((listed.background, listed.attached, listed.exit), (number, true, None));
    assert!(listed.command.contains("seq 1 200000"), "{listed:?}");
    let fourth = machine.attach(number).unwrap();
    assert_eq!(third.next_event().unwrap(), Some(ProcessEvent::Detached));

    // More than is kept in the guest, and all of it.
    assert!(fourth.input().write_stdin(b"the end\n"));
    let output = fourth.output().unwrap();
    let all = (1..=200_000).fold(String::new(), |text, line| text + &format!("{line}\n"));
    assert!(output.stdout == (all + "the end\n").into_bytes(), "{} bytes", output.stdout.len());
    assert_eq!(output.exit, Exit::Code(7));
    let ended = MachineEvent::BackgroundEnded { background: number, exit: Exit::Code(7) };
    while events.next_within(LIMIT).expect("its end is told") != ended {}
    assert_eq!(machine.attach(number).unwrap_err().code(), "not-found");
    assert!(machine.suspend().unwrap());

    // One that ends while nobody is there waits with its last words.
    let quick = CommandSpec { background: true, ..CommandSpec::new(["echo", "later"]) };
    let mut quick = machine.exec(&quick).unwrap();
    quick.next_event().unwrap();
    let number = quick.background().unwrap();
    drop(quick);
    let ended = MachineEvent::BackgroundEnded { background: number, exit: Exit::Code(0) };
    while events.next_within(LIMIT).expect("its end is told") != ended {}
    assert_eq!(machine.background_commands().unwrap()[0].exit, Some(Exit::Code(0)));
    assert_eq!(machine.attach(number).unwrap().output().unwrap().stdout, b"later\n");
    machine.shutdown().unwrap();
    assert_eq!(machine.background_commands().unwrap(), []);
}

#[test]
fn whatever_waits_ends_when_it_is_no_longer_wanted() {
    let Some(host) = host() else { return };
    let machine = engine(host)
        .machine(MachineSpec { suspend_after_ms: Some(200), ..MachineSpec::default() })
        .unwrap();
    let events = machine.events();
    // A start ends when it is stopped, at whatever point.
    for _ in 0..2 {
        let starting = thread::spawn({
            let machine = machine.clone();
            move || machine.start()
        });
        while !matches!(events.next_event(), Some(MachineEvent::Progress { step }) if step == "booting")
        {
        }
        machine.stop();
        assert!(starting.join().unwrap().is_err());
        assert_eq!(events.next_event(), Some(MachineEvent::Stopped));
    }
    // A process that is dropped is gone from the guest.
    let dropped = machine.exec(&CommandSpec::new(["sleep", "4321"])).unwrap();
    drop(dropped);
    let start = Instant::now();
    while !sh(&machine, "pgrep -f 'sleep 432[1]' || true").is_empty() {
        assert!(start.elapsed() < LIMIT);
    }
    // An idle machine is suspended by itself.
    while events.next_within(LIMIT) != Some(MachineEvent::Suspended) {}
    assert_eq!(sh(&machine, "echo awake"), "awake\n");
    // The last handle takes the machine along.
    let worker = format!("/proc/{}", machine.status().worker.unwrap());
    drop(machine);
    let start = Instant::now();
    while Path::new(&worker).exists() {
        assert!(start.elapsed() < LIMIT);
        thread::sleep(Duration::from_millis(10));
    }
    while events.next_event().is_some() {}
}

#[test]
fn a_worker_reaches_only_what_it_was_handed() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let machine = engine(host)
        .machine(MachineSpec {
            shares: vec![ShareSpec {
                host: folder.path().into(),
                guest: "/shared".to_owned(),
                read_only: false,
                journal: None,
            }],
            ..MachineSpec::default()
        })
        .unwrap();
    // Everything that tools do on a share, under the filter and the domain.
    sh(
        &machine,
        "set -e; cd /shared; mkdir -p a/b; echo x > a/b/f; ln a/b/f a/hard; ln -s b/f a/soft; cat a/soft;
         mv a/b a/c; cp -a a copy; chmod 700 a/c; touch -d 2020-01-01 a/c/f; truncate -s 1M a/c/f;
         fallocate -l 2M a/c/f; dd if=a/c/f of=a/dd bs=64K conv=fsync 2>/dev/null; find . | sort;
         mkfifo a/fifo; rm -r a copy; df . >/dev/null; sync",
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let worker = machine.status().worker.unwrap();
    let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    assert!(status.contains("Seccomp:\t2"), "{status}");
    machine.shutdown().unwrap();
}

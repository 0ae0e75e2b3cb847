//! Many commands on one machine, through the engine's API.

use std::sync::OnceLock;
use std::thread;
use std::time::Instant;

use cabana_sandbox::{Command, Error, Machine, MachineConfig, ProcessEvent, TtySize};
use cabana_test_guest::{LIMIT, exec, exec_with, finish, host, run, sh};

/// The machine of all cases here, which ends with this process.
fn machine() -> Option<&'static Machine> {
    static MACHINE: OnceLock<Machine> = OnceLock::new();
    let host = host()?;
    Some(MACHINE.get_or_init(|| {
        let config = MachineConfig { cpus: 2, ..host.machine() };
        let machine = Machine::start(&config).expect("a machine");
        assert_eq!(machine.warnings(), <[String; 0]>::default());
        machine
    }))
}

/// Bytes without any pattern that a lost or doubled piece would leave intact.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(len);
    bytes
}

#[test]
fn exit_statuses_from_0_to_255_arrive() {
    let Some(machine) = machine() else { return };
    for status in [0, 1, 2, 77, 124, 125, 126, 127, 128, 129, 137, 192, 254, 255] {
        let ran = run(machine, ["sh", "-c", &format!("exit {status}")]);
        assert_eq!((ran.status, ran.stdout, ran.stderr), (status, vec![], vec![]));
    }
}

#[test]
fn deadly_signals_are_told() {
    let Some(machine) = machine() else { return };
    for signal in [1u8, 2, 3, 6, 9, 11, 13, 15, 34, 64] {
        let ran = run(machine, ["sh", "-c", &format!("kill -{signal} $$")]);
        assert_eq!(ran.status, 128 + signal);
    }
}

#[test]
fn the_streams_stay_apart() {
    let Some(machine) = machine() else { return };
    let ran = sh(machine, "echo a; echo b >&2; echo c; echo d >&2");
    assert_eq!((ran.stdout.as_slice(), ran.stderr.as_slice()), (&b"a\nc\n"[..], &b"b\nd\n"[..]));
}

#[test]
fn what_cannot_be_started_is_told_as_a_shell_does() {
    let Some(machine) = machine() else { return };
    sh(
        machine,
        "echo 'no program' >/tmp/plain; echo '#!/no/such' >/tmp/script; chmod +x /tmp/script",
    )
    .succeeded();
    let command = |word: &str| Command::new([word]);
    let in_folder = |folder: &str| Command { cwd: Some(folder.into()), ..command("true") };
    for (command, code, words) in [
        (command("no-such-command"), 127, "`no-such-command`: command not found"),
        (command("/no/such/command"), 127, "`/no/such/command`: no such file"),
        (command("/tmp/script"), 127, "its interpreter is missing"),
        (command("/tmp/plain"), 126, "`/tmp/plain`: permission denied"),
        (command("/tmp"), 126, "`/tmp`: permission denied"),
        (in_folder("/no/such"), 126, "working directory `/no/such`: No such file"),
        (in_folder("/etc/passwd"), 126, "working directory `/etc/passwd`: Not a directory"),
    ] {
        match exec(machine, &command) {
            Err(Error::Exec { shell_code, message }) => {
                assert_eq!(shell_code, code, "{message}");
                assert!(message.contains(words), "{message}");
            }
            other => panic!("{command:?}: {other:?}"),
        }
    }
}

#[test]
fn environment_and_folder_are_the_commands_own() {
    let Some(machine) = machine() else { return };
    let pairs = |pairs: &[(&str, &str)]| {
        pairs
            .iter()
            .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
            .collect()
    };
    let command = Command {
        env: pairs(&[("A", "1"), ("HOME", "/tmp"), ("A", "2")]),
        cwd: Some("/usr/lib".into()),
        ..Command::new(["sh", "-c", "echo $A $HOME $USER $PWD"])
    };
    assert_eq!(exec(machine, &command).unwrap().succeeded(), "2 /tmp root /usr/lib\n");
    let command =
        Command { env: pairs(&[("A", "1")]), clear_env: true, ..Command::new(["/usr/bin/env"]) };
    assert_eq!(exec(machine, &command).unwrap().succeeded(), "A=1\n");
}

#[test]
fn arguments_are_bytes() {
    let Some(machine) = machine() else { return };
    let arguments =
        [&b"printf"[..], b"%s|", b"", b"a b", b"'\"$x\\", b"\xff\xfe", "ä€\n".as_bytes()];
    let ran = run(machine, arguments);
    assert_eq!(ran.stdout, b"|a b|'\"$x\\|\xff\xfe|\xc3\xa4\xe2\x82\xac\n|");
}

#[test]
fn sixteen_mib_pass_each_way_intact() {
    let Some(machine) = machine() else { return };
    let bytes = noise(16 << 20);
    let ran = exec_with(machine, &Command::new(["cat"]), bytes.clone()).unwrap();
    assert_eq!((ran.status, ran.stdout.len()), (0, bytes.len()));
    assert!(ran.stdout == bytes, "they were changed on their way");
}

#[test]
fn thirty_two_commands_at_once() {
    let Some(machine) = machine() else { return };
    let start = |number: u8| {
        let script = format!("echo ready; cat; exit {number}");
        let command = Command { stdin: true, ..Command::new(["sh", "-c", &script]) };
        machine.exec(&command).unwrap()
    };
    let mut processes: Vec<_> = (0..32).map(start).collect();
    // All of them run before any may end.
    for process in &mut processes {
        while process.next_event().unwrap() != ProcessEvent::Stdout(b"ready\n") {}
    }
    for (number, process) in (0u8..).zip(&processes) {
        process.input().write_stdin(&vec![number; 10_000]);
        process.input().close_stdin();
    }
    for (number, process) in (0u8..).zip(&mut processes) {
        let ran = finish(process).unwrap();
        assert_eq!(ran.status, number);
        assert!(ran.stdout == vec![number; 10_000], "command {number} got another's input");
    }
}

#[test]
fn input_that_nobody_wants_holds_nothing_up() {
    let Some(machine) = machine() else { return };
    let ran = exec_with(machine, &Command::new(["head", "-c", "3"]), noise(4 << 20)).unwrap();
    assert_eq!((ran.status, ran.stdout.as_slice()), (0, &noise(3)[..]));
    let ran = exec_with(machine, &Command::new(["true"]), noise(4 << 20)).unwrap();
    assert_eq!(ran.status, 0);
}

#[test]
fn a_signal_overtakes_input_that_is_not_read() {
    let Some(machine) = machine() else { return };
    let command = Command { stdin: true, ..Command::new(["sleep", "1000"]) };
    let mut process = machine.exec(&command).unwrap();
    let input = process.input();
    let writer = thread::spawn({
        let input = input.clone();
        move || input.write_stdin(&noise(1 << 20))
    });
    assert!(matches!(process.next_event().unwrap(), ProcessEvent::Started(_)));
    input.signal(15);
    match process.next_event().unwrap() {
        ProcessEvent::Exited(status) => assert_eq!(status.shell_code(), 128 + 15),
        other => panic!("{other:?}"),
    }
    assert!(!writer.join().expect("no panic"), "the input went somewhere");
}

#[test]
fn a_dropped_command_is_hung_up() {
    let Some(machine) = machine() else { return };
    // A shell that writes of its child's end to a closed stream would end before its trap runs.
    let script = "exec 2>/dev/null; trap 'touch /tmp/hung-up; exit' HUP; echo ready; while :; do sleep 0.05; done";
    let mut process = machine.exec(&Command::new(["sh", "-c", script])).unwrap();
    while process.next_event().unwrap() != ProcessEvent::Stdout(b"ready\n") {}
    drop(process);
    let script = "for i in $(seq 600); do test -e /tmp/hung-up && exit; sleep 0.05; done; exit 1";
    sh(machine, script).succeeded();
}

#[test]
fn a_process_in_the_background_does_not_hold_the_end_up() {
    let Some(machine) = machine() else { return };
    let start = Instant::now();
    let ran = sh(machine, "echo begun; sleep 1000 & echo done");
    assert_eq!(ran.succeeded(), "begun\ndone\n");
    assert!(start.elapsed() < LIMIT / 4, "{:?}", start.elapsed());
    sh(machine, "pkill -x sleep").succeeded();
}

#[test]
fn a_terminal_has_size_and_line_discipline() {
    let Some(machine) = machine() else { return };
    let command = Command {
        tty: Some(TtySize { rows: 33, cols: 101 }),
        ..Command::new(["sh", "-c", "stty size; echo to stderr >&2; read x; echo \"<$x>\""])
    };
    let mut process = machine.exec(&command).unwrap();
    let input = process.input();
    // 0x15 erases the line that was begun.
    input.write_stdin(b"wrong\x15right\n");
    let mut seen = Vec::new();
    loop {
        match process.next_event().unwrap() {
            ProcessEvent::Stdout(bytes) => seen.extend_from_slice(bytes),
            ProcessEvent::Exited(status) => break assert_eq!(status.shell_code(), 0),
            ProcessEvent::Started(_) => {}
            other @ (ProcessEvent::Stderr(_) | ProcessEvent::Detached) => panic!("{other:?}"),
        }
    }
    let text = String::from_utf8_lossy(&seen);
    assert!(text.contains("33 101\r\n") && text.contains("to stderr\r\n"), "{text:?}");
    assert!(text.ends_with("<right>\r\n"), "{text:?}");
}

#[test]
fn orphans_are_reaped_and_the_clock_is_the_hosts() {
    let Some(machine) = machine() else { return };
    let script =
        "for i in 1 2 3 4 5; do (sleep 0.1 &) ; done; sleep 0.5; ps -eo stat | grep -c Z || true";
    assert_eq!(sh(machine, script).succeeded(), "0\n");
    let guest: u64 = run(machine, ["date", "+%s"]).succeeded().trim().parse().unwrap();
    let host = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(host.abs_diff(guest) < 20, "host {host}, guest {guest}");
}

#[test]
fn the_guest_has_what_programs_expect() {
    let Some(machine) = machine() else { return };
    let script = "test -c /dev/null; test -w /dev/shm; test -d /proc/self; test -d /sys/class; \
                  mount | grep -q ' on / type overlay'; test $(stat -c %a /tmp) = 1777; \
                  test $(readlink /dev/fd) = /proc/self/fd; hostname";
    assert_eq!(sh(machine, script).succeeded(), "cabana\n");
    let random = run(machine, ["head", "-c", "32", "/dev/random"]);
    assert_eq!((random.status, random.stdout.len()), (0, 32));
}

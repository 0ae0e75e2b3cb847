//! Commands run by `Server::serve` over a socket pair, as a host sees them.

use std::collections::VecDeque;
use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cabana_agent::Server;
use cabana_agent::exec::ExecError;
use cabana_protocol::exec::{STDIN_WINDOW, StdinWindow};
use cabana_protocol::{
    Exec, ExecFailed, ExecReply, ExecRequest, ExitStatus, FailureKind, Kind, ProtocolError,
    TtySize, read_frame, write_frame, write_message,
};

/// The longest that any of these commands may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The host's end of one command.
struct Host {
    stream: UnixStream,
    buffer: Vec<u8>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    server: JoinHandle<Result<(), ExecError>>,
}

impl Host {
    fn connect() -> Self {
        Self::connect_to(&Arc::new(Server::new().unwrap()))
    }

    fn connect_to(server: &Arc<Server>) -> Self {
        let (stream, guest) = UnixStream::pair().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let server = Arc::clone(server);
        let server = thread::spawn(move || server.serve(guest));
        Self { stream, buffer: Vec::new(), stdout: Vec::new(), stderr: Vec::new(), server }
    }

    fn start(exec: Exec) -> Self {
        let mut host = Self::connect();
        host.request(&ExecRequest::Exec(exec));
        match host.reply() {
            ExecReply::Started { pid, .. } => assert!(pid > 1),
            other => panic!("{other:?}"),
        }
        host
    }

    fn request(&mut self, request: &ExecRequest) {
        write_message(&mut self.stream, request).unwrap();
    }

    fn stdin(&mut self, bytes: &[u8]) {
        write_frame(&mut self.stream, Kind::Stdin, bytes).unwrap();
    }

    /// The next reply; output before it is gathered.
    fn reply(&mut self) -> ExecReply {
        loop {
            if let Some(reply) = self.step() {
                return reply;
            }
        }
    }

    /// Takes one frame.
    fn step(&mut self) -> Option<ExecReply> {
        let frame = read_frame(&mut self.stream, &mut self.buffer);
        let frame = frame.unwrap_or_else(|error| {
            panic!("{error} after {:?}", String::from_utf8_lossy(&self.stdout))
        });
        let frame = frame.expect("a frame");
        match frame.kind {
            Kind::Stdout => self.stdout.extend_from_slice(frame.payload),
            Kind::Stderr => self.stderr.extend_from_slice(frame.payload),
            _ => return Some(frame.message().unwrap()),
        }
        None
    }

    /// Gathers output until standard output contains `text`.
    fn until(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.stdout).contains(text) {
            assert_eq!(self.step(), None, "before {text:?} came {:?}", self.stdout());
        }
    }

    fn exit(&mut self) -> ExitStatus {
        loop {
            match self.reply() {
                ExecReply::Exited(status) => return status,
                ExecReply::StdinTaken(_) | ExecReply::StdinClosed => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The end of the command, after which the server has to be content and the stream closed.
    fn finish(mut self) -> (ExitStatus, Vec<u8>, Vec<u8>) {
        let status = self.exit();
        assert!(read_frame(&mut self.stream, &mut self.buffer).unwrap().is_none());
        self.server.join().unwrap().unwrap();
        (status, self.stdout, self.stderr)
    }

    /// The end, for a connection that was handed to another thread.
    fn finish_after_attach(mut self) -> (ExitStatus, Vec<u8>, Vec<u8>) {
        let status = self.exit();
        assert!(read_frame(&mut self.stream, &mut self.buffer).unwrap().is_none());
        (status, self.stdout, self.stderr)
    }

    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

fn shell(script: &str) -> Exec {
    Exec::new(["/bin/sh", "-c", script])
}

fn run(exec: Exec) -> (ExitStatus, String, String) {
    let (status, stdout, stderr) = Host::start(exec).finish();
    (status, String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn refusal(exec: Exec) -> ExecFailed {
    let mut host = Host::connect();
    host.request(&ExecRequest::Exec(exec));
    match host.reply() {
        ExecReply::Failed(failed) => {
            host.server.join().unwrap().unwrap();
            failed
        }
        other => panic!("{other:?}"),
    }
}

/// Waits until no process of the group is left but zombies.
fn group_ends(group: &str, most: Duration) {
    let end = Instant::now() + most;
    loop {
        let alive = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let stat = fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
            // After the name in parentheses: state, parent, group.
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            (fields.get(2) == Some(&group) && fields[0] != "Z").then_some(stat)
        });
        let alive: Vec<String> = alive.collect();
        if alive.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "left over: {alive:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn output_and_error_come_apart_with_the_exit_status() {
    let (status, stdout, stderr) = run(shell("echo out; echo err >&2; exit 42"));
    assert_eq!(
        (status, stdout.as_str(), stderr.as_str()),
        (ExitStatus::Code(42), "out\n", "err\n")
    );
}

#[test]
fn without_stdin_it_is_empty() {
    let (status, stdout, _) = run(shell("wc -c"));
    assert_eq!((status, stdout.trim()), (ExitStatus::Code(0), "0"));
}

#[test]
fn stdin_reaches_the_command_until_its_end() {
    let mut host = Host::start(Exec { stdin: true, ..Exec::new(["cat"]) });
    host.stdin(b"one ");
    host.until("one ");
    host.stdin(b"two");
    host.stdin(b"");
    let (status, stdout, _) = host.finish();
    assert_eq!((status, &stdout[..]), (ExitStatus::Code(0), &b"one two"[..]));
}

#[test]
fn stdin_that_comes_together_with_the_request_is_not_left_lying() {
    let (mut near, far) = UnixStream::pair().unwrap();
    let exec = Exec { stdin: true, ..Exec::new(["cat"]) };
    let mut frames = Vec::new();
    write_message(&mut frames, &ExecRequest::Exec(exec)).unwrap();
    write_frame(&mut frames, Kind::Stdin, b"at once").unwrap();
    write_frame(&mut frames, Kind::Stdin, b"").unwrap();
    near.write_all(&frames).unwrap();
    near.set_read_timeout(Some(PATIENCE)).unwrap();
    let server = thread::spawn(move || Server::new().unwrap().serve(far));
    let (mut buffer, mut output) = (Vec::new(), Vec::new());
    while let Some(frame) = read_frame(&mut near, &mut buffer).unwrap() {
        if frame.kind == Kind::Stdout {
            output.extend_from_slice(frame.payload);
        }
    }
    server.join().unwrap().unwrap();
    assert_eq!(output, b"at once");
}

#[test]
fn a_command_that_closes_its_stdin_is_reported_and_runs_on() {
    let script = "exec <&-; trap go=1 USR1; echo closed; \
                  while [ -z \"$go\" ]; do sleep 0.05; done; echo done";
    let mut host = Host::start(Exec { stdin: true, ..shell(script) });
    host.until("closed\n");
    host.stdin(b"nobody reads this");
    assert_eq!(host.reply(), ExecReply::StdinClosed);
    host.stdin(b"nor this");
    host.stdin(b"");
    host.request(&ExecRequest::Signal(10));
    let (status, stdout, _) = host.finish();
    assert_eq!((status, &stdout[..]), (ExitStatus::Code(0), &b"closed\ndone\n"[..]));
}

#[test]
fn a_signal_ends_the_command_and_is_its_status() {
    let mut host = Host::start(Exec::new(["sleep", "100"]));
    host.request(&ExecRequest::Signal(15));
    assert_eq!(host.finish().0, ExitStatus::Signal(15));
}

#[test]
fn a_signal_reaches_the_whole_process_group() {
    let script = "trap 'echo trapped; exit 3' TERM; sh -c 'echo up; exec sleep 100'; echo no";
    let mut host = Host::start(shell(script));
    host.until("up\n");
    host.request(&ExecRequest::Signal(15));
    let (status, stdout, stderr) = host.finish();
    let stderr = String::from_utf8_lossy(&stderr);
    assert_eq!((status, &stdout[..]), (ExitStatus::Code(3), &b"up\ntrapped\n"[..]), "{stderr}");
}

#[test]
fn a_signal_passes_input_that_nobody_reads() {
    let mut host = Host::start(Exec { stdin: true, ..Exec::new(["sleep", "100"]) });
    for _ in 0..4 {
        host.stdin(&vec![b'x'; STDIN_WINDOW / 4]);
    }
    host.request(&ExecRequest::Signal(9));
    assert_eq!(host.finish().0, ExitStatus::Signal(9));
}

#[test]
fn the_environment_is_the_default_and_what_is_added() {
    let added = Exec {
        env: vec![(b"KEY".to_vec(), b"a=b c".to_vec()), (b"HOME".to_vec(), b"/tmp".to_vec())],
        ..Exec::new(["env"])
    };
    let (_, stdout, _) = run(added.clone());
    let mut lines: Vec<&str> = stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "HOME=/tmp",
            "KEY=a=b c",
            "LANG=C.UTF-8",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "USER=root"
        ]
    );
    let cleared = Exec { clear_env: true, argv: vec![b"/usr/bin/env".to_vec()], ..added };
    assert_eq!(run(cleared).1, "HOME=/tmp\nKEY=a=b c\n");
}

#[test]
fn the_command_is_looked_up_in_its_own_path() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("only-here");
    fs::write(&program, "#!/bin/sh\necho found \"$@\"\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = folder.path().to_str().unwrap().as_bytes().to_vec();
    let exec = Exec { env: vec![(b"PATH".to_vec(), path)], ..Exec::new(["only-here", "a b", ""]) };
    assert_eq!(run(exec).1, "found a b \n");
    assert_eq!(refusal(Exec::new(["only-here"])).kind, FailureKind::NotFound);
}

#[test]
fn the_working_directory_is_set() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap();
    let cwd = Some(path.to_str().unwrap().as_bytes().to_vec());
    assert_eq!(run(Exec { cwd, ..Exec::new(["pwd"]) }).1.trim(), path.to_str().unwrap());
    assert_eq!(run(Exec::new(["pwd"])).1, "/\n");
}

#[test]
fn what_cannot_be_started_says_why() {
    let cwd = Some(b"/no/such/folder".to_vec());
    let failed = refusal(Exec { cwd, ..Exec::new(["true"]) });
    assert_eq!(failed.kind, FailureKind::BadCwd);
    assert!(failed.message.contains("/no/such/folder"), "{}", failed.message);
    let cwd = Some(b"/etc/passwd".to_vec());
    assert_eq!(refusal(Exec { cwd, ..Exec::new(["true"]) }).kind, FailureKind::BadCwd);

    let failed = refusal(Exec::new(["no-such-command"]));
    assert_eq!(failed.kind, FailureKind::NotFound);
    assert_eq!(failed.message, "`no-such-command`: command not found");
    assert_eq!(refusal(Exec::new(["/no/such/file"])).kind, FailureKind::NotFound);
    assert_eq!(refusal(Exec::new(["/etc/passwd"])).kind, FailureKind::PermissionDenied);
    assert_eq!(refusal(Exec::new(["/etc"])).kind, FailureKind::PermissionDenied);
    assert_eq!(refusal(Exec::default()).kind, FailureKind::Other);
    assert_eq!(refusal(Exec::new(["a\0b"])).kind, FailureKind::Other);
    let env = vec![(b"A=B".to_vec(), b"c".to_vec())];
    assert_eq!(refusal(Exec { env, ..Exec::new(["true"]) }).kind, FailureKind::Other);
}

#[test]
fn the_command_inherits_nothing_of_the_server() {
    // Whoever runs this test may leave descriptors open for every process below it.
    let list = Command::new("ls").arg("/proc/self/fd").output().unwrap().stdout;
    let script = "ls /proc/self/fd | wc -l; umask; grep -E 'Sig(Blk|Ign)' /proc/self/status; \
                  ps -o pid=,pgid=,sid= -p $$";
    let (_, stdout, _) = run(shell(script));
    let lines: Vec<&str> = stdout.lines().map(str::trim).collect();
    let descriptors = list.split(|byte| *byte == b'\n').count() - 1;
    assert_eq!(lines[..2], [descriptors.to_string().as_str(), "0022"], "{stdout}");
    // Signals from 32 on belong to the C library. Rust's runtime ignores SIGPIPE in this process.
    let signals = |line: &str| {
        u64::from_str_radix(line.split_once('\t').unwrap().1, 16).unwrap() & 0x7fff_ffff
    };
    assert_eq!((signals(lines[2]), signals(lines[3])), (0, 0), "{stdout}");
    let ids: Vec<&str> = lines[4].split_whitespace().collect();
    assert!(ids[0] == ids[1] && ids[1] == ids[2], "it leads its group and session: {stdout}");
}

#[test]
fn a_terminal_is_a_terminal_and_follows_its_size() {
    let script = "tty; stty size; echo term=$TERM; trap 'stty size; exit 7' WINCH; echo up; \
                  while :; do sleep 0.05; done";
    let tty = Some(TtySize { rows: 24, cols: 80 });
    let mut host = Host::start(Exec { tty, term: Some("vt100".into()), ..shell(script) });
    host.until("up\r\n");
    host.request(&ExecRequest::Resize(TtySize { rows: 50, cols: 132 }));
    let (status, stdout, stderr) = host.finish();
    let stdout = String::from_utf8(stdout).unwrap();
    assert!(stdout.starts_with("/dev/pts/"), "{stdout}");
    assert!(stdout.contains("\r\n24 80\r\nterm=vt100\r\nup\r\n50 132\r\n"), "{stdout}");
    assert_eq!((status, &stderr[..]), (ExitStatus::Code(7), &b""[..]));
}

#[test]
fn a_terminal_takes_input_control_characters_and_its_end() {
    let tty = Some(TtySize { rows: 24, cols: 80 });
    let mut host = Host::start(Exec { tty, ..shell("echo up; read line; echo got $line; cat") });
    host.until("up\r\n");
    host.stdin(b"typed\n");
    host.until("got typed\r\n");
    host.stdin(b"");
    assert_eq!(host.finish().0, ExitStatus::Code(0));

    let mut host = Host::start(Exec { tty, ..Exec::new(["cat"]) });
    host.stdin(b"x\n");
    // The terminal's echo, and what `cat` makes of it.
    host.until("x\r\nx\r\n");
    host.stdin(b"\x03");
    assert_eq!(host.finish().0, ExitStatus::Signal(2));
}

#[test]
fn a_signal_goes_to_the_terminals_foreground() {
    let tty = Some(TtySize { rows: 24, cols: 80 });
    let mut exec = Exec::new(["bash", "--norc", "--noprofile", "-i"]);
    exec.tty = tty;
    exec.env = vec![(b"PS1".to_vec(), b"prompt> ".to_vec())];
    let mut host = Host::start(exec);
    host.until("prompt> ");
    // The quotes tell the command's output from the terminal's echo of the line.
    host.stdin(b"sh -c 'echo run\"\"ning; exec sleep 1000'; echo status=$?\n");
    host.until("running\r\n");
    host.request(&ExecRequest::Signal(15));
    host.until("status=143");
    host.stdin(b"exit 5\n");
    assert_eq!(host.finish().0, ExitStatus::Code(5));
}

#[test]
fn a_terminal_loses_no_output_at_the_end() {
    let tty = Some(TtySize { rows: 24, cols: 80 });
    for _ in 0..5 {
        let (status, stdout, _) = run(Exec { tty, ..Exec::new(["seq", "100000"]) });
        assert_eq!(status, ExitStatus::Code(0));
        assert_eq!(stdout.lines().count(), 100_000);
        assert!(stdout.ends_with("\r\n100000\r\n"));
    }
}

#[test]
fn sixty_four_mebibytes_go_round_intact() {
    const SIZE: usize = 64 * 1024 * 1024;
    let byte = |index: usize| (index ^ (index >> 8) ^ (index >> 17)) as u8;
    let mut host = Host::start(Exec { stdin: true, ..Exec::new(["cat"]) });
    let (credit, credits) = mpsc::channel();
    let mut writer = host.stream.try_clone().unwrap();
    let start = Instant::now();
    let sender = thread::spawn(move || {
        let (mut window, mut sent) = (StdinWindow::new(), 0);
        let mut chunk = Vec::new();
        while sent < SIZE {
            while window.open() == 0 {
                window.taken(credits.recv().unwrap()).unwrap();
            }
            let length = window.open().min(64 * 1024).min(SIZE - sent);
            chunk.clear();
            chunk.extend((sent..sent + length).map(byte));
            write_frame(&mut writer, Kind::Stdin, &chunk).unwrap();
            window.send(length).unwrap();
            sent += length;
        }
        write_frame(&mut writer, Kind::Stdin, b"").unwrap();
    });
    loop {
        match host.reply() {
            ExecReply::StdinTaken(taken) => drop(credit.send(taken)),
            ExecReply::Exited(status) => break assert_eq!(status, ExitStatus::Code(0)),
            other => panic!("{other:?}"),
        }
    }
    sender.join().unwrap();
    println!("64 MiB there and back in {:?}", start.elapsed());
    assert_eq!(host.stdout.len(), SIZE);
    assert!(host.stdout.iter().enumerate().all(|(index, have)| *have == byte(index)));
    host.server.join().unwrap().unwrap();
}

#[test]
fn output_waits_for_a_host_that_reads_late_and_is_whole() {
    let host = Host::start(shell("head -c 3000000 /dev/zero; echo end >&2"));
    thread::sleep(Duration::from_millis(300));
    let (status, stdout, stderr) = host.finish();
    assert_eq!(
        (status, stdout.len(), &stderr[..]),
        (ExitStatus::Code(0), 3_000_000, &b"end\n"[..])
    );
}

#[test]
fn a_background_process_does_not_hold_the_end() {
    let start = Instant::now();
    let (status, stdout, _) = run(shell("echo here; sleep 5 & exit 4"));
    assert_eq!((status, stdout.as_str()), (ExitStatus::Code(4), "here\n"));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());

    // One that never stops writing does not hold it either. It dies by SIGPIPE.
    let start = Instant::now();
    let (status, stdout, _) = run(shell("yes & sleep 0.1; exit 6"));
    assert_eq!(status, ExitStatus::Code(6));
    assert!(stdout.starts_with("y\n"));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn closing_the_connection_ends_the_process_group() {
    let script =
        "trap '' HUP; sh -c 'trap \"\" HUP; echo up; sleep 1000' & echo group $$; wait; wait";
    let mut host = Host::start(shell(script));
    host.until("group ");
    host.until("up\n");
    let stdout = host.stdout();
    let group = stdout.split("group ").nth(1).unwrap().split_whitespace().next().unwrap();
    let start = Instant::now();
    drop(host.stream);
    let result = host.server.join().unwrap();
    assert!(matches!(result, Err(ExecError::Protocol(ProtocolError::Closed))), "{result:?}");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    group_ends(group, Duration::from_secs(1));
}

#[test]
fn closing_the_connection_ends_a_terminals_processes() {
    let tty = Some(TtySize { rows: 24, cols: 80 });
    let mut host = Host::start(Exec { tty, ..shell("echo group $$; sleep 1000; echo no") });
    host.until("\r\n");
    let stdout = host.stdout();
    let group = stdout.trim().strip_prefix("group ").unwrap();
    let start = Instant::now();
    host.stream.shutdown(Shutdown::Both).unwrap();
    assert!(host.server.join().unwrap().is_err());
    assert!(
        start.elapsed() < Duration::from_millis(1900),
        "SIGHUP is enough: {:?}",
        start.elapsed()
    );
    group_ends(group, Duration::from_secs(1));
}

#[test]
fn fifty_commands_run_at_once() {
    let hosts: VecDeque<(usize, Host)> = (0..50)
        .map(|index| (index, Host::start(shell(&format!("sleep 0.3; echo {index}; exit {index}")))))
        .collect();
    for (index, host) in hosts {
        let (status, stdout, _) = host.finish();
        assert_eq!(status, ExitStatus::Code(index as u8));
        assert_eq!(stdout, format!("{index}\n").as_bytes());
    }
}

#[test]
fn malformed_frames_end_the_connection_and_the_command() {
    let started = || Host::start(Exec { stdin: true, ..Exec::new(["sleep", "1000"]) });
    let ends = |mut host: Host, bytes: &[u8]| {
        host.stream.write_all(bytes).unwrap();
        match host.server.join().unwrap() {
            Err(ExecError::Protocol(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(ends(started(), &[0, 0, 0, 1, 5]), ProtocolError::TooLong { .. }));
    assert!(matches!(ends(started(), &[1, 0, 0, 0, 99, 0]), ProtocolError::UnknownKind(99)));
    assert!(matches!(ends(started(), &[1, 0, 0, 0, 6, 0]), ProtocolError::UnexpectedKind(_)));
    assert!(matches!(ends(started(), &[1, 0, 0, 0, 3, 77]), ProtocolError::Malformed { .. }));
    let signal = |number| {
        let mut bytes = Vec::new();
        write_message(&mut bytes, &ExecRequest::Signal(number)).unwrap();
        bytes
    };
    assert!(matches!(ends(started(), &signal(0)), ProtocolError::BadSignal(0)));
    assert!(matches!(ends(started(), &signal(-9)), ProtocolError::BadSignal(-9)));
    let mut second = Vec::new();
    write_message(&mut second, &ExecRequest::Exec(Exec::new(["true"]))).unwrap();
    assert!(matches!(ends(started(), &second), ProtocolError::OutOfTurn(_)));
    assert!(matches!(ends(Host::connect(), &signal(15)), ProtocolError::OutOfTurn(_)));
    assert!(matches!(ends(Host::connect(), &[0, 0, 0, 0, 3]), ProtocolError::Malformed { .. }));

    let mut flood = Vec::new();
    for _ in 0..12 {
        write_frame(&mut flood, Kind::Stdin, &vec![0; STDIN_WINDOW / 8]).unwrap();
    }
    let mut host = started();
    // The server may close before it has read everything.
    let _ = host.stream.write_all(&flood);
    match host.server.join().unwrap() {
        Err(ExecError::Protocol(ProtocolError::WindowExceeded { .. })) => {}
        other => panic!("{other:?}"),
    }
}

/// A command in the background, and its number.
fn in_background(server: &Arc<Server>, exec: Exec) -> (Host, u64) {
    let mut host = Host::connect_to(server);
    host.request(&ExecRequest::Exec(Exec { background: true, ..exec }));
    match host.reply() {
        ExecReply::Started { process, .. } if process > 0 => (host, process),
        other => panic!("{other:?}"),
    }
}

fn attach(server: &Arc<Server>, process: u64) -> (Host, u32) {
    let mut host = Host::connect_to(server);
    host.request(&ExecRequest::Attach { process });
    match host.reply() {
        ExecReply::Attached { window, .. } => (host, window),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_background_command_is_left_and_found_again_with_all_of_its_output() {
    let server = Arc::new(Server::new().unwrap());
    let script = "read a; seq 1 400000; read b; echo $a$b >&2; exit 7";
    let (mut first, process) = in_background(&server, Exec { stdin: true, ..shell(script) });
    first.stdin(b"left\n");
    first.until("\n100\n");
    first.request(&ExecRequest::Detach);
    while first.step() != Some(ExecReply::Detached) {}

    let (mut second, window) = attach(&server, process);
    assert!(window > 0);
    second.until("399999\n");
    // Another takes it over, and the one before hears of it.
    let (mut third, _) = attach(&server, process);
    while second.step() != Some(ExecReply::Detached) {}
    third.stdin(b"found\n");
    let status = third.exit();
    assert_eq!((status, third.stderr.as_slice()), (ExitStatus::Code(7), &b"leftfound\n"[..]));
    let output = [first.stdout, second.stdout, third.stdout].concat();
    let expected = (1..=400_000).fold(String::new(), |text, number| text + &format!("{number}\n"));
    assert!(output == expected.as_bytes(), "{} of {} bytes", output.len(), expected.len());

    let mut late = Host::connect_to(&server);
    late.request(&ExecRequest::Attach { process });
    match late.reply() {
        ExecReply::Failed(failed) => assert_eq!(failed.kind, FailureKind::NoProcess),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_background_command_outlives_a_connection_that_breaks_and_keeps_its_end() {
    let server = Arc::new(Server::new().unwrap());
    let (first, process) = in_background(&server, shell("sleep 0.2; echo done; exit 3"));
    drop(first.stream);
    thread::sleep(Duration::from_millis(500));
    let (second, window) = attach(&server, process);
    assert_eq!(window, 0);
    let (status, stdout, _) = second.finish_after_attach();
    assert_eq!((status, &stdout[..]), (ExitStatus::Code(3), &b"done\n"[..]));
}

#[test]
fn a_command_whose_time_is_over_is_ended_politely_and_then_not() {
    let timed = |script: &str| Exec { timeout_ms: Some(200), ..shell(script) };
    let (status, stdout, _) = Host::start(timed("echo before; exec sleep 60")).finish();
    assert_eq!((status, &stdout[..]), (ExitStatus::TimedOut, &b"before\n"[..]));
    let (status, stdout, _) =
        Host::start(timed("trap 'echo asked' TERM; while :; do sleep 60; done")).finish();
    assert_eq!((status, &stdout[..]), (ExitStatus::TimedOut, &b"asked\n"[..]));
    let quick = Exec { timeout_ms: Some(60_000), ..shell("exit 3") };
    assert_eq!(Host::start(quick).finish().0, ExitStatus::Code(3));
}

//! `cabana run`: machines of all sizes, and the command's streams, signals and end.

use std::time::Duration;

use cabana_test_guest::{Call, host};
use rustix::process::Signal;

fn sh(script: &str) -> [String; 5] {
    ["run", "--", "sh", "-c", script].map(str::to_owned)
}

#[test]
fn the_first_thing_that_anybody_tries() {
    let Some(host) = host() else { return };
    let text = host.cabana(sh("uname -a; python3 -c 'print(6*7)'")).end().succeeded();
    let (uname, answer) = text.split_once('\n').expect("two lines");
    assert!(uname.starts_with("Linux cabana 6."), "{uname}");
    assert!(uname.contains(std::env::consts::ARCH), "{uname}");
    assert_eq!(answer, "42\n");
}

#[test]
fn one_two_and_four_vcpus() {
    let Some(host) = host() else { return };
    for count in ["1", "2", "4"] {
        // Each must also do work: `taskset` fails on a processor that is not online.
        let script =
            "nproc; for i in $(seq 0 $(($(nproc) - 1))); do taskset -c $i true || exit; done";
        let call = host.cabana(["run", "--cpus", count, "--", "sh", "-c", script]);
        assert_eq!(call.end().succeeded(), format!("{count}\n"));
    }
}

#[test]
fn memory_of_several_sizes() {
    let Some(host) = host() else { return };
    for (size, mib) in [("512M", 512), ("1G", 1024), ("5G", 5120)] {
        let script = "awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo; \
                      grep -c '^1[0-9a-f]*-.*: System RAM' /proc/iomem";
        let call = host.cabana(["run", "--memory", size, "--", "sh", "-c", script]);
        let ended = call.end();
        let text = ended.text();
        let (total, above_4_gib) = text.trim().split_once('\n').unwrap_or_default();
        let total: u64 = total.parse().unwrap_or_default();
        assert!(total <= mib && total > mib * 9 / 10 - 30, "{size}: {total} MiB, {ended:?}");
        // On arm64 all RAM is one piece, which begins at 1 GiB.
        let pieces = if cfg!(target_arch = "x86_64") && mib > 4096 { "1" } else { "0" };
        assert_eq!(above_4_gib, pieces, "{size}");
    }
}

#[test]
fn output_errors_and_status_are_the_commands() {
    let Some(host) = host() else { return };
    let ended = host.cabana(sh("echo out; echo err >&2; exit 7")).end();
    assert_eq!(
        (ended.text().as_str(), ended.stderr.as_str(), ended.status()),
        ("out\n", "err\n", 7)
    );
}

#[test]
fn a_signal_that_ends_the_command_is_128_more() {
    let Some(host) = host() else { return };
    assert_eq!(host.cabana(sh("kill -KILL $$")).end().status(), 128 + 9);
}

#[test]
fn a_command_that_is_not_there_is_127() {
    let Some(host) = host() else { return };
    let call = host.cabana(["run", "--", "no-such-command"]);
    call.end().failed_with(127, &["`no-such-command`: command not found"]);
}

#[test]
fn a_folder_that_is_not_there_is_126() {
    let Some(host) = host() else { return };
    let call = host.cabana(["run", "--workdir", "/no/such/folder", "--", "true"]);
    call.end().failed_with(126, &["working directory `/no/such/folder`", "No such file"]);
}

#[test]
fn environment_and_folder() {
    let Some(host) = host() else { return };
    let script = "pwd; echo \"$GIVEN|$EMPTY|$PASSED|${ABSENT-unset}|${NOT_PASSED-unset}|$HOME\"";
    let options =
        ["-w", "/usr/bin", "--env", "GIVEN=a b=c", "-e", "EMPTY=", "-e", "PASSED", "-eABSENT"];
    let words = [&["run"][..], &options, &["--", "sh", "-c", script]].concat();
    let call = host.cabana(words).env("PASSED", "on").env("NOT_PASSED", "no");
    assert_eq!(call.end().succeeded(), "/usr/bin\na b=c||on|unset|unset|/root\n");
}

#[test]
fn a_pipe_is_the_commands_input() {
    let Some(host) = host() else { return };
    let bytes: Vec<u8> =
        (0..(1u32 << 20) + 7).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let ended = host.cabana(["run", "--", "cat"]).input(bytes.clone()).end();
    assert_eq!(ended.status(), 0, "{}", ended.stderr);
    assert!(ended.stdout == bytes, "{} of {} bytes came back", ended.stdout.len(), bytes.len());
}

#[test]
fn output_comes_while_the_command_runs() {
    let Some(host) = host() else { return };
    let mut running =
        host.cabana(sh("printf first; read line; echo \" then $line\"")).open_input().start();
    running.wait_for("first");
    running.type_in("more\n");
    assert_eq!(running.end().succeeded(), "first then more\n");
}

#[test]
fn signals_reach_the_command() {
    let Some(host) = host() else { return };
    // The shell would tell of each sleep that the signal ends as well.
    let script = "exec 2>/dev/null; trap 'echo int' INT; trap 'echo usr1' USR1; trap 'echo term; exit 9' TERM; \
                  echo ready; while :; do sleep 0.05; done";
    let mut running = host.cabana(sh(script)).start();
    for (signal, answer) in
        [(None, "ready\n"), (Some(Signal::INT), "int\n"), (Some(Signal::USR1), "usr1\n")]
    {
        if let Some(signal) = signal {
            running.signal(signal);
        }
        running.wait_for(answer);
    }
    running.signal(Signal::TERM);
    let ended = running.end();
    assert_eq!((ended.status(), ended.stderr.as_str()), (9, ""));
    assert!(ended.text().ends_with("term\n"), "{ended:?}");
}

#[test]
fn an_interrupt_ends_a_command_that_does_not_catch_it() {
    let Some(host) = host() else { return };
    let mut running = host.cabana(sh("echo ready; exec sleep 1000")).start();
    running.wait_for("ready");
    running.signal(Signal::INT);
    assert_eq!(running.end().status(), 128 + 2);
}

#[test]
fn a_signal_during_the_start_ends_it() {
    let Some(host) = host() else { return };
    let running = host.cabana(sh("sleep 1000")).start();
    std::thread::sleep(host.boot_time() / 4);
    running.signal(Signal::TERM);
    // Before `cabana` takes signals the system ends it; a shell says 143 of both.
    let status = running.end().status();
    assert!([128 + 15, 1000 + 15].contains(&status), "{status}");
}

/// `cabana run` with a limit that leaves the machine time to start.
fn limited(script: &str) -> Option<(Call, Duration)> {
    let host = host()?;
    let limit = host.boot_time() * 2 + Duration::from_secs(1);
    let time = format!("{}ms", limit.as_millis());
    Some((host.cabana(["run", "--timeout", &time, "--", "sh", "-c", script]), limit))
}

#[test]
fn a_command_that_takes_too_long_is_ended() {
    let Some((call, limit)) =
        limited("exec 2>/dev/null; trap 'echo bye; exit 3' TERM; while :; do sleep 0.05; done")
    else {
        return;
    };
    let ended = call.end();
    assert_eq!(ended.text(), "bye\n", "{ended:?}");
    assert!(ended.took >= limit, "{:?}", ended.took);
    ended.complained_with(124, &["--timeout"]);
}

#[test]
fn a_command_that_ignores_the_signal_is_ended_too() {
    let Some((call, limit)) =
        limited("exec 2>/dev/null; trap '' TERM; echo on; while :; do sleep 0.05; done")
    else {
        return;
    };
    let ended = call.end();
    assert_eq!(ended.text(), "on\n", "{ended:?}");
    assert!(ended.took >= limit, "{:?}", ended.took);
    ended.complained_with(124, &["--timeout"]);
}

#[test]
fn a_start_that_takes_too_long_is_ended() {
    let Some(host) = host() else { return };
    let call = host.cabana(["run", "--timeout", "1ms", "--", "true"]);
    call.end().failed_with(124, &["--timeout"]);
}

#[test]
fn a_reader_that_goes_away_ends_the_command() {
    let Some(host) = host() else { return };
    let mut running = host.cabana(["run", "--", "yes"]).start();
    running.wait_for("y\n");
    running.close_output();
    assert_eq!(running.end().status(), 128 + 13);
}

//! `cabana boot`: our kernel and Debian's, with an initramfs of one's own.

use std::fs;
use std::path::{Path, PathBuf};

use cabana_test_guest::archive::{Archive, init_program};
use cabana_test_guest::{Call, Host, Terminal, host};
use tempfile::TempDir;

/// The port by which a guest ends its machine.
const EXIT_PORT: u16 = 0xf4;
/// Words for our own kernel, which probes no serial port by itself.
const OUR_SERIAL: &str = "console=ttyS0 8250.nr_uarts=1 panic=-1 reboot=t";

/// An initramfs whose init says hello and ends the machine with a status.
fn hello(folder: &TempDir, status: u8) -> PathBuf {
    let path = folder.path().join("hello.cpio");
    let init = init_program("hello from init\n", status, Some(EXIT_PORT));
    fs::write(&path, Archive::new().program("init", &init).finish()).unwrap();
    path
}

/// `cabana boot` with these options.
fn boot(host: &Host, options: &[&str]) -> Call {
    host.cabana([&["boot"], options].concat())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
fn the_exit_port_is_the_status_and_the_serial_port_the_output() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    for status in [0, 77] {
        let initrd = hello(&folder, status);
        let ended = boot(
            host,
            &["--kernel", text(&host.kernel), "--initrd", text(&initrd), "--cmdline", OUR_SERIAL],
        )
        .end();
        assert_eq!((ended.status(), ended.stderr.as_str()), (i32::from(status), ""));
        let text = ended.text();
        assert!(text.contains("Linux version 6."), "{text}");
        assert!(text.contains("hello from init\r\n"), "{text}");
    }
}

#[test]
fn the_serial_port_goes_to_a_file() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let initrd = hello(&folder, 3);
    let log = folder.path().join("serial.log");
    let ended = boot(
        host,
        &[
            "--kernel",
            text(&host.kernel),
            "--initrd",
            text(&initrd),
            "--cmdline",
            OUR_SERIAL,
            "--serial",
            text(&log),
            "--cpus",
            "2",
        ],
    )
    .end();
    assert_eq!((ended.status(), ended.text().as_str(), ended.stderr.as_str()), (3, "", ""));
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("hello from init\r\n"), "{said}");
    let missing = folder.path().join("no/such/serial.log");
    let call = boot(host, &["--kernel", text(&host.kernel), "--serial", text(&missing)]);
    call.end().failed_with(125, &["no/such/serial.log", "No such file"]);
}

#[test]
fn an_init_that_ends_is_a_panic_and_no_hang() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let initrd = folder.path().join("initrd.cpio");
    let init = init_program("hello from init\n", 5, None);
    fs::write(&initrd, Archive::new().program("init", &init).finish()).unwrap();
    let words =
        ["--kernel", text(&host.kernel), "--initrd", text(&initrd), "--cmdline", OUR_SERIAL];
    let ended = boot(host, &words).end();
    assert!(ended.text().contains("Attempted to kill init"), "{ended:?}");
    ended.complained_with(125, &["triple fault"]);
}

#[test]
fn a_machine_that_goes_on_for_too_long_is_ended() {
    let Some(host) = host() else { return };
    let words = ["--kernel", text(&host.kernel), "--cmdline", "panic=0", "--timeout", "3s"];
    boot(host, &words).end().failed_with(124, &["--timeout"]);
}

#[test]
fn a_signal_ends_the_machine() {
    let Some(host) = host() else { return };
    let cmdline = "console=ttyS0 8250.nr_uarts=1 panic=0";
    let mut running = boot(host, &["--kernel", text(&host.kernel), "--cmdline", cmdline]).start();
    running.wait_for("Kernel panic");
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.end().status(), 128 + 15);
}

/// An initramfs with a shell and a program `end` for status 42, or `None` after having said what is
/// missing.
fn shell(folder: &TempDir) -> Option<PathBuf> {
    let busybox = match fs::read("/bin/busybox") {
        Ok(busybox) => busybox,
        Err(error) => {
            println!("skipped: /bin/busybox of package busybox-static: {error}");
            return None;
        }
    };
    let init = b"#!/bin/sh\nmount -t devtmpfs dev /dev\nmount -t proc proc /proc\n\
                 mount -t sysfs sys /sys\nwhile :; do setsid cttyhack sh; done\n";
    let mut archive = Archive::new().folder("bin").folder("proc").folder("sys");
    archive = archive.program("bin/busybox", &busybox).program("init", init);
    for applet in ["sh", "mount", "setsid", "cttyhack", "reboot", "dd", "printf", "nproc"] {
        archive = archive.link(&format!("bin/{applet}"), "busybox");
    }
    archive = archive.program("bin/end", &init_program("", 42, Some(EXIT_PORT)));
    let initrd = folder.path().join("initrd.cpio");
    fs::write(&initrd, archive.finish()).unwrap();
    Some(initrd)
}

#[test]
fn debians_kernel_boots_to_a_shell() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let Some(initrd) = shell(&folder) else { return };
    let kernel = &host.debian_kernel;
    if !kernel.exists() {
        return println!(
            "skipped: {} is missing; `cargo xtask test guest` brings it",
            kernel.display()
        );
    }
    let mut terminal = Terminal::new(24, 80);
    let words = [
        "--kernel",
        text(kernel),
        "--initrd",
        text(&initrd),
        "--cmdline",
        "console=ttyS0 quiet",
        "--cpus",
        "2",
    ];
    let running = terminal.start(boot(host, &words));
    terminal.wait_for("# ");
    assert!(!terminal.is_cooked(), "keys would be echoed twice");
    terminal.type_in("echo hi-$((40+2)) $(nproc)\n");
    terminal.wait_for("hi-42 2\r\n");
    terminal.type_in("reboot -f\n");
    assert_eq!(running.end().status(), 0);
    assert!(terminal.is_cooked(), "the terminal was not given back");
}

#[test]
fn lines_from_a_pipe_are_typed_and_disks_are_there() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let Some(initrd) = shell(&folder) else { return };
    let disk = folder.path().join("raw.disk");
    fs::write(&disk, b"from the host.".repeat(1024)).unwrap();
    let script = "dd if=/dev/vda bs=14 count=1 2>/dev/null; echo; printf 'from the guest' | \
                  dd of=/dev/vda bs=14 conv=notrunc,fsync 2>/dev/null; end\n";
    let words = [
        "--kernel",
        text(&host.kernel),
        "--initrd",
        text(&initrd),
        "--disk",
        text(&disk),
        "--cmdline",
        OUR_SERIAL,
    ];
    let mut running = boot(host, &words).open_input().start();
    running.wait_for("# ");
    running.type_in(script);
    let ended = running.end();
    assert_eq!((ended.status(), ended.stderr.as_str()), (42, ""), "{}", ended.text());
    assert!(ended.text().contains("from the host.\r\n"), "{}", ended.text());
    assert!(fs::read(&disk).unwrap().starts_with(b"from the guest"));
}

#[test]
fn control_and_bracket_leave_a_machine() {
    let Some(host) = host() else { return };
    let mut terminal = Terminal::new(24, 80);
    let cmdline = "console=ttyS0 8250.nr_uarts=1 panic=0";
    let call = boot(host, &["--kernel", text(&host.kernel), "--cmdline", cmdline]);
    let running = terminal.start(call);
    terminal.wait_for("Kernel panic");
    terminal.type_in("\x1d");
    assert_eq!(running.end().status(), 128);
    assert!(terminal.is_cooked(), "the terminal was not given back");
}

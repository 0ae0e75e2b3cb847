//! Machines that stay up: `cabana up`, `ps`, `exec`, `shell`, `logs`, `down`, and `cabana serve`, over which they
//! are driven.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use cabana_test_guest::{Call, Host, host};
use tempfile::TempDir;

/// A user's runtime folder, and calls of `cabana` that use it.
struct User<'a> {
    host: &'a Host,
    runtime: TempDir,
}

impl User<'_> {
    fn cabana(&self, words: &[&str]) -> Call {
        self.host.cabana(words).env("XDG_RUNTIME_DIR", self.runtime.path())
    }

    /// `cabana up`, which leaves a process behind, as other calls must not.
    fn up(&self, words: &[&str]) -> String {
        let up = Command::new(&self.host.binary)
            .arg("up")
            .args(words)
            .env("XDG_RUNTIME_DIR", self.runtime.path())
            .output()
            .unwrap();
        assert!(up.status.success(), "{up:?}");
        String::from_utf8(up.stdout).unwrap()
    }

    fn left(&self) -> Vec<String> {
        let folder = fs::read_dir(self.runtime.path().join("cabana"));
        folder.map_or_else(
            |_| Vec::new(),
            |entries| {
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
            },
        )
    }
}

/// Processes whose command line has these words.
fn processes_with(words: &str) -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has = |process: &u32| {
        let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(words)
    };
    numbers.filter(has).collect()
}

#[test]
fn a_machine_stays_up_until_it_is_taken_down() {
    let Some(host) = host() else { return };
    let user = User { host, runtime: tempfile::tempdir().unwrap() };
    let shared = tempfile::tempdir().unwrap();
    fs::write(shared.path().join("file"), "shared\n").unwrap();
    user.cabana(&["exec", "m", "true"]).end().failed_with(125, &["machine m is not up"]);
    let share = format!("{}:/shared", shared.path().display());
    assert_eq!(user.up(&["m", "--share", &share]), "m is up\n");
    user.cabana(&["up", "m"]).end().failed_with(125, &["m is up already"]);

    let listed = user.cabana(&["ps"]).end().succeeded();
    assert!(listed.contains("running") && listed.lines().count() == 2, "{listed}");
    let listed = user.cabana(&["ps", "--json"]).end().succeeded();
    assert!(listed.contains("\"generation\": 1"), "{listed}");

    // The same machine for every command; streams and statuses as of a command here.
    user.cabana(&["exec", "m", "-w", "/tmp", "--", "sh", "-c", "echo $X > kept", "sh"])
        .end()
        .succeeded();
    let exec = user.cabana(&[
        "exec",
        "m",
        "--env",
        "X=y",
        "--",
        "sh",
        "-c",
        "cat /tmp/kept /shared/file; echo $X >&2; exit 3",
    ]);
    let ended = exec.end();
    assert_eq!(
        (ended.status(), ended.text().as_str(), ended.stderr.as_str()),
        (3, "\nshared\n", "y\n")
    );
    user.cabana(&["exec", "m", "no-such-command"]).end().failed_with(127, &["no-such-command"]);
    let counted = user.cabana(&["exec", "m", "--", "wc", "-c"]).input(vec![b'x'; 300_000]).end();
    let counted = counted.succeeded();
    assert_eq!(counted.trim(), "300000");
    let uptime = user.cabana(&["shell", "m"]).input(b"echo from $0\n").end().succeeded();
    assert!(uptime.starts_with("from "), "{uptime}");
    user.cabana(&["logs", "m", "--json"]).end().succeeded();

    assert_eq!(user.cabana(&["down", "m"]).end().succeeded().trim(), "m is down");
    assert_eq!(user.left(), [] as [&str; 0]);
    user.cabana(&["down", "m"]).end().failed_with(125, &["machine m is not up"]);
    assert_eq!(user.cabana(&["ps"]).end().succeeded().lines().count(), 1);
}

#[test]
fn a_killed_holder_leaves_nothing_that_is_in_the_way() {
    let Some(host) = host() else { return };
    let user = User { host, runtime: tempfile::tempdir().unwrap() };
    let name = format!("killed-{}", std::process::id());
    user.up(&[&name]);
    let holders = processes_with(&name);
    let [holder] = holders[..] else { panic!("{holders:?}") };
    let process = rustix::process::Pid::from_raw(holder as i32).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    user.cabana(&["exec", &name, "true"]).end().failed_with(125, &["is not up"]);
    assert_eq!(user.left(), [] as [&str; 0]);
    // The name is free.
    user.up(&[&name]);
    user.cabana(&["down", &name]).end().succeeded();
}

#[test]
fn programs_drive_it_in_python_c_and_node() {
    let Some(host) = host() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    in_python(host, &root);
    in_c(host, &root);
}

/// The program of docs/serve.md, as it stands there.
fn in_python(host: &Host, root: &Path) {
    let guide = fs::read_to_string(root.join("docs/serve.md")).unwrap();
    let (_, program) = guide.split_once("```python\n").unwrap();
    let (program, _) = program.split_once("```").unwrap();
    let path = format!("{}:/usr/bin:/bin", host.binary.parent().unwrap().display());
    let ran = Command::new("python3").args(["-c", program]).env("PATH", path).output();
    let ran = match ran {
        Ok(ran) => ran,
        Err(error) => return println!("skipped: in Python: {error}"),
    };
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(text.starts_with("Linux m "), "{ran:?}");
}

/// vmm/capi/examples/hello.c by the way that docs/c.md shows.
fn in_c(host: &Host, root: &Path) {
    let prefix = tempfile::tempdir().unwrap();
    let built = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let script = "set -e; ./install.sh \"$0\" \"$1\"
        export PKG_CONFIG_PATH=\"$0/lib/pkgconfig\"
        cc -g -fsanitize=address examples/hello.c $(pkg-config --cflags --libs cabana) -Wl,-rpath,\"$0/lib\" -o \"$0/hello\"
        \"$0/hello\"";
    let ran = Command::new("sh")
        .args(["-c", script])
        .arg(prefix.path())
        .arg(built)
        .current_dir(root.join("vmm/capi"))
        .env("CABANA_WORKER", &host.binary)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "Linux\nfrom C\nstatus 3\n");
}

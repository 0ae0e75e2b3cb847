//! The tools that people use, on a share, in a real guest: once as the machine's root and once as the user of
//! a session. Their scripts stand in `tools/`; `$SIZE` says how much there is to do.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use cabana_builder::ROOT;
use cabana_sandbox::{Command, Machine, MachineConfig, SessionSpec, ShareMount};
use cabana_store::{Kind, Store};
use cabana_test_guest::{exec, host, share};
use tempfile::TempDir;

macro_rules! scripts {
    ($($name:literal),*) => { [$(($name, include_str!(concat!("tools/", $name)))),*] };
}

const SCRIPTS: [(&str, &str); 8] = scripts![
    "calls.py",
    "cargo.sh",
    "git.sh",
    "make.sh",
    "npm.sh",
    "pip.sh",
    "sqlite.py",
    "trees.sh"
];

/// The session that runs them.
const SESSION: &str = "user";

/// A machine with a folder at `/w`, which a session has too.
struct World {
    machine: Machine,
    folder: TempDir,
}

/// The machine of all cases here, which ends with this process.
fn world() -> Option<&'static World> {
    static WORLD: OnceLock<Option<World>> = OnceLock::new();
    let host = host()?;
    let world = WORLD.get_or_init(|| {
        let image = Store::open().ok()?.find(Kind::Image, "tools").ok()?.file(ROOT).ok()?;
        let folder = tempfile::tempdir().expect("a folder");
        let share = share(folder.path(), "/w", false);
        let config =
            MachineConfig { memory: 1 << 30, image, shares: vec![share], ..host.machine() };
        let machine = Machine::start(&config).expect("a machine");
        let mount = ShareMount { name: "share0".into(), guest_path: "/w".into(), read_only: false };
        let spec =
            SessionSpec { name: SESSION.into(), shares: vec![mount], ..SessionSpec::default() };
        machine.guest().create_session(&spec).expect("a session");
        Some(World { machine, folder })
    });
    if world.is_none() {
        println!("skipped: there is no image `tools` in the store; `cargo xtask test` builds it");
    }
    world.as_ref()
}

/// Runs a script in a new folder of the share, and looks at what it leaves on the host.
fn tool(name: &str, session: Option<&str>, size: u32) {
    let Some(world) = world() else { return };
    let (_, script) = SCRIPTS.iter().find(|(script, _)| *script == name).expect("a script");
    let own = format!("{name}-{}", session.unwrap_or("root"));
    let folder = world.folder.path().join(&own);
    fs::create_dir(&folder).unwrap();
    let words = match name.split_once('.') {
        Some((_, "py")) => ["python3", "-c", script],
        _ => ["sh", "-euc", script],
    };
    let command = Command {
        cwd: Some(format!("/w/{own}").into()),
        env: vec![("SIZE".into(), size.to_string().into())],
        session: session.map(Into::into),
        ..Command::new(words)
    };
    let started = Instant::now();
    let ran = exec(&world.machine, &command).expect("the machine runs commands");
    let (out, err) = (ran.text(), String::from_utf8_lossy(&ran.stderr).into_owned());
    assert_eq!(ran.status, 0, "{own}:\n{out}\n{err}");
    println!("{own}: {:?}", started.elapsed());
    is_the_hosts_users(&folder);
    fs::remove_dir_all(&folder).unwrap();
}

/// Nothing has become another user's or has a set-ID bit.
fn is_the_hosts_users(path: &Path) {
    let metadata = path.symlink_metadata().unwrap();
    let owner = (metadata.uid(), metadata.gid());
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    assert_eq!(owner, own, "{}", path.display());
    assert_eq!(metadata.mode() & 0o6000, 0, "{}", path.display());
    if metadata.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            is_the_hosts_users(&entry.unwrap().path());
        }
    }
}

macro_rules! cases {
    ($($(#[$attribute:meta])* $case:ident: $name:literal, $session:expr, $size:literal;)*) => {
        $(#[test] $(#[$attribute])* fn $case() { tool($name, $session, $size); })*
    };
}

cases! {
    system_calls: "calls.py", None, 1;
    system_calls_in_a_session: "calls.py", Some(SESSION), 1;
    cargo_builds: "cargo.sh", None, 1;
    git_keeps_its_repositories: "git.sh", None, 1;
    make_and_compilers: "make.sh", None, 1;
    npm_installs: "npm.sh", None, 1;
    pip_installs: "pip.sh", None, 1;
    sqlite_has_many_writers: "sqlite.py", None, 1;
    trees_are_copied: "trees.sh", None, 1;
}

/// The same with more to do, and the others in a session too.
mod long {
    use super::{SESSION, tool};

    cases! {
        #[ignore = "runs with --long"] system_calls: "calls.py", None, 20;
        #[ignore = "runs with --long"] cargo_builds: "cargo.sh", Some(SESSION), 2;
        #[ignore = "runs with --long"] git_keeps_its_repositories: "git.sh", None, 4;
        #[ignore = "runs with --long"] git_in_a_session: "git.sh", Some(SESSION), 1;
        #[ignore = "runs with --long"] make_and_compilers: "make.sh", Some(SESSION), 4;
        #[ignore = "runs with --long"] npm_installs: "npm.sh", Some(SESSION), 3;
        #[ignore = "runs with --long"] pip_installs: "pip.sh", Some(SESSION), 2;
        #[ignore = "runs with --long"] sqlite_has_many_writers: "sqlite.py", Some(SESSION), 10;
        #[ignore = "runs with --long"] trees_are_copied: "trees.sh", None, 20;
        #[ignore = "runs with --long"] trees_in_a_session: "trees.sh", Some(SESSION), 1;
    }
}

//! pjdfstest on a share, under this machine's own kernel.

#![cfg(unix)]

mod client;

use std::path::PathBuf;

use client::mount::run_for;
use client::posix;

/// Where `cargo xtask test` installs it.
fn program() -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(3)?.join("tools/bin/pjdfstest");
    program.exists().then_some(program)
}

#[test]
fn posix_is_kept_but_for_the_exceptions() {
    let Some(program) = program() else {
        println!("skipped: there is no pjdfstest in target/tools; `cargo xtask test` installs it");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let config =
        std::path::absolute(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pjdfstest/config.toml"));
    let script = format!(
        "mount -t tmpfs tmpfs {elsewhere}; exec {program} -c {config} -s {elsewhere} -p \"$PWD\"",
        program = program.display(),
        config = config.unwrap().display(),
        elsewhere = elsewhere.path().display(),
    );
    // Its users have to come this far.
    for path in [folder.path(), elsewhere.path()] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, mode).unwrap();
    }
    if let Some(output) = run_for(folder.path(), &script, 300) {
        posix::check(&String::from_utf8_lossy(&output.stdout));
    }
}

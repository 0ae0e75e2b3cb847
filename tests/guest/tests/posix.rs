//! pjdfstest in a real guest, on a share: all of it passes but for the listed exceptions.

#[path = "../../../devices/fs/tests/client/posix.rs"]
mod posix;

use std::path::Path;

use cabana_sandbox::{Machine, MachineConfig};
use cabana_test_guest::{host, sh, share};

#[test]
fn posix_is_kept_but_for_the_exceptions() {
    let Some(host) = host() else { return };
    let test = std::env::current_exe().unwrap();
    let programs = test.ancestors().nth(3).unwrap().join("tools/bin");
    if !programs.join("pjdfstest").exists() {
        println!("skipped: there is no pjdfstest in target/tools; `cargo xtask test` installs it");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../devices/fs/tests/pjdfstest");
    let machine = Machine::start(&MachineConfig {
        shares: vec![
            share(folder.path(), "/w", false),
            share(&programs, "/programs", true),
            share(&config, "/config", true),
        ],
        ..host.machine()
    });
    let machine = machine.expect("a machine");
    // The suite becomes other users, who have to come this far; and it renames to another file system.
    let script = "chmod 755 /w; mkdir /run/elsewhere; mount -t tmpfs tmpfs /run/elsewhere; \
                  /programs/pjdfstest -c /config/config.toml -s /run/elsewhere -p /w || true";
    posix::check(&sh(&machine, script).succeeded());
    machine.shutdown().unwrap();
}

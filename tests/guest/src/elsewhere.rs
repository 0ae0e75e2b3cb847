//! A real Linux guest over the shim (`tests/shims`) of another system's hypervisor: the machine, its devices and the
//! agent are those of every other host.

use std::fs;

use cabana_sandbox::{Machine, MachineConfig};

use crate::{host, sh, share};

/// Boots Linux on two processors to a command with a shared folder, and shuts it down in order. `choose` calls
/// [`cabana_sandbox::use_hypervisor`], where a KVM for the shim is.
pub fn boots_to_exec_with_a_share_and_two_processors(choose: impl FnOnce()) {
    let Some(host) = host() else { return };
    choose();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("in"), "from the host\n").unwrap();
    let machine = Machine::start(&MachineConfig {
        cpus: 2,
        shares: vec![share(folder.path(), "/mnt/share", false)],
        ..host.machine()
    })
    .unwrap();
    assert_eq!(machine.warnings(), <[String; 0]>::default());
    let script = "nproc && cat /mnt/share/in && uname -m > /mnt/share/out && \
                  cat /sys/devices/system/clocksource/clocksource0/current_clocksource";
    let stdout = sh(&machine, script).succeeded();
    assert!(stdout.starts_with("2\nfrom the host\n"), "{stdout}");
    println!("the guest's clock is {}", stdout.lines().last().unwrap_or_default());
    assert_eq!(fs::read_to_string(folder.path().join("out")).unwrap(), "x86_64\n");
    machine.shutdown().unwrap();
}

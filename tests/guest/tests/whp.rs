//! A real Linux guest on the backend for the Windows Hypervisor Platform, over its shim (`tests/shims`): the
//! machine, its devices and the agent are those of every other host.

use std::fs;

use cabana_sandbox::{Machine, MachineConfig, use_hypervisor};
use cabana_test_guest::{host, sh, share};

#[test]
fn linux_boots_to_exec_with_a_share_and_two_processors() {
    let Some(host) = host() else { return };
    use_hypervisor(|| Box::new(cabana_shim_whp::platform()));
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

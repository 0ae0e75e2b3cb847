//! A real Linux guest on the backend for Hypervisor.framework of Intel Macs, over its shim.

#![cfg(target_arch = "x86_64")]

use cabana_sandbox::use_hypervisor;
use cabana_test_guest::elsewhere;

#[test]
fn linux_boots_to_exec_with_a_share_and_two_processors() {
    elsewhere::boots_to_exec_with_a_share_and_two_processors(|| {
        use_hypervisor(|| Box::new(cabana_shim_hvf_x86::framework()));
    });
}

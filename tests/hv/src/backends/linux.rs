//! KVM, and the shims of other systems' hypervisors over it.

use std::sync::{Mutex, OnceLock};

use cabana_hv::{Hypervisor, Probe};
use cabana_hv_kvm::Kvm;

use super::Backend;

/// An instruction emulator does what the guest asks before it tells.
const PROCESSOR: &str = "its shim needs a KVM that runs guests on a processor";

static PROBE: OnceLock<Probe> = OnceLock::new();

/// All backends of this host.
pub fn backends() -> Vec<Backend> {
    let kvm = Backend {
        name: if cfg!(target_arch = "x86_64") { "KVM x86-64" } else { "KVM arm64" },
        open: || Box::new(Kvm::new()),
        probe: &PROBE,
        over: None,
        page: 4096,
        one_vm: None,
    };
    let mut all = vec![kvm];
    all.extend(shims());
    all
}

fn probe() -> Probe {
    PROBE.get_or_init(|| Kvm::new().probe()).clone()
}

#[cfg(target_arch = "x86_64")]
fn shims() -> Vec<Backend> {
    static WHP: OnceLock<Probe> = OnceLock::new();
    static HVF: OnceLock<Probe> = OnceLock::new();
    static ONE_VM: Mutex<()> = Mutex::new(());
    let whp = Backend {
        name: "WHP x86-64 (shim)",
        open: || Box::new(cabana_shim_whp::platform()),
        probe: &WHP,
        over: Some((probe, PROCESSOR)),
        page: 4096,
        one_vm: None,
    };
    let hvf = Backend {
        name: "HVF x86-64 (shim)",
        open: || Box::new(cabana_shim_hvf_x86::framework()),
        probe: &HVF,
        one_vm: Some(&ONE_VM),
        ..whp
    };
    vec![whp, hvf]
}

#[cfg(target_arch = "aarch64")]
fn shims() -> Vec<Backend> {
    static HVF: OnceLock<Probe> = OnceLock::new();
    static ONE_VM: Mutex<()> = Mutex::new(());
    vec![Backend {
        name: "HVF arm64 (shim)",
        open: || Box::new(cabana_shim_hvf::framework()),
        probe: &HVF,
        over: Some((probe, PROCESSOR)),
        page: 16 << 10,
        one_vm: Some(&ONE_VM),
    }]
}

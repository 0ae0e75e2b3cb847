//! Hypervisor.framework itself.

use std::sync::{Mutex, OnceLock};

use cabana_hv::Probe;
#[cfg(target_arch = "aarch64")]
use cabana_hv_hvf::Hvf;
#[cfg(target_arch = "x86_64")]
use cabana_hv_hvf::intel::Hvf;

use super::Backend;

/// All backends of this host.
pub fn backends() -> Vec<Backend> {
    static PROBE: OnceLock<Probe> = OnceLock::new();
    static ONE_VM: Mutex<()> = Mutex::new(());
    vec![Backend {
        name: if cfg!(target_arch = "x86_64") { "HVF x86-64" } else { "HVF arm64" },
        open: || Box::new(Hvf::new()),
        probe: &PROBE,
        over: None,
        page: if cfg!(target_arch = "x86_64") { 4 << 10 } else { 16 << 10 },
        one_vm: Some(&ONE_VM),
    }]
}

//! Hypervisor.framework itself.

use std::sync::{Mutex, OnceLock};

use cabana_hv::Probe;
use cabana_hv_hvf::Hvf;

use super::Backend;

/// All backends of this host.
pub fn backends() -> Vec<Backend> {
    static PROBE: OnceLock<Probe> = OnceLock::new();
    static ONE_VM: Mutex<()> = Mutex::new(());
    vec![Backend {
        name: "HVF arm64",
        open: || Box::new(Hvf::new()),
        probe: &PROBE,
        over: None,
        page: 16 << 10,
        one_vm: Some(&ONE_VM),
    }]
}

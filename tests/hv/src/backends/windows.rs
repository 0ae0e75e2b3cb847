//! The Windows Hypervisor Platform itself.

use std::sync::OnceLock;

use cabana_hv::Probe;
use cabana_hv_whp::Whp;

use super::Backend;

/// All backends of this host.
pub fn backends() -> Vec<Backend> {
    static PROBE: OnceLock<Probe> = OnceLock::new();
    vec![Backend {
        name: "WHP x86-64",
        open: || Box::new(Whp::new()),
        probe: &PROBE,
        over: None,
        page: 4096,
        one_vm: None,
    }]
}

//! arm64: backends, guests and payloads.

mod guest;

use std::sync::{Mutex, OnceLock};

use cabana_hv::Probe;

use crate::Backend;

pub use cabana_hv::Arm64 as Processor;
pub(crate) use guest::is_end;
pub use guest::{Guest, boot_state, layout};

/// Hypervisor.framework's, which a process has one of.
static ONE_VM: Mutex<()> = Mutex::new(());
const APPLES_PAGE: u64 = 16 << 10;

/// All backends of this host.
#[cfg(target_os = "linux")]
pub fn backends() -> Vec<Backend> {
    use cabana_hv::Hypervisor;
    use cabana_hv_kvm::Kvm;

    static KVM: OnceLock<Probe> = OnceLock::new();
    static HVF: OnceLock<Probe> = OnceLock::new();
    let kvm: fn() -> Probe = || KVM.get_or_init(|| Kvm::new().probe()).clone();
    vec![
        Backend {
            name: "KVM arm64",
            open: || Box::new(Kvm::new()),
            probe: &KVM,
            over: None,
            page: 4096,
            one_vm: None,
        },
        Backend {
            name: "HVF arm64 (shim)",
            open: || Box::new(cabana_shim_hvf::framework()),
            probe: &HVF,
            over: Some((kvm, "its shim needs a KVM that runs guests on a processor")),
            page: APPLES_PAGE,
            one_vm: Some(&ONE_VM),
        },
    ]
}

/// All backends of this host.
#[cfg(target_os = "macos")]
pub fn backends() -> Vec<Backend> {
    static HVF: OnceLock<Probe> = OnceLock::new();
    vec![Backend {
        name: "HVF arm64",
        open: || Box::new(cabana_hv_hvf::Hvf::new()),
        probe: &HVF,
        over: None,
        page: APPLES_PAGE,
        one_vm: Some(&ONE_VM),
    }]
}

//! arm64: backends, guests and payloads.

mod guest;

use std::sync::{Mutex, OnceLock};

use cabana_hv::{Hypervisor, Probe};
use cabana_hv_kvm::Kvm;

use crate::Backend;

pub use cabana_hv::Arm64 as Processor;
pub(crate) use guest::is_end;
pub use guest::{Guest, boot_state, layout};

/// All backends of this host.
pub fn backends() -> Vec<Backend> {
    static KVM: OnceLock<Probe> = OnceLock::new();
    static HVF: OnceLock<Probe> = OnceLock::new();
    static ONE_VM: Mutex<()> = Mutex::new(());
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
            page: 16 << 10,
            one_vm: Some(&ONE_VM),
        },
    ]
}

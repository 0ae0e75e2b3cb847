//! x86-64: backends, guests and payloads.

mod guest;

use std::sync::OnceLock;

use cabana_hv::Hypervisor;
use cabana_hv::Probe;
use cabana_hv_kvm::Kvm;

use crate::Backend;

pub use cabana_hv::X86 as Processor;
pub(crate) use guest::is_end;
pub use guest::{Guest, boot_state, layout};

/// All backends of this host.
pub fn backends() -> Vec<Backend> {
    static KVM: OnceLock<Probe> = OnceLock::new();
    static WHP: OnceLock<Probe> = OnceLock::new();
    let kvm: fn() -> Probe = || KVM.get_or_init(|| Kvm::new().probe()).clone();
    // An instruction emulator does what the guest asks before it tells.
    let processor = "its shim needs a KVM that runs guests on a processor";
    vec![
        Backend {
            name: "KVM x86-64",
            open: || Box::new(Kvm::new()),
            probe: &KVM,
            over: None,
            page: 4096,
            one_vm: None,
        },
        Backend {
            name: "WHP x86-64 (shim)",
            open: || Box::new(cabana_shim_whp::platform()),
            probe: &WHP,
            over: Some((kvm, processor)),
            page: 4096,
            one_vm: None,
        },
    ]
}

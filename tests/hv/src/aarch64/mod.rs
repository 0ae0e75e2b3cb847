//! arm64: backends, guests and payloads.

mod guest;

use std::sync::OnceLock;

use cabana_hv::Probe;
use cabana_hv_kvm::Kvm;

use crate::Backend;

pub use cabana_hv::Arm64 as Processor;
pub(crate) use guest::is_end;
pub use guest::{Guest, boot_state, layout};

/// All backends of this host.
pub fn backends() -> Vec<Backend> {
    static KVM: OnceLock<Probe> = OnceLock::new();
    vec![Backend { name: "KVM arm64", open: || Box::new(Kvm::new()), probe: &KVM, over: None }]
}

//! The one place that chooses a hypervisor.

use std::sync::OnceLock;

use cabana_hv::{Hypervisor, Probe, X86Vm};

use crate::Error;

static IN_PLACE: OnceLock<fn() -> Box<dyn Hypervisor>> = OnceLock::new();

/// The hypervisor of this host, or what [`use_hypervisor`] has put in its place.
pub fn hypervisor() -> Box<dyn Hypervisor> {
    match IN_PLACE.get() {
        Some(open) => open(),
        None => Box::new(cabana_hv_kvm::Kvm::new()),
    }
}

/// Lets this process's machines run on another implementation of the contract: how backends for other operating
/// systems are tested. To be called once, before the first machine; later calls change nothing.
pub fn use_hypervisor(open: fn() -> Box<dyn Hypervisor>) {
    let _ = IN_PLACE.set(open);
}

/// What this host can do, found out by running a vCPU.
pub fn probe() -> Probe {
    hypervisor().probe()
}

/// An empty VM. When that fails the probe says why in words; it is not asked before, since it costs
/// time.
pub(crate) fn create_vm() -> Result<Box<dyn X86Vm>, Error> {
    let hypervisor = hypervisor();
    hypervisor.create_x86_vm().map_err(|error| match hypervisor.probe().verdict.why() {
        Some(why) => Error::NoHypervisor(why.to_owned()),
        None => Error::NoHypervisor(error.to_string()),
    })
}

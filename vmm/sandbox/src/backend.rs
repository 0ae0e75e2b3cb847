//! The one place that chooses a hypervisor.

use cabana_hv::{Hypervisor, Probe, X86Vm};

use crate::Error;

/// The hypervisor of this host.
pub fn hypervisor() -> Box<dyn Hypervisor> {
    Box::new(cabana_hv_kvm::Kvm::new())
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

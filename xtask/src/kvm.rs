//! Whether this machine's own KVM can run Linux guests.

use cabana_hv::{Hypervisor, Verdict};
use cabana_hv_kvm::Kvm;

/// `Ok` if it can; otherwise the reason why the lab is needed.
pub(crate) fn runs_linux() -> Result<(), String> {
    let verdict = Kvm::new().probe().verdict;
    match verdict.why() {
        _ if verdict == Verdict::Works => Ok(()),
        Some(why) => Err(why.to_owned()),
        None => Err("it does not run Linux guests".into()),
    }
}

//! What a machine is known to touch first, brought in before it does.

use cabana_hv::{Arch, HvError, Vcpu};
use cabana_memory::{GuestAddress, GuestRam};

/// Pages of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Where they begin in the guest.
    pub guest: u64,
    /// Their length in bytes.
    pub len: usize,
    /// The guest will write to them.
    pub written: bool,
}

/// What a machine is known to touch first. It may be wrong: then it costs time and memory, and nothing else.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    /// In RAM, ascending.
    pub ram: Vec<Pages>,
    /// In memory that devices bring along, ascending.
    pub devices: Vec<Pages>,
}

/// The same with the RAM that it is about, for a vCPU's thread.
pub(crate) struct Prefetch {
    pub(crate) touched: Touched,
    pub(crate) ram: GuestRam,
    /// Says which pages are to be large from then on.
    pub(crate) advise: fn(&GuestRam),
}

impl Prefetch {
    /// Gives the guest its own copies of what it will write to, all of a run at once, and enters RAM into the
    /// hypervisor's tables.
    pub(crate) fn ram<A: Arch>(&self, vcpu: &mut dyn Vcpu<A>) {
        if self.touched.ram.is_empty() {
            return;
        }
        for pages in self.touched.ram.iter().filter(|pages| pages.written) {
            let _ = self.ram.populate(GuestAddress(pages.guest), pages.len);
        }
        (self.advise)(&self.ram);
        enter(&self.touched.ram, vcpu);
    }

    /// Enters the memory of devices, which has to be mapped.
    pub(crate) fn devices<A: Arch>(&self, vcpu: &mut dyn Vcpu<A>) {
        enter(&self.touched.devices, vcpu);
    }
}

/// Enters pages into the hypervisor's tables. What it refuses is entered when the guest touches it.
fn enter<A: Arch>(pages: &[Pages], vcpu: &mut dyn Vcpu<A>) {
    for run in pages.chunk_by(|one, next| one.guest.saturating_add(one.len as u64) == next.guest) {
        let len = run.iter().map(|pages| pages.len as u64).sum();
        if let Err(HvError::Unsupported(_)) = vcpu.prefault(run[0].guest, len) {
            return;
        }
    }
}

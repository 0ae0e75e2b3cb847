//! The implementations of the contract that this host can have: its own hypervisor's, and on Linux those of others over
//! their shims.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(all(windows, target_arch = "x86_64"))]
mod windows;

use std::sync::{Mutex, OnceLock};

use cabana_hv::{Hypervisor, Probe, Verdict};

#[cfg(target_os = "linux")]
pub use linux::backends;
#[cfg(target_os = "macos")]
pub use macos::backends;
#[cfg(all(windows, target_arch = "x86_64"))]
pub use windows::backends;

/// All backends of this host: there is none for it yet.
#[cfg(not(any(target_os = "linux", target_os = "macos", all(windows, target_arch = "x86_64"))))]
pub fn backends() -> Vec<Backend> {
    Vec::new()
}

/// A backend that another one stands on, by its probe, and why a real processor must be below.
type Below = (fn() -> Probe, &'static str);

/// One implementation of the contract.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// For people.
    pub name: &'static str,
    open: fn() -> Box<dyn Hypervisor>,
    probe: &'static OnceLock<Probe>,
    /// It stands on another one, which must run on a processor for a reason.
    over: Option<Below>,
    /// Bytes of the pages in which memory is mapped and tracked.
    pub page: u64,
    /// A process has one VM at a time, for which cases wait here.
    pub(crate) one_vm: Option<&'static Mutex<()>>,
}

impl Backend {
    /// The hypervisor.
    pub fn hypervisor(&self) -> Box<dyn Hypervisor> {
        (self.open)()
    }

    /// Does a process have one VM at a time?
    pub fn has_one_vm(&self) -> bool {
        self.one_vm.is_some()
    }

    /// What its probe says, asked once.
    pub fn probe(&self) -> &Probe {
        self.probe.get_or_init(|| match self.over {
            Some((below, why)) if !below().verdict.runs_linux() => {
                let verdict = Verdict::NoDevice { why: why.to_owned() };
                Probe { hypervisor: self.name, verdict, ..below() }
            }
            _ => self.hypervisor().probe(),
        })
    }
}

//! Bare-metal guests: payloads of a few instructions that find out whether a hypervisor backend
//! keeps the contract. The cases stand in `tests/`, one `#[test]` each, and run on every backend of
//! [`backends`].
//!
//! A case that cannot run on this host prints `skipped: CASE on BACKEND: WHY` and passes.

// Guest memory is mapped into VMs and accessed while the guest may change it, and payloads are
// assembled into this crate's read-only data.
#![allow(unsafe_code)]

mod guest;
mod payload;

use std::sync::OnceLock;

use cabana_hv::{Hypervisor, Probe};

pub use guest::{Guest, Runner, boot_state, layout, thread_of};
pub use payload::Payload;

/// One implementation of the contract.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// For people.
    pub name: &'static str,
    open: fn() -> Box<dyn Hypervisor>,
    probe: &'static OnceLock<Probe>,
}

impl Backend {
    /// The hypervisor.
    pub fn hypervisor(&self) -> Box<dyn Hypervisor> {
        (self.open)()
    }

    /// What its probe says, asked once.
    pub fn probe(&self) -> &Probe {
        self.probe.get_or_init(|| self.hypervisor().probe())
    }
}

/// All backends of this host.
pub fn backends() -> Vec<Backend> {
    static KVM: OnceLock<Probe> = OnceLock::new();
    vec![Backend { name: "KVM", open: || Box::new(cabana_hv_kvm::Kvm::new()), probe: &KVM }]
}

/// What a case asks of the hypervisor beyond the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: plain instructions.
    Payloads,
    /// A processor: an instruction emulator does not carry it out, for this reason.
    Processor(&'static str),
}

/// Runs `case` on every backend that can.
pub fn on_every_backend(name: &str, needs: Needs, case: impl Fn(&Backend)) {
    for backend in &backends() {
        let verdict = &backend.probe().verdict;
        let why = match needs {
            _ if !verdict.runs_payloads() => verdict.why(),
            Needs::Processor(why) if !verdict.runs_linux() => Some(why),
            _ => None,
        };
        match why {
            Some(why) => println!("skipped: {name} on {}: {why}", backend.name),
            None => case(backend),
        }
    }
}

/// A `#[test]` that runs on every backend: `case!(name, |backend| { … })`, or with what it needs:
/// `case!(name, Needs::Processor("why"), |backend| { … })`.
#[macro_export]
macro_rules! case {
    ($(#[$doc:meta])* $name:ident, |$backend:ident| $body:block) => {
        $crate::case!($(#[$doc])* $name, $crate::Needs::Payloads, |$backend| $body);
    };
    ($(#[$doc:meta])* $name:ident, $needs:expr, |$backend:ident| $body:block) => {
        $(#[$doc])*
        #[test]
        fn $name() {
            $crate::on_every_backend(stringify!($name), $needs, |$backend| $body);
        }
    };
}

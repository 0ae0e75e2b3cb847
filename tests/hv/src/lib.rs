//! Bare-metal guests: payloads of a few instructions that find out whether a hypervisor backend
//! keeps the contract. The cases stand in `tests/`, one `#[test]` each, and run on every backend of
//! [`backends`].
//!
//! A case prints `case: NAME on BACKEND: RESULT` for each of them. One that can run on none prints
//! `skipped: WHY` and passes.

// Guest memory is mapped into VMs and accessed while the guest may change it, and payloads are
// assembled into this crate's read-only data.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod backends;
pub mod cases;
mod extra;
mod guest;
mod payload;
mod ram;
mod runner;
#[cfg(target_arch = "x86_64")]
mod x86_64;

/// What differs between processors, under the same names.
mod arch {
    #[cfg(target_arch = "aarch64")]
    pub use crate::aarch64::*;
    #[cfg(target_arch = "x86_64")]
    pub use crate::x86_64::*;
}

use std::cell::Cell;
use std::sync::PoisonError;

use arch::is_end;
pub use arch::{Guest, Processor, boot_state, layout};
pub use backends::{Backend, backends};
pub use extra::Extra;
pub use payload::Payload;
pub use ram::Ram;
pub use runner::{Runner, thread_of};

/// What a case asks of the hypervisor beyond the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: plain instructions.
    Payloads,
    /// A processor: an instruction emulator does not carry it out, for this reason.
    Processor(&'static str),
}

/// Tells at its end what came of a case on a backend; `cargo xtask test hv` makes a table of it.
struct Told<'a> {
    case: &'a str,
    backend: &'a str,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        let result = match LACKING.take() {
            _ if std::thread::panicking() => "FAILED".to_owned(),
            Some(what) => format!("skipped: it has no {what}"),
            None => "ok".to_owned(),
        };
        println!("case: {} on {}: {result}", self.case, self.backend);
    }
}

thread_local! {
    /// What the hypervisor of the case in work lacks, so that there was nothing to test.
    static LACKING: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Says that this case has tested nothing, because its hypervisor has no such thing and need not.
pub fn lacks(what: &'static str) {
    LACKING.set(Some(what));
}

/// Runs `case` on every backend that can.
pub fn on_every_backend(name: &str, needs: Needs, case: impl Fn(&Backend)) {
    let mut ran = false;
    for backend in &backends() {
        let verdict = &backend.probe().verdict;
        let why = match needs {
            _ if !verdict.runs_payloads() => verdict.why(),
            Needs::Processor(why) if !verdict.runs_linux() => Some(why),
            _ => None,
        };
        if let Some(why) = why {
            println!("case: {name} on {}: skipped: {why}", backend.name);
            continue;
        }
        let _told = Told { case: name, backend: backend.name };
        let _alone = backend.one_vm.map(|vm| vm.lock().unwrap_or_else(PoisonError::into_inner));
        case(backend);
        ran = true;
    }
    if !ran {
        println!("skipped: no backend of this host can run it");
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

//! The engine for Node.js: the native half of the package `cabana`, whose other half is `lib/index.js`.
//! `docs/node.md` is the guide.
//!
//! Descriptions go in and out as JSON text of the one schema (`cabana-api`), bytes as buffers. Calls that wait
//! are promises with a thread behind each, so that neither JavaScript nor Node's own few threads wait for a
//! machine. A process has one thread for its whole life, which reads the next event when it is asked to:
//! what nobody asks for stays in the guest.

// What napi's macros make of a function is unsafe code; there is none of our own.
#![allow(unsafe_code)]
// What comes from JavaScript is the function's own.
#![allow(clippy::needless_pass_by_value)]

pub mod machine;
pub mod process;
mod promise;

use cabana_api::EngineSpec;
use napi_derive::napi;

use crate::machine::Machine;
use crate::promise::{Failure, parse};

/// Makes machines.
#[napi]
#[derive(Debug)]
pub struct Engine(cabana_engine::Engine);

#[napi]
impl Engine {
    /// An engine, by an `EngineSpec`.
    #[napi(constructor)]
    pub fn new(spec: String) -> Result<Self, Failure> {
        let spec: EngineSpec = parse("engine", &spec)?;
        Ok(Self(cabana_engine::Engine::new(spec.into()).map_err(promise::failure)?))
    }

    /// A machine, by a `MachineSpec`. Nothing starts yet.
    #[napi]
    pub fn machine(&self, spec: String) -> Result<Machine, Failure> {
        let made = self.0.machine(parse("machine", &spec)?).map_err(promise::failure)?;
        Ok(Machine::new(made))
    }
}

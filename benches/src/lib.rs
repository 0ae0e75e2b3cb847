//! The parts of the benchmarks: guests as small as can be, processes with a clock beside them, what
//! KVM's tracepoints and `/proc` say of them, and the report.
//!
//! `cargo xtask bench boot` builds and runs it all; the program behind is `cabana-bench`, which
//! measures where it stands, in the lab or on the machine itself.

pub mod budget;
pub mod compare;
pub mod error;
pub mod exec;
pub mod fs;
pub mod guests;
pub mod kvm_trace;
pub mod machine_memory;
pub mod measure;
pub mod memory;
pub mod net;
pub mod page;
pub mod peer;
pub mod plot;
pub mod process;
pub mod products;
pub mod report;
pub mod restore;
mod sampler;
pub mod stage;
pub mod stream;
mod trace;

pub use error::Error;

//! The engine: boots a Linux machine and runs commands in it.
//!
//! ```no_run
//! use cabana_sandbox::{Command, Machine, MachineConfig, ProcessEvent, Scratch};
//!
//! # fn main() -> Result<(), cabana_sandbox::Error> {
//! let machine = Machine::start(&MachineConfig {
//!     kernel: "vmlinux".into(),
//!     agent: "agent.cpio".into(),
//!     image: "root.erofs".into(),
//!     ..MachineConfig::default()
//! })?;
//! let mut process = machine.exec(&Command::new(["uname", "-a"]))?;
//! loop {
//!     match process.next_event()? {
//!         ProcessEvent::Stdout(bytes) => print!("{}", String::from_utf8_lossy(bytes)),
//!         ProcessEvent::Exited(status) => break println!("exited: {}", status.shell_code()),
//!         _ => {}
//!     }
//! }
//! machine.shutdown()
//! # }
//! ```

mod backend;
mod bare;
mod config;
mod console;
mod error;
mod fate;
mod folders;
mod guest;
mod idle;
mod machine;
mod network;
mod park;
mod process;
mod session;
mod snapshot;
mod stream;
mod touched;
mod trust;
mod watch;

pub use backend::{KERNEL_FILE, hypervisor, probe, use_hypervisor};
pub use bare::{BareConfig, BareDisk, BareMachine};
pub use cabana_egress_host as egress;
pub use cabana_hv::{Probe, Verdict};
pub use cabana_journal as journal;
pub use cabana_machine::{ExitCounts, Mark, Observation, Outcome, Timeline};
pub use cabana_netstack::{MAX_SESSIONS, NetworkCounters};
pub use cabana_os::process::{raise_open_files, random_bytes, share_heap};
pub use cabana_platform::SerialInput;
pub use cabana_protocol::{
    Cause, Entry, Event, Exec as Command, ExitStatus, ProcessInfo, SessionCard, SessionInfo,
    SessionLimits, SessionSpec, ShareMount, TtySize,
};
pub use config::{
    CableConfig, MachineConfig, NetworkConfig, Publish, Scratch, Share, ShareJournal,
};
pub use console::ConsoleTail;
pub use error::Error;
pub use guest::{Guest, Introduction, Link, Stamps};
pub use machine::{Machine, Vmm};
pub use network::{NetworkHost, machine_card, session_card};
pub use process::{Process, ProcessEvent, ProcessInput};
pub use session::{Listener, Pull, Pulled, Push, Tunnel};
pub use snapshot::RestoreConfig;
pub use stream::{Duplex, Stream};
pub use trust::trusting;

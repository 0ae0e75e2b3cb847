//! The engine that an application links: machines, sessions in them, processes, shares.
//!
//! ```no_run
//! use cabana_engine::{CommandSpec, Engine, EngineConfig, MachineSpec};
//!
//! # fn main() -> Result<(), cabana_engine::Error> {
//! let engine = Engine::new(EngineConfig::default())?;
//! // Nothing runs yet: the machine starts with its first command.
//! let machine = engine.machine(MachineSpec::default())?;
//! let output = machine.exec(&CommandSpec::new(["uname", "-a"]))?.output()?;
//! println!("{} {}", output.exit.status(), String::from_utf8_lossy(&output.stdout));
//! machine.shutdown()
//! # }
//! ```
//!
//! Events and streams, while a command runs:
//!
//! ```no_run
//! use cabana_engine::{CommandSpec, Engine, EngineConfig, MachineSpec, ProcessEvent, ShareSpec};
//!
//! # fn main() -> Result<(), cabana_engine::Error> {
//! let engine = Engine::new(EngineConfig::default())?;
//! let machine = engine.machine(MachineSpec {
//!     shares: vec![ShareSpec { host: "/home/me/src".into(), guest: "/src".into(), read_only: true, journal: None }],
//!     ..MachineSpec::default()
//! })?;
//! let events = machine.events();
//! std::thread::spawn(move || events.into_iter().for_each(|event| println!("{event:?}")));
//! let mut process = machine.exec(&CommandSpec {
//!     cwd: Some("/src".to_owned()),
//!     stdin: true,
//!     ..CommandSpec::new(["sh"])
//! })?;
//! process.input().write_stdin(b"ls; exit\n");
//! while let Some(event) = process.next_event()? {
//!     if let ProcessEvent::Stdout(bytes) = event {
//!         print!("{}", String::from_utf8_lossy(bytes));
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Many parties in one machine, each with a user, a home and limits of its own:
//!
//! ```no_run
//! use cabana_engine::{CommandSpec, Engine, EngineConfig, MachineSpec, SessionLimits, SessionSpec};
//!
//! # fn main() -> Result<(), cabana_engine::Error> {
//! let machine = Engine::new(EngineConfig::default())?.machine(MachineSpec::default())?;
//! let session = machine.create_session(SessionSpec {
//!     name: "chat-1".to_owned(),
//!     limits: SessionLimits { memory: Some(256 << 20), ..SessionLimits::default() },
//!     ..SessionSpec::default()
//! })?;
//! session.place().copy_in("/home/me/data.csv".as_ref(), "data.csv")?;
//! let output = session.exec(&CommandSpec::new(["wc", "-l", "data.csv"]))?.output()?;
//! let forward = session.place().forward(([127, 0, 0, 1], 8080).into(), ([127, 0, 0, 1], 80).into())?;
//! println!("{} is the session's port 80", forward.listens());
//! session.remove()
//! # }
//! ```
//!
//! # Lives and deaths
//!
//! - Each machine has a worker process, which owns its memory and its vCPUs and is handed open handles
//!   only. The worker confines itself, and ends with this process, however that ends.
//! - A machine starts at its first command. A start has no deadline: it ends with an error when the guest
//!   or the worker does; [`Machine::stop`] from another thread ends it too.
//! - When a machine or its worker dies, what ran in it fails with an [`Error`], [`MachineEvent::Died`]
//!   tells of it, and the next command starts a fresh machine with the same shares, sessions and
//!   persistent disk.
//! - Every handle may be dropped at any time, from any thread: a dropped [`Process`] is hung up, the last
//!   clone of a [`Machine`] stops it. Every call that waits ends when the machine does.

mod background;
mod bare;
mod claims;
mod config;
mod copy;
mod disk;
mod engine;
mod error;
mod events;
mod folders;
mod forward;
mod live;
mod machine;
mod network;
mod place;
mod process;
mod running;
mod session;
mod verdicts;
mod worker;

pub use bare::{Bare, BareSpec};
pub use cabana_api::{
    BackgroundStatus, CommandSpec, Copied, Exit, MachineEvent, MachineSpec, MachineState,
    MachineStatus, NetworkEvent, NetworkSpec, NetworkStatus, NetworkVerdict, NetworkWhat,
    PolicySpec, PublishSpec, Remember, SessionLimits, SessionSpec, SessionStatus, ShareSpec,
    TtySize,
};
pub use cabana_os::proxies;
pub use config::{EngineConfig, WorkerKind};
pub use engine::Engine;
pub use error::Error;
pub use events::Events;
pub use forward::Forward;
pub use machine::Machine;
pub use network::egress_policy;
pub use place::{Listener, Place, Tunnel};
pub use process::{Output, Process, ProcessEvent, ProcessInput};
pub use session::Session;

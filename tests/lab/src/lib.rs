//! The lab: runs any command where a real kvm-amd exists, on a machine without usable hardware
//! virtualization.
//!
//! QEMU's software CPU (TCG) emulates AMD's nested SVM and boots an outer Linux, Debian's cloud kernel,
//! in which `/dev/kvm` is the kernel's own. Commands see the host's files under the same paths, with
//! the folders chosen in [`Options::writable`] open for writing; they get the caller's folder,
//! environment, input and signals, and give back output and exit status. One outer machine, a [`Lab`],
//! serves any number of commands, several at once.
//!
//! ```no_run
//! use cabana_lab::{Command, Lab, Options, Parts};
//!
//! let parts = Parts::prepare(&mut |step| eprintln!("lab: {step}"))?;
//! let lab = Lab::start(&parts, &Options::default())?;
//! let output = lab.output(Command::new(["ls", "-l", "/dev/kvm"]))?;
//! assert_eq!(output.status.shell_code(), 0);
//! # Ok::<(), cabana_lab::Error>(())
//! ```

// `unsafe` is needed for what happens between fork and exec, and to read the time stamp counter.
#![allow(unsafe_code)]

mod apt;
mod architecture;
mod children;
mod clock;
mod command;
mod error;
pub mod initramfs;
mod kernel;
mod machine;
mod monitor;
mod parts;
mod qemu;
pub mod tunnel;

pub use architecture::Architecture;
pub use cabana_protocol::{ExitStatus, TtySize};
pub use command::{Command, Control, Output, Running};
pub use error::Error;
pub use machine::{HugePages, Lab, Options};
pub use parts::{Parts, debian_kernel};

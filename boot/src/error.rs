//! Why a kernel cannot be booted.

use std::io;
use std::path::PathBuf;

use cabana_memory::MemoryError;

/// One sentence each, for the person who gave the file.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is not a kernel that Cabana can boot: {why}", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it is in place of one.
        why: &'static str,
    },
    /// A kernel of another architecture.
    #[error("{} is a kernel for {architecture}, and this machine is {machine}", path.display())]
    ForeignArchitecture {
        /// The file.
        path: PathBuf,
        /// What it was built for.
        architecture: String,
        /// What this machine is.
        machine: &'static str,
    },
    /// The file ends before what its headers promise.
    #[error("{} is truncated: it ends before {what}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// It does not fit.
    #[error(
        "{} bytes of guest memory are too little for {what}, which needs {needed} bytes; \
         give the machine more memory",
        available
    )]
    TooLittleMemory {
        /// What does not fit.
        what: String,
        /// RAM that it would take, in bytes from address 0.
        needed: u64,
        /// RAM that there is, in bytes from address 0.
        available: u64,
    },
    /// The kernel would cut the command line off.
    #[error("the kernel command line is {len} bytes long; the kernel takes at most {max}")]
    CommandLine {
        /// Its length.
        len: usize,
        /// The kernel's limit.
        max: usize,
    },
    /// A NUL or a line break in the command line.
    #[error("the kernel command line has a control character in it")]
    CommandLineCharacter,
    /// More processors than the table or the guest's interrupt controller can name.
    #[error("{0} vCPUs are more than the processor table can name ({1})")]
    TooManyCpus(u32, u32),
    /// The device tree cannot name what the machine has.
    #[error("the device tree cannot be written: {0}")]
    DeviceTree(String),
    /// Guest RAM could not be written.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

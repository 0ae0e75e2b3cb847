//! The guest kernel: its configuration, and the code that builds it.
//!
//! The configuration is a set of fragments (`config/*.config`), each group of options with its
//! reason, merged onto `allnoconfig`. The source is Debian's package `linux-source-6.12` in whatever
//! revision the mirror serves. [`build`] unpacks, configures, verifies that every option that a
//! fragment asks for holds, compiles, takes out the initialization that no guest needs
//! (`config/left-out.initcalls`), and hands over the kernel; [`inputs_hash`] names the result
//! before it is built, so that a cache can be asked first.
//!
//! ```no_run
//! use cabana_kernel::{Architecture, Options, build, inputs_hash};
//!
//! let options = Options::new(Architecture::X86_64, "/var/tmp/kernel-work", "/var/tmp/kernel");
//! println!("key {}", inputs_hash(&options)?);
//! let built = build(&options, &mut |progress| eprintln!("{progress}"))?;
//! println!("{}", built.kernel.display());
//! # Ok::<(), cabana_kernel::Error>(())
//! ```

mod architecture;
mod build;
mod compile;
mod edits;
mod elf;
mod error;
mod fragment;
mod image;
mod inputs;
mod left_out;
mod order;
mod progress;
mod source;
mod toolchain;

use std::path::PathBuf;

pub use architecture::Architecture;
pub use build::{Built, build};
pub use error::{Error, Unmet};
pub use fragment::Fragment;
pub use inputs::{Inputs, inputs_hash};
pub use order::boot_order;
pub use progress::{Progress, Stage};
pub use source::{DEFAULT_SOURCE, SOURCE_PACKAGE};

/// What to build, where, and with how many hands.
#[derive(Clone, Debug)]
pub struct Options {
    /// The guest's processor.
    pub architecture: Architecture,
    /// The work folder: the unpacked source and the objects (1 GB) while it runs, logs after.
    /// One build at a time uses it; a second one is refused with [`Error::Busy`].
    pub work: PathBuf,
    /// The folder that holds the result. It appears whole, at the end, or not at all; an older
    /// result of the same name is replaced.
    pub output: PathBuf,
    /// The source tarball.
    pub source: PathBuf,
    /// The configuration, later fragments over earlier ones.
    pub fragments: Vec<Fragment>,
    /// Initialization functions that the finished kernel does not call.
    pub left_out: Vec<String>,
    /// Compilers that run at once.
    pub jobs: usize,
    /// Also build a bzImage, which other VMMs want; of x86-64 alone. It costs a compression more.
    pub bz_image: bool,
}

impl Options {
    /// A guest kernel from Debian's tarball, on all processors, without a bzImage.
    pub fn new(
        architecture: Architecture,
        work: impl Into<PathBuf>,
        output: impl Into<PathBuf>,
    ) -> Self {
        Self {
            architecture,
            work: work.into(),
            output: output.into(),
            source: PathBuf::from(DEFAULT_SOURCE),
            fragments: Fragment::of(architecture),
            left_out: left_out::parse(left_out::GUEST),
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            bz_image: false,
        }
    }
}

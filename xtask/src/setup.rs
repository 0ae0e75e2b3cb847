//! Setting a machine up: each step looks first whether there is anything to do.

use std::path::PathBuf;
use std::thread;

use cabana_kernel::Architecture;
use cabana_lab::Parts;

use crate::artifacts::{self, Guests, musl};
use crate::cargo;
use crate::failure::Failure;
use crate::progress::{Board, say};
use crate::{kvm, node, packages, target};

/// Sets up everything for machines of a processor: the host's own, or what the Arm lab can run.
pub(crate) fn everything(architecture: Architecture) -> Result<(), Failure> {
    if architecture != Architecture::HOST {
        tools()?;
        let guests = Guests::of(architecture)?;
        static_target(architecture)?;
        return guest(&guests, || Ok(()));
    }
    cabana()?;
    node::install();
    if kvm::runs_linux().is_err() {
        Parts::prepare(&mut |step| say(&format!("lab: {step}")))?;
    }
    Ok(())
}

/// Sets up what `cabana run` needs, and returns the binary.
pub(crate) fn cabana() -> Result<PathBuf, Failure> {
    tools()?;
    let guests = Guests::of(Architecture::HOST)?;
    guest(&guests, || {
        cargo::build_binary("cabana-pac", "cabana-pac", &["--release"])?;
        cargo::build_binary("cabana-cli", "cabana", &["--release"])
    })
}

/// Sets up what guests are made of, and then something else.
fn guest<T>(guests: &Guests, then: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let board = Board::new();
    thread::scope(|scope| {
        // The kernel needs the processors and the image the network, so they go well together.
        let kernel = scope.spawn(|| artifacts::kernel(guests, &board));
        let image = scope.spawn(|| artifacts::image(guests, &board));
        let own = artifacts::agent(guests).and_then(|()| then());
        let gone = |_| Err(Failure::Sentence("a build ended without a word".into()));
        kernel.join().unwrap_or_else(gone)?;
        image.join().unwrap_or_else(gone)?;
        own
    })
}

/// Installs the packages and the Rust target that building needs.
pub(crate) fn tools() -> Result<(), Failure> {
    packages::install_missing()?;
    static_target(Architecture::HOST)
}

/// Makes sure that static programs of a processor can be built.
pub(crate) fn static_target(architecture: Architecture) -> Result<(), Failure> {
    target::missing(&musl(architecture))?.map_or(Ok(()), |why| Err(Failure::Sentence(why)))
}

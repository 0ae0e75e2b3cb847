//! Setting a machine up: each step looks first whether there is anything to do.

use std::path::PathBuf;
use std::process::Command;
use std::thread;

use cabana_lab::Parts;
use cabana_store::Store;

use crate::artifacts::{self, MUSL};
use crate::cargo;
use crate::failure::{Failure, output, succeed};
use crate::progress::{Board, say};
use crate::{kvm, node, packages};

/// Sets up everything.
pub(crate) fn everything() -> Result<(), Failure> {
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
    let store = Store::open()?;
    let board = Board::new();
    thread::scope(|scope| {
        // The kernel needs the processors and the image the network, so they go well together.
        let kernel = scope.spawn(|| artifacts::kernel(&store, &board));
        let image = scope.spawn(|| artifacts::image(&store, &board));
        let own = artifacts::agent(&store)
            .and_then(|()| cargo::build_binary("cabana-cli", "cabana", &["--release"]));
        let gone = |_| Err(Failure::Sentence("a build ended without a word".into()));
        kernel.join().unwrap_or_else(gone)?;
        image.join().unwrap_or_else(gone)?;
        own
    })
}

/// Installs the packages and the Rust target that building needs.
pub(crate) fn tools() -> Result<(), Failure> {
    packages::install_missing()?;
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let target = PathBuf::from(sysroot.trim()).join("lib/rustlib").join(MUSL);
    if target.exists() {
        return Ok(());
    }
    say(&format!("rust: adding the target {MUSL}"));
    succeed(Command::new("rustup").args(["target", "add", MUSL]))
}

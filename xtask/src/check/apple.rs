//! What a link for macOS needs on a machine that is no Mac: an SDK of stubs that say what the system's libraries have.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cargo;
use crate::failure::{Failure, succeed};
use crate::progress::say;

/// Brings the stub of libSystem, from Python's package index. Later versions' are of a form that Rust's linker does not
/// read.
const ZIG: &str = "ziglang==0.15.1";
const LIB_SYSTEM: &str = "ziglang/lib/libc/darwin/libSystem.tbd";

/// Takes one file out of an archive: archive, file, where to.
const UNPACK: &str = "import sys, zipfile; \
                      open(sys.argv[3], 'wb').write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))";

/// The frameworks that the crates name, with the symbols that are used of them: a linker that finds another wanted
/// says so.
const FRAMEWORKS: &[(&str, &[&str])] = &[("CoreFoundation", &[]), ("SystemConfiguration", &[])];

/// Makes cargo link for a target of Apple's with Rust's own linker and the stubs.
pub(super) fn link_with_stubs(cargo: &mut Command, target: &str) -> Result<(), Failure> {
    let of = target.to_uppercase().replace('-', "_");
    cargo.env("SDKROOT", sdk()?);
    cargo.env(format!("CARGO_TARGET_{of}_LINKER"), "rust-lld");
    cargo.env(format!("CARGO_TARGET_{of}_RUSTFLAGS"), "-Clinker-flavor=ld64.lld");
    Ok(())
}

/// The folder of stubs, made if it is not there.
fn sdk() -> Result<PathBuf, Failure> {
    let sdk = cargo::target_folder().join("tools/macos-stubs");
    let libraries = sdk.join("usr/lib");
    let system = libraries.join("libSystem.tbd");
    fs::create_dir_all(&libraries).map_err(Failure::file(&libraries))?;
    if !system.exists() {
        lib_system(&sdk, &system)?;
    }
    // Parts of libSystem under names of their own.
    for part in ["libc.tbd", "libm.tbd"] {
        let part = libraries.join(part);
        fs::copy(&system, &part).map_err(Failure::file(&part))?;
    }
    write(&libraries.join("libiconv.tbd"), "/usr/lib/libiconv.2.dylib", &[])?;
    for (name, symbols) in FRAMEWORKS {
        let folder = format!("System/Library/Frameworks/{name}.framework");
        let own = sdk.join(&folder);
        fs::create_dir_all(&own).map_err(Failure::file(&own))?;
        write(&own.join(format!("{name}.tbd")), &format!("/{folder}/Versions/A/{name}"), symbols)?;
    }
    Ok(sdk)
}

fn lib_system(sdk: &Path, file: &Path) -> Result<(), Failure> {
    say(&format!("check Cross: fetching {ZIG} for its stub of libSystem"));
    let fetched = sdk.join("fetched");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"]).arg(&fetched).arg(ZIG);
    succeed(pip.stdout(Stdio::null()))?;
    let mut entries = fs::read_dir(&fetched).map_err(Failure::file(&fetched))?.flatten();
    let wheel = entries
        .next()
        .map(|entry| entry.path())
        .ok_or_else(|| Failure::Sentence(format!("pip fetched no {ZIG}")))?;
    // Under its name only once it is whole.
    let part = file.with_extension("part");
    let mut unpack = Command::new("python3");
    succeed(unpack.args(["-c", UNPACK]).arg(wheel).arg(LIB_SYSTEM).arg(&part))?;
    fs::rename(&part, file).map_err(Failure::file(file))?;
    fs::remove_dir_all(&fetched).map_err(Failure::file(&fetched))
}

/// A stub of version 4: LLVM's `llvm/lib/TextAPI`.
fn write(file: &Path, install_name: &str, symbols: &[&str]) -> Result<(), Failure> {
    let targets = "[ x86_64-macos, arm64-macos ]";
    let symbols = symbols.join(", ");
    let text = format!(
        "--- !tapi-tbd\ntbd-version: 4\ntargets: {targets}\ninstall-name: '{install_name}'\n\
         exports:\n  - targets: {targets}\n    symbols: [ {symbols} ]\n...\n"
    );
    fs::write(file, text).map_err(Failure::file(file))
}

//! What it takes to compile C and to link for macOS on a machine that is no Mac: a compiler, and an SDK of stubs that say
//! what the system's libraries have.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cargo;
use crate::failure::Failure;
use crate::wheel;

/// The compiler, which brings headers and a stub of libSystem, from Python's package index. Later versions' stub is of a
/// form that Rust's linker does not read.
const ZIG: &str = "ziglang==0.15.1";

/// The frameworks that the crates name, with the symbols that are used of them: a linker that finds another wanted
/// says so.
const FRAMEWORKS: &[(&str, &[&str])] = &[
    (
        "CoreFoundation",
        &[
            "_CFArrayCreate",
            "_CFArrayGetCount",
            "_CFArrayGetTypeID",
            "_CFArrayGetValueAtIndex",
            "_CFDataGetBytePtr",
            "_CFDataGetLength",
            "_CFDictionaryCreate",
            "_CFDictionaryGetValueIfPresent",
            "_CFEqual",
            "_CFGetTypeID",
            "_CFNumberGetTypeID",
            "_CFNumberGetValue",
            "_CFRelease",
            "_CFRetain",
            "_CFStringCreateWithBytes",
            "_CFStringCreateWithBytesNoCopy",
            "_CFStringGetBytes",
            "_CFStringGetCStringPtr",
            "_CFStringGetLength",
            "_CFStringGetTypeID",
            "_kCFAllocatorDefault",
            "_kCFAllocatorNull",
            "_kCFBooleanFalse",
            "_kCFBooleanTrue",
            "_kCFTypeArrayCallBacks",
            "_kCFTypeDictionaryKeyCallBacks",
            "_kCFTypeDictionaryValueCallBacks",
        ],
    ),
    (
        "Security",
        &[
            "_SecCertificateCopyData",
            "_SecCopyErrorMessageString",
            "_SecTrustSettingsCopyCertificates",
            "_SecTrustSettingsCopyTrustSettings",
        ],
    ),
    (
        "SystemConfiguration",
        &[
            "_SCDynamicStoreCopyProxies",
            "_SCDynamicStoreCreateWithOptions",
            "_kSCDynamicStoreUseSessionKeys",
        ],
    ),
];

/// Lets build scripts compile C for a target of Apple's.
pub(super) fn compile(cargo: &mut Command, target: &str) -> Result<(), Failure> {
    let zig = zig()?;
    let of = target.replace('-', "_");
    let processor = target.split_once('-').map_or(target, |(processor, _)| processor);
    let program = zig.join("ziglang/zig").display().to_string();
    // Its checks of undefined behaviour want a library of its own.
    let compiler = format!("{program} cc -target {processor}-macos -fno-sanitize=undefined");
    cargo.env(format!("CC_{of}"), compiler).env(format!("AR_{of}"), format!("{program} ar"));
    // It names targets otherwise than other compilers.
    cargo.env("CRATE_CC_NO_DEFAULTS", "1");
    let cache = zig.join("cache");
    cargo.env("ZIG_GLOBAL_CACHE_DIR", &cache).env("ZIG_LOCAL_CACHE_DIR", &cache);
    Ok(())
}

/// Makes cargo link for a target of Apple's with Rust's own linker and the stubs.
pub(super) fn link_with_stubs(cargo: &mut Command, target: &str) -> Result<(), Failure> {
    let of = target.to_uppercase().replace('-', "_");
    cargo.env("SDKROOT", sdk()?);
    cargo.env(format!("CARGO_TARGET_{of}_LINKER"), "rust-lld");
    cargo.env(format!("CARGO_TARGET_{of}_RUSTFLAGS"), "-Clinker-flavor=ld64.lld");
    Ok(())
}

/// The folder with the compiler, installed if it is not there.
fn zig() -> Result<PathBuf, Failure> {
    let folder = cargo::target_folder().join("tools/zig");
    wheel::install(ZIG, &folder)?;
    Ok(folder)
}

/// The folder of stubs, made anew.
fn sdk() -> Result<PathBuf, Failure> {
    let sdk = cargo::target_folder().join("tools/macos-stubs");
    let libraries = sdk.join("usr/lib");
    fs::create_dir_all(&libraries).map_err(Failure::file(&libraries))?;
    let system = zig()?.join("ziglang/lib/libc/darwin/libSystem.tbd");
    // Parts of libSystem have names of their own, too.
    for name in ["libSystem.tbd", "libc.tbd", "libm.tbd"] {
        let library = libraries.join(name);
        fs::copy(&system, &library).map_err(Failure::file(&library))?;
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

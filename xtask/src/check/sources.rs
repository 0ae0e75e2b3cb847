//! Rules about where something may stand in the sources (CONTRIBUTING.md).

use std::fs;
use std::path::{Path, PathBuf};

use super::findings;
use crate::failure::Failure;

/// Opens `unsafe` for a crate, or for less, which is not wanted: the reason stands at the root.
const OPENS_UNSAFE: &str = "allow(unsafe_code)";

/// Folders that hold no sources of ours.
const OTHER: [&str; 3] = ["target", ".git", ".ci"];

/// Reads every Rust file and every manifest of the workspace.
pub(super) fn check(workspace: &Path) -> Result<(), Failure> {
    let mut found = Vec::new();
    for path in files(workspace)? {
        let text = fs::read_to_string(&path).map_err(Failure::file(&path))?;
        let relative = path.strip_prefix(workspace).unwrap_or(&path);
        found.extend(offences(relative, &text));
    }
    findings(&found)
}

/// Rust files and manifests below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Failure::file(folder))? {
        let path = entry.map_err(Failure::file(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && !path.is_symlink() {
            if !OTHER.contains(&&*name) {
                files.extend(self::files(&path)?);
            }
        } else if name == "Cargo.toml" || name.ends_with(".rs") {
            files.push(path);
        }
    }
    Ok(files)
}

/// What is wrong with one file.
fn offences(path: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut offence = |what: &str| found.push(format!("{}: {what}", path.display()));
    if path.ends_with("Cargo.toml") {
        if text.contains("[package]") && !text.contains("[lints]\nworkspace = true") {
            offence("does not take the workspace's lints");
        }
        return found;
    }
    // This file speaks of what it looks for.
    if path.ends_with("check/sources.rs") {
        return found;
    }
    if text.contains(OPENS_UNSAFE) {
        if !is_crate_root(path) {
            offence("opens `unsafe` elsewhere than at its crate's root");
        } else if !has_reason(text) {
            offence("opens `unsafe` without a comment that gives the reason");
        }
    }
    let backends = ["cabana_hv_hvf", "cabana_hv_kvm", "cabana_hv_whp"];
    if backends.iter().any(|backend| text.contains(backend)) && !may_name_backends(path) {
        offence("names a hypervisor's backend");
    }
    found
}

/// Files that are a crate of their own: libraries, binaries, tests, benches, examples.
fn is_crate_root(path: &Path) -> bool {
    let parent = path.parent().and_then(Path::file_name).unwrap_or_default();
    let own_crates = ["bin", "tests", "benches", "examples"];
    path.ends_with("src/lib.rs")
        || path.ends_with("main.rs")
        || own_crates.iter().any(|folder| parent == *folder)
}

/// Whether a comment stands right above the line that opens `unsafe`.
fn has_reason(text: &str) -> bool {
    let mut before = "";
    for line in text.lines() {
        if line.contains(OPENS_UNSAFE) {
            return before.starts_with("//");
        }
        before = line;
    }
    false
}

/// The one place of the product that chooses a backend, the backends themselves, and what stands
/// beside the house.
fn may_name_backends(path: &Path) -> bool {
    let places = [
        "vmm/sandbox/src/backend.rs",
        "vmm/hv-hvf",
        "vmm/hv-kvm",
        "vmm/hv-whp",
        "xtask",
        "tests",
        "benches",
    ];
    places.iter().any(|place| path.starts_with(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(path: &str, text: &str) -> bool {
        !offences(Path::new(path), text).is_empty()
    }

    #[test]
    fn unsafe_opens_at_the_root_and_with_a_reason() {
        let with_reason = "//! Docs.\n\n// The reason.\n#![allow(unsafe_code)]\n";
        assert!(!told("vmm/os/src/lib.rs", with_reason));
        assert!(told("vmm/os/src/sys/linux.rs", with_reason));
        assert!(told("vmm/os/src/lib.rs", "//! Docs.\n\n#![allow(unsafe_code)]\n"));
        assert!(!told("vmm/os/src/sys/linux.rs", "fn safe() {}\n"));
    }

    #[test]
    fn only_the_sandbox_names_a_backend() {
        assert!(!told("vmm/sandbox/src/backend.rs", "use cabana_hv_kvm::Kvm;"));
        assert!(told("vmm/sandbox/src/lib.rs", "use cabana_hv_kvm::Kvm;"));
        assert!(told("devices/fs/src/lib.rs", "use cabana_hv_kvm::Kvm;"));
    }

    #[test]
    fn every_crate_takes_the_lints() {
        assert!(told("devices/fs/Cargo.toml", "[package]\nname = \"x\"\n"));
        assert!(!told("devices/fs/Cargo.toml", "[package]\n\n[lints]\nworkspace = true\n"));
        assert!(!told("Cargo.toml", "[workspace]\n"));
    }
}

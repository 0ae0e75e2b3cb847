//! Imports point down only (CONTRIBUTING.md, "Layers").

use serde_json::Value;

use super::findings;
use crate::failure::Failure;

/// What each crate may depend on. Dependencies for tests alone are free: they ship with nobody.
const ALLOWED: &[(&str, &[&str])] = &[
    // Leaves.
    ("cabana-os", &[]),
    ("cabana-protocol", &[]),
    ("cabana-egress", &[]),
    ("cabana-lapic", &[]),
    ("cabana-journal", &["os"]),
    ("cabana-snapshot", &["os"]),
    ("cabana-pac", &["os"]),
    ("cabana-store", &["os"]),
    ("cabana-egress-host", &["egress", "netstack", "pac"]),
    // The middle: cli → sandbox → machine → {boot, devices, hv} → {bus, memory} → os.
    ("cabana-memory", &["os"]),
    ("cabana-bus", &["os"]),
    ("cabana-hv", &["bus", "memory", "os"]),
    ("cabana-hv-hvf", &["hv", "hv-x86", "lapic", "os"]),
    ("cabana-hv-kvm", &["hv", "memory", "os"]),
    ("cabana-hv-whp", &["hv", "hv-x86", "os"]),
    ("cabana-hv-x86", &["hv"]),
    ("cabana-boot", &["memory", "os"]),
    ("cabana-virtio", &["bus", "memory", "os"]),
    ("cabana-platform", &["bus", "memory", "os"]),
    ("cabana-balloon", DEVICE),
    ("cabana-block", DEVICE),
    ("cabana-console", DEVICE),
    // The journal is told of what a share's guest changes.
    ("cabana-fs", &["journal", "virtio", "bus", "memory", "os"]),
    ("cabana-net", &["netstack", "virtio", "bus", "memory", "os"]),
    ("cabana-netstack", &["os"]),
    ("cabana-pmem", DEVICE),
    ("cabana-rng", DEVICE),
    ("cabana-vsock", DEVICE),
    ("cabana-machine", MACHINE),
    (
        "cabana-sandbox",
        &[
            "machine",
            "hv-hvf",
            "hv-kvm",
            "hv-whp",
            "boot",
            "hv",
            "virtio",
            "platform",
            "balloon",
            "block",
            "console",
            "fs",
            "net",
            "netstack",
            "egress-host",
            "journal",
            "snapshot",
            "pmem",
            "rng",
            "vsock",
            "bus",
            "memory",
            "os",
            "protocol",
            "store",
        ],
    ),
    ("cabana-api", &[]),
    ("cabana-worker", &["sandbox", "protocol", "os"]),
    ("cabana-engine", &["api", "worker", "sandbox", "protocol", "store", "os"]),
    ("cabana-serve", &["api", "engine", "os"]),
    ("cabana-capi", &["api", "engine"]),
    ("cabana-node", &["api", "engine"]),
    (
        "cabana-cli",
        &[
            "api", "engine", "serve", "worker", "sandbox", "builder", "journal", "os", "snapshot",
            "store",
        ],
    ),
    // The guest's side and the artifacts.
    ("cabana-agent", &["protocol"]),
    ("cabana-kernel", &["store"]),
    ("cabana-builder", &["store", "os"]),
];

/// What a virtio device may depend on: never another device.
const DEVICE: &[&str] = &["virtio", "bus", "memory", "os"];

/// What the board may depend on: no hypervisor's backend.
const MACHINE: &[&str] = &[
    "boot", "hv", "virtio", "platform", "block", "console", "fs", "pmem", "rng", "vsock", "bus",
    "memory", "os",
];

/// Tools and tests stand beside the house and may look into every room.
const FREE: &[&str] = &[
    "xtask",
    "cabana-lab",
    "cabana-shim-hvf",
    "cabana-shim-hvf-x86",
    "cabana-shim-whp",
    "cabana-shim-x86",
    "cabana-test-hv",
    "cabana-test-guest",
    "cabana-benches",
    "cabana-bench-files",
    "cabana-bench-stream",
];

/// Checks the workspace's edges as `cargo metadata` tells them.
pub(super) fn check(metadata: &Value) -> Result<(), Failure> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found: Vec<_> = packages.iter().flat_map(offences).collect();
    findings(&found)
}

/// What is wrong with one package's dependencies.
fn offences(package: &Value) -> Vec<String> {
    let name = package["name"].as_str().unwrap_or_default();
    if FREE.contains(&name) {
        return Vec::new();
    }
    let Some((_, allowed)) = ALLOWED.iter().find(|(own, _)| *own == name) else {
        return vec![format!("{name} has no place yet in xtask/src/check/layers.rs")];
    };
    let dependencies = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ships = |dependency: &&Value| dependency["kind"] != "dev" && !dependency["path"].is_null();
    let names =
        dependencies.iter().filter(ships).filter_map(|dependency| dependency["name"].as_str());
    let forbidden = names.filter(|dependency| {
        !dependency.strip_prefix("cabana-").is_some_and(|short| allowed.contains(&short))
    });
    forbidden.map(|dependency| format!("{name} must not depend on {dependency}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Value {
        let dependency = |(name, kind): &(&str, Option<&str>)| json!({ "name": name, "kind": kind, "path": format!("/w/{name}") });
        json!({ "name": name, "dependencies": dependencies.iter().map(dependency).collect::<Vec<_>>() })
    }

    #[test]
    fn a_device_must_not_import_a_device() {
        let package = package("cabana-fs", &[("cabana-virtio", None), ("cabana-block", None)]);
        assert_eq!(offences(&package), ["cabana-fs must not depend on cabana-block"]);
    }

    #[test]
    fn dependencies_of_tests_and_from_elsewhere_are_free() {
        let mut package = package("cabana-os", &[("cabana-memory", Some("dev"))]);
        package["dependencies"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "name": "libc", "kind": null }));
        assert!(offences(&package).is_empty());
    }

    #[test]
    fn only_the_sandbox_takes_a_backend() {
        assert!(offences(&package("cabana-sandbox", &[("cabana-hv-kvm", None)])).is_empty());
        assert_eq!(offences(&package("cabana-machine", &[("cabana-hv-kvm", None)])).len(), 1);
    }

    #[test]
    fn a_crate_without_a_place_is_told() {
        assert_eq!(offences(&package("cabana-new", &[])).len(), 1);
        assert!(check(&json!({ "packages": [package("cabana-new", &[])] })).is_err());
    }
}

//! The test binaries of the workspace.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cargo;
use crate::failure::Failure;

/// A test binary in the style of libtest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binary {
    /// Its package's name.
    pub package: String,
    /// The name of the file or crate that it tests.
    pub target: String,
    /// Whether it stands in a `tests` folder.
    pub is_integration_test: bool,
    /// The file to run.
    pub executable: PathBuf,
    /// The folder to run it in: its package's.
    pub folder: PathBuf,
}

/// Builds those of the packages that these arguments choose.
pub(super) fn of(packages: &[&str]) -> Result<Vec<Binary>, Failure> {
    let mut command = cargo::cargo();
    command.args(["test", "--quiet", "--no-run"]).args(packages);
    Ok(cargo::messages(&mut command)?.iter().filter_map(binary).collect())
}

/// The test binary of which a message tells, if it does.
fn binary(message: &Value) -> Option<Binary> {
    let executable = message["executable"].as_str()?.into();
    if message["profile"]["test"] != true {
        return None;
    }
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
    let target = &message["target"];
    Some(Binary {
        package: package_name(message["package_id"].as_str()?).to_owned(),
        target: target["name"].as_str()?.to_owned(),
        is_integration_test: target["kind"] == serde_json::json!(["test"]),
        executable,
        folder,
    })
}

/// The name in a package's identifier: `path+file:///a/b#name@0.1.0`, or `…/name#0.1.0` where the
/// folder has the package's name.
fn package_name(id: &str) -> &str {
    let (url, fragment) = id.rsplit_once('#').unwrap_or((id, id));
    match fragment.split_once('@') {
        Some((name, _)) => name,
        None => url.rsplit('/').next().unwrap_or(url),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_forms_of_a_package_identifier_are_read() {
        assert_eq!(package_name("path+file:///w/tests/lab#cabana-lab@0.1.0"), "cabana-lab");
        assert_eq!(package_name("path+file:///w/xtask#0.1.0"), "xtask");
    }

    #[test]
    fn only_test_binaries_count() {
        let mut message = json!({
            "executable": "/t/debug/deps/lab-1",
            "manifest_path": "/w/tests/lab/Cargo.toml",
            "package_id": "path+file:///w/tests/lab#cabana-lab@0.1.0",
            "profile": { "test": true },
            "target": { "name": "lab", "kind": ["test"] },
        });
        let found = binary(&message).unwrap();
        assert_eq!(found.package, "cabana-lab");
        assert_eq!(found.folder, Path::new("/w/tests/lab"));
        assert!(found.is_integration_test);
        message["profile"]["test"] = json!(false);
        assert_eq!(binary(&message), None);
        assert_eq!(binary(&json!({ "reason": "build-finished", "success": true })), None);
    }
}

//! The list of what an image has: `packages.tsv`, with name, version and architecture.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::error::Context;
use crate::{Base, BuildError};

/// One installed package.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    architecture: String,
}

/// Lists the packages of a tree, one to a line. Returns the text and their number.
pub(crate) fn list(base: Base, root: &Path, work: &Path) -> Result<(String, usize), BuildError> {
    let path = match base {
        Base::Debian => root.join("var/lib/dpkg/status"),
        Base::Busybox => work.join("debs"),
    };
    let text = fs::read_to_string(&path).context("read", &path)?;
    let mut packages = match base {
        Base::Debian => from_status(&text),
        Base::Busybox => text.lines().filter_map(from_file_name).collect(),
    };
    packages.sort();
    let mut table = String::from("package\tversion\tarchitecture\n");
    for Package { name, version, architecture } in &packages {
        let _ = writeln!(table, "{name}\t{version}\t{architecture}");
    }
    Ok((table, packages.len()))
}

/// Reads dpkg's database.
fn from_status(text: &str) -> Vec<Package> {
    let parse = |stanza: &str| {
        let field = |key: &str| {
            let value = stanza.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
            value.map(str::to_owned)
        };
        (field("Status")? == "install ok installed").then_some(())?;
        Some(Package {
            name: field("Package")?,
            version: field("Version")?,
            architecture: field("Architecture")?,
        })
    };
    text.split("\n\n").filter_map(parse).collect()
}

/// Reads the name of a downloaded package: `NAME_VERSION_ARCHITECTURE.deb`, a colon written `%3a`.
fn from_file_name(file: &str) -> Option<Package> {
    let mut parts = file.strip_suffix(".deb")?.split('_');
    let (name, version, architecture) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Package {
        name: name.to_owned(),
        version: version.replace("%3a", ":"),
        architecture: architecture.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sources_give_the_same_rows() {
        let folder = tempfile::tempdir().unwrap();
        let dpkg = folder.path().join("var/lib/dpkg");
        fs::create_dir_all(&dpkg).unwrap();
        fs::write(
            dpkg.join("status"),
            "Package: jq\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.6-2\n\
             Description: x\n Version: no\n\n\
             Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n\n\
             Package: bsdutils\nStatus: install ok installed\nArchitecture: amd64\n\
             Version: 1:2.38\n\n",
        )
        .unwrap();
        fs::write(
            folder.path().join("debs"),
            "bsdutils_1%3a2.38_amd64.deb\njq_1.6-2_amd64.deb\npartial\n",
        )
        .unwrap();
        let expected = "package\tversion\tarchitecture\nbsdutils\t1:2.38\tamd64\n\
                        jq\t1.6-2\tamd64\n";
        for base in [Base::Debian, Base::Busybox] {
            let (table, count) = list(base, folder.path(), folder.path()).unwrap();
            assert_eq!((table.as_str(), count), (expected, 2));
        }
    }
}

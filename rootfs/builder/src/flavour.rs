//! Flavours: which packages an image has, as small text files.
//!
//! ```text
//! # a comment
//! summary: one line for lists        suite: bookworm
//! base: debian | busybox             extends: another flavour
//! package                            # its reason
//! ```
//! One setting or one package to a line; comments start with `#`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::Context;
use crate::{BuildError, erofs, scratch, tree};

/// The flavours that come with Cabana.
const BUILT_IN: [(&str, &str); 3] = [
    ("default", include_str!("../flavours/default.list")),
    ("dev", include_str!("../flavours/dev.list")),
    ("tiny", include_str!("../flavours/tiny.list")),
];

/// Raised when the same definition leads to another image.
const BUILDER_VERSION: u32 = 1;

/// What an image is built on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Debian's essential packages and apt, installed with their maintainer scripts.
    Debian,
    /// Nothing but the named packages' files, and busybox's applets as links.
    Busybox,
}

/// A kind of image: its name, its packages, and what they stand on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flavour {
    /// The name, which is also the artifact's.
    pub name: String,
    /// One line for lists.
    pub summary: String,
    /// Debian's suite, by its code name.
    pub suite: String,
    /// What the packages stand on.
    pub base: Base,
    /// The packages that are asked for; apt adds what they depend on.
    pub packages: BTreeSet<String>,
    /// Debian's name of the guest's processor, which is the host's unless somebody says otherwise.
    pub architecture: String,
}

impl Flavour {
    /// The names of the flavours that come with Cabana, with their summaries.
    pub fn built_in() -> impl Iterator<Item = Result<Self, BuildError>> {
        BUILT_IN.iter().map(|(name, text)| Self::parse(name, text))
    }

    /// Finds a flavour by its name, or reads one from a `.list` file.
    pub fn find(name_or_path: &str) -> Result<Self, BuildError> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(name, _)| *name == name_or_path) {
            return Self::parse(name, text);
        }
        let path = Path::new(name_or_path);
        match path.file_stem().and_then(|stem| stem.to_str()) {
            Some(name) if path.extension().is_some_and(|extension| extension == "list") => {
                Self::parse(name, &fs::read_to_string(path).context("read", path)?)
            }
            _ => {
                let known: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
                Err(BuildError::NoFlavour { name: name_or_path.into(), known: known.join(", ") })
            }
        }
    }

    /// Reads a flavour's definition. `extends` names a flavour that comes with Cabana.
    pub fn parse(name: &str, text: &str) -> Result<Self, BuildError> {
        let bad = |line, problem: &str| BuildError::BadFlavour {
            flavour: name.to_owned(),
            line,
            problem: problem.to_owned(),
        };
        let (mut summary, mut suite, mut base) = (None, None, None);
        let mut packages = BTreeSet::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            let Some((key, value)) = line.split_once(':') else {
                if !line.is_empty()
                    && !packages.insert(package(line).ok_or_else(|| {
                        bad(number, "is neither a setting nor the name of a package")
                    })?)
                {
                    return Err(bad(number, "names a package a second time"));
                }
                continue;
            };
            let value = value.trim();
            match key {
                "summary" => summary = Some(value.to_owned()),
                "suite" => {
                    let suite_name = package(value);
                    suite = Some(suite_name.ok_or_else(|| bad(number, "is no suite's name"))?);
                }
                "base" => match value {
                    "debian" => base = Some(Base::Debian),
                    "busybox" => base = Some(Base::Busybox),
                    _ => return Err(bad(number, "has a base other than debian and busybox")),
                },
                "extends" if value != name => {
                    let known = BUILT_IN.iter().find(|(name, _)| *name == value);
                    let (other, text) = known.ok_or_else(|| bad(number, "extends no flavour"))?;
                    packages.extend(Self::parse(other, text)?.packages);
                }
                _ => return Err(bad(number, "has an unknown setting")),
            }
        }
        let (Some(suite), Some(base)) = (suite, base) else {
            return Err(bad(0, "(all of it) has no suite or no base"));
        };
        if packages.is_empty() {
            return Err(bad(0, "(all of it) has no package"));
        }
        Ok(Self {
            name: name.to_owned(),
            summary: summary.unwrap_or_default(),
            suite,
            base,
            packages,
            architecture: host_architecture().to_owned(),
        })
    }

    /// The same for guests with another processor, by Rust's name for it.
    #[must_use]
    pub fn for_processor(self, processor: &str) -> Self {
        Self { architecture: debian_name(processor).to_owned(), ..self }
    }

    /// SHA-256, in hexadecimal, of what the image is built from: the flavour, the architecture, and
    /// what the builder does with it.
    ///
    /// The versions of the packages are not in it, because only the mirror knows them: an image is
    /// built anew when its definition changes or when the user asks for it. The versions that it
    /// has are in its file `packages.tsv`, and the same versions make the same image, bit for bit.
    pub fn inputs_hash(&self) -> String {
        let mut hasher = Sha256::new();
        let mut add = |text: &str| {
            hasher.update(text);
            hasher.update([0]);
        };
        add(&format!("{BUILDER_VERSION} {} {} {:?}", self.architecture, self.suite, self.base));
        for list in [tree::EXCLUDED, erofs::OPTIONS, scratch::OPTIONS, scratch::QUOTA] {
            add(&list.join(" "));
        }
        self.packages.iter().for_each(|package| add(package));
        hex(&hasher.finalize())
    }
}

/// Debian's name for the host's processor.
pub(crate) fn host_architecture() -> &'static str {
    debian_name(std::env::consts::ARCH)
}

/// Debian's name for a processor.
fn debian_name(processor: &str) -> &str {
    match processor {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A package's name, by the rules of Debian Policy §5.6.1.
fn package(text: &str) -> Option<String> {
    let first = text.bytes().next()?;
    let rest = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let good = rest(first) && text.bytes().all(|byte| rest(byte) || b"+-.".contains(&byte));
    good.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_flavours_are_whole() {
        let flavours: Vec<_> = Flavour::built_in().map(Result::unwrap).collect();
        assert_eq!(flavours.len(), 3);
        assert!(flavours.iter().all(|flavour| !flavour.summary.is_empty()));
        let [default, dev, tiny] = &flavours[..] else { panic!() };
        assert!(default.packages.contains("git") && !default.packages.contains("npm"));
        assert!(dev.packages.is_superset(&default.packages));
        assert!(dev.packages.contains("build-essential"));
        assert_eq!(tiny.base, Base::Busybox);
        assert_ne!(default.inputs_hash(), dev.inputs_hash());
    }

    #[test]
    fn comments_do_not_change_the_inputs_but_packages_do() {
        let head = "suite: bookworm\nbase: debian\n";
        let parse = |text: &str| Flavour::parse("x", &format!("{head}{text}")).unwrap();
        let flavour = parse("git # reason\n\n# comment\n  jq\n");
        assert_eq!(flavour.packages, ["git", "jq"].map(String::from).into());
        assert_eq!(flavour.inputs_hash(), parse("jq\ngit").inputs_hash());
        assert_ne!(flavour.inputs_hash(), parse("jq").inputs_hash());
        assert_eq!(flavour.inputs_hash().len(), 64);
        let [own, other] = ["x86_64", "aarch64"].map(|name| flavour.clone().for_processor(name));
        assert_ne!(own.inputs_hash(), other.inputs_hash());
        assert_eq!(other.architecture, "arm64");
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, line, words) in [
            ("", 0, "no suite"),
            ("suite: x\nbase: debian", 0, "no package"),
            ("suite: x\nbase: gentoo", 2, "base other than"),
            ("suite: ../x", 1, "no suite's name"),
            ("a\n\nfoo bar", 3, "neither a setting"),
            ("a\na", 2, "second time"),
            ("--option", 1, "neither"),
            ("extends: me", 1, "unknown setting"),
            ("extends: nothing", 1, "extends no flavour"),
            ("sweet: x", 1, "unknown setting"),
        ] {
            let error = Flavour::parse("me", text).unwrap_err();
            assert!(
                matches!(&error, BuildError::BadFlavour { line: at, .. } if *at == line),
                "{text:?}: {error}"
            );
            assert!(error.to_string().contains(words), "{text:?}: {error}");
        }
        let error = Flavour::find("nothing").unwrap_err().to_string();
        assert!(error.contains("default, dev, tiny"), "{error}");
    }
}

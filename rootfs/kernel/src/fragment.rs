//! Configuration fragments: parsing, and the check that a final `.config` has what they ask for.

use std::collections::BTreeMap;

use crate::{Architecture, Error, Unmet};

/// A named piece of kernel configuration: `CONFIG_NAME=value` lines and comments.
///
/// `=n` says that an option is off. The kernel's own `# CONFIG_NAME is not set` counts as a comment,
/// so that nothing can be asked for by what looks like a remark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    name: String,
    text: String,
    options: BTreeMap<String, String>,
}

impl Fragment {
    /// Parses a fragment.
    pub fn parse(name: impl Into<String>, text: impl Into<String>) -> Result<Self, Error> {
        let (name, text) = (name.into(), text.into());
        let mut options = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (option, value) = parse_option(line).ok_or_else(|| Error::BadFragment {
                fragment: name.clone(),
                line: index + 1,
                text: line.to_owned(),
            })?;
            options.insert(option.to_owned(), value.to_owned());
        }
        Ok(Self { name, text, options })
    }

    /// The fragments of a guest kernel, as they were when this crate was built.
    pub fn of(architecture: Architecture) -> Vec<Self> {
        macro_rules! fragments {
            ($($name:literal),*) => {
                vec![$(($name, include_str!(concat!("../config/", $name, ".config")))),*]
            };
        }
        let fragments = match architecture {
            Architecture::X86_64 => fragments!(
                "base",
                "x86_64",
                "memory",
                "isolation",
                "virtio",
                "filesystems",
                "network"
            ),
            // Last, since it takes back what the others say of x86-64.
            Architecture::Aarch64 => fragments!(
                "base",
                "memory",
                "isolation",
                "virtio",
                "filesystems",
                "network",
                "aarch64"
            ),
        };
        fragments
            .into_iter()
            .map(|(name, text)| Self::parse(name, text).expect("a unit test parses each of them"))
            .collect()
    }

    /// The fragment's name, without a suffix.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The fragment as it was given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The options that it sets, and their values.
    pub fn options(&self) -> impl Iterator<Item = (&str, &str)> {
        self.options.iter().map(|(option, value)| (option.as_str(), value.as_str()))
    }
}

fn parse_option(line: &str) -> Option<(&str, &str)> {
    let (option, value) = line.split_once('=')?;
    let name = option.strip_prefix("CONFIG_")?;
    let name_is_plain =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let value_is_whole = !value.is_empty()
        && value.trim() == value
        && (!value.starts_with('"') || (value.len() > 1 && value.ends_with('"')));
    (name_is_plain && value_is_whole).then_some((option, value))
}

/// The options of a `.config`; those that are not set are absent.
pub(crate) fn parse_config(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(parse_option).collect()
}

/// Every option whose last request does not hold in the final configuration.
pub(crate) fn unmet(fragments: &[Fragment], config: &str) -> Vec<Unmet> {
    let config = parse_config(config);
    let mut wanted = BTreeMap::new();
    for fragment in fragments {
        for (option, value) in fragment.options() {
            wanted.insert(option, (value, fragment.name()));
        }
    }
    wanted
        .into_iter()
        .filter_map(|(option, (value, fragment))| {
            let found = config.get(option).copied().unwrap_or("n");
            (found != value).then(|| Unmet {
                option: option.to_owned(),
                wanted: value.to_owned(),
                found: found.to_owned(),
                fragment: fragment.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(name: &str, text: &str) -> Fragment {
        Fragment::parse(name, text).unwrap()
    }

    #[test]
    fn the_built_in_fragments_parse_and_say_each_option_once_but_for_what_arm64_takes_back() {
        for architecture in [Architecture::X86_64, Architecture::Aarch64] {
            let mut seen = BTreeMap::new();
            for fragment in &Fragment::of(architecture) {
                let name = fragment.name();
                let lines = fragment.text().lines().filter(|line| line.starts_with("CONFIG_"));
                assert_eq!(lines.count(), fragment.options().count(), "{name} repeats itself");
                for (option, value) in fragment.options() {
                    let other = seen.insert(option.to_owned(), name.to_owned());
                    let taken_back = name == "aarch64" && value == "n";
                    assert!(
                        other.is_none() || taken_back,
                        "{option} of {name} is also in {other:?}"
                    );
                }
            }
            assert!(seen.len() > 100);
        }
    }

    #[test]
    fn each_group_of_options_gives_its_reason() {
        let both = [Architecture::X86_64, Architecture::Aarch64].map(Fragment::of);
        for fragment in both.iter().flatten() {
            let groups = fragment.text().split("\n\n").filter(|group| group.contains("CONFIG_"));
            for group in groups {
                assert!(group.starts_with('#'), "{}: no reason: {group}", fragment.name());
            }
        }
    }

    #[test]
    fn comments_blanks_and_values_of_every_kind_are_read() {
        let parsed = fragment(
            "f",
            "# why\nCONFIG_A=y\n\n  CONFIG_B=n\nCONFIG_C=64\nCONFIG_D=\"a b\"\nCONFIG_E=\"\"\n\
             # CONFIG_F is not set\n",
        );
        assert_eq!(
            parsed.options().collect::<Vec<_>>(),
            [
                ("CONFIG_A", "y"),
                ("CONFIG_B", "n"),
                ("CONFIG_C", "64"),
                ("CONFIG_D", "\"a b\""),
                ("CONFIG_E", "\"\"")
            ]
        );
    }

    #[test]
    fn a_line_that_is_no_option_is_refused_with_its_number() {
        for bad in [
            "CONFIG_A",
            "FOO=y",
            "CONFIG_=y",
            "CONFIG_A=",
            "CONFIG_A =y",
            "CONFIG_A= y",
            "CONFIG_A=\"x",
            "CONFIG_A=\"",
            "CONFIG-A=y",
        ] {
            let error = Fragment::parse("f", format!("# fine\n{bad}\n")).unwrap_err();
            let Error::BadFragment { fragment, line, text } = error else { panic!("{error}") };
            assert_eq!((fragment.as_str(), line, text.as_str()), ("f", 2, bad));
        }
    }

    #[test]
    fn what_the_configuration_dropped_or_changed_is_named() {
        let fragments = [
            fragment("one", "CONFIG_KEPT=y\nCONFIG_LOST=y\nCONFIG_OFF=n\nCONFIG_FORCED=n\n"),
            fragment("two", "CONFIG_NUMBER=64\nCONFIG_TEXT=\"a\"\n"),
        ];
        let config = "CONFIG_KEPT=y\n# CONFIG_LOST is not set\nCONFIG_FORCED=y\n\
                      CONFIG_NUMBER=8\nCONFIG_TEXT=\"a\"\n";
        let unmet = unmet(&fragments, config);
        let told: Vec<_> = unmet.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "CONFIG_FORCED=n of one became y",
                "CONFIG_LOST=y of one became n",
                "CONFIG_NUMBER=64 of two became 8"
            ]
        );
        let error = Error::OptionsDropped { unmet }.to_string();
        assert!(error.contains("3 option(s)") && error.contains("CONFIG_LOST=y"), "{error}");
    }

    #[test]
    fn a_later_fragment_overrides_an_earlier_one() {
        let fragments = [fragment("base", "CONFIG_PCI=n\n"), fragment("extra", "CONFIG_PCI=y\n")];
        assert_eq!(unmet(&fragments, "CONFIG_PCI=y\n"), []);
        assert_eq!(unmet(&fragments, "")[0].fragment, "extra");
    }

    #[test]
    fn an_option_is_not_mistaken_for_a_longer_one() {
        let fragments = [fragment("f", "CONFIG_NET=y\n")];
        assert_eq!(unmet(&fragments, "CONFIG_NET_NS=y\n").len(), 1);
    }
}

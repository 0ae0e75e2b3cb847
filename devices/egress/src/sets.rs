//! Named sets of rules: what a package manager needs, as data in `sets/`.

/// Name and rules of each set, one rule a line; `#` begins a comment.
const SETS: &[(&str, &str)] = &[
    ("crates", include_str!("sets/crates.txt")),
    ("debian", include_str!("sets/debian.txt")),
    ("github", include_str!("sets/github.txt")),
    ("gitlab", include_str!("sets/gitlab.txt")),
    ("go", include_str!("sets/go.txt")),
    ("maven", include_str!("sets/maven.txt")),
    ("npm", include_str!("sets/npm.txt")),
    ("pypi", include_str!("sets/pypi.txt")),
    ("rubygems", include_str!("sets/rubygems.txt")),
    ("ubuntu", include_str!("sets/ubuntu.txt")),
];

/// The words of a set, if there is one of this name.
pub(crate) fn find(name: &str) -> Option<impl Iterator<Item = &'static str>> {
    let (_, text) = SETS.iter().find(|(own, _)| *own == name)?;
    Some(words(text))
}

/// The names of all sets.
pub(crate) fn names() -> String {
    SETS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rule;

    #[test]
    fn every_set_holds_rules_for_names_alone() {
        for (name, text) in SETS {
            let rules: Vec<_> = words(text).map(|word| Rule::parse(word).unwrap()).collect();
            assert!(!rules.is_empty(), "{name}");
            for rule in rules {
                assert!(matches!(rule.target(), crate::rule::Target::Name(_)), "{name}: {rule}");
            }
        }
    }

    #[test]
    fn no_set_could_be_taken_for_a_host() {
        assert!(SETS.iter().all(|(name, _)| !name.contains('.')));
        assert!(find("pypi").is_some() && find("none").is_none());
    }
}

//! Host names and patterns for them.

use std::fmt;

/// The longest host name in text (RFC 1035 §2.3.4: 255 bytes on the wire).
const MAX_NAME: usize = 253;
/// The longest label (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;

/// A host name in its one spelling: lower-case ASCII, no dot at its end, at least one label that is no
/// number, so that it is never an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(String);

impl DomainName {
    /// Reads a name as people and protocols write it: any case, with or without the dot of the root.
    /// `None` for what is no host name: empty or too long labels, other characters than letters, digits,
    /// `-` and `_`, and anything that some program would take for an IPv4 address (a last label that
    /// begins with a digit and holds none but hexadecimal ones; WHATWG URL §3.5).
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() || text.len() > MAX_NAME || !text.split('.').all(is_label) {
            return None;
        }
        let last = text.rsplit('.').next()?;
        (!looks_numeric(last)).then(|| Self(text.to_ascii_lowercase()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_label(label: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=MAX_LABEL).contains(&label.len()) && label.bytes().all(allowed)
}

/// Whether a URL parser would go on to read an IPv4 address: `1`, `0x7f`, `017`.
fn looks_numeric(label: &str) -> bool {
    let hexadecimal = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    match hexadecimal {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which names a rule means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DomainPattern {
    /// `*`: every name.
    Any,
    /// `*.example.com`: every name below, at any depth, and not `example.com` itself.
    Below(DomainName),
    /// `example.com`: this name alone.
    Exactly(DomainName),
}

impl DomainPattern {
    /// Reads `NAME`, `*.NAME` or `*`; `None` for anything else, so `ex*mple.com` is no pattern.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Any);
        }
        match text.strip_prefix("*.") {
            Some(parent) => DomainName::parse(parent).map(Self::Below),
            None => DomainName::parse(text).map(Self::Exactly),
        }
    }

    /// Whether the rule means this name.
    pub fn matches(&self, name: &DomainName) -> bool {
        match self {
            Self::Any => true,
            Self::Exactly(own) => own == name,
            Self::Below(parent) => {
                name.0.strip_suffix(&parent.0).is_some_and(|rest| rest.ends_with('.'))
            }
        }
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Below(parent) => write!(f, "*.{parent}"),
            Self::Exactly(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DomainName {
        DomainName::parse(text).unwrap()
    }

    #[test]
    fn a_name_has_one_spelling() {
        assert_eq!(name("PyPI.org."), name("pypi.org"));
        assert_eq!(name("_sip.xn--bcher-kva.example").as_str(), "_sip.xn--bcher-kva.example");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(64);
        let longer = vec!["a"; 128].join(".");
        for text in
            ["", ".", "..", "a..b", ".a", "a b", "bücher.example", "a/b", "a:1", "a\0", "a@b"]
        {
            assert_eq!(DomainName::parse(text), None, "{text:?}");
        }
        assert_eq!(DomainName::parse(&long), None);
        assert_eq!(DomainName::parse(&longer), None);
    }

    #[test]
    fn what_a_program_may_take_for_an_address_is_no_name() {
        for text in ["127.0.0.1", "2130706433", "0x7f.1", "0x7f000001", "017700000001", "1.2.3.4."]
        {
            assert_eq!(DomainName::parse(text), None, "{text:?}");
        }
        assert!(DomainName::parse("1.2.3.4.example").is_some());
        assert!(DomainName::parse("127.0.0.1.nip.io").is_some());
    }

    #[test]
    fn a_wildcard_means_whole_labels_below() {
        let pattern = DomainPattern::parse("*.Example.com").unwrap();
        assert!(pattern.matches(&name("a.example.com")));
        assert!(pattern.matches(&name("a.b.example.com")));
        assert!(!pattern.matches(&name("example.com")));
        assert!(!pattern.matches(&name("badexample.com")));
        assert!(!pattern.matches(&name("a.example.com.evil.org")));
    }

    #[test]
    fn a_star_stands_alone_or_first() {
        for text in ["a.*.com", "ex*mple.com", "**", "*example.com", "*."] {
            assert_eq!(DomainPattern::parse(text), None, "{text:?}");
        }
        assert!(DomainPattern::parse("*").unwrap().matches(&name("any.thing")));
    }
}

//! What hosts make of names, as data: the server has the rules of the host that it runs on, and the tests
//! have those of all. Linux takes any bytes but `/` and NUL, and so do the rules for it.
//!
//! **Windows** has names of text that lack some characters, do not end in a dot or a space and are no
//! device's. In place of an offending character stands the one 0xF000 above it, in Unicode's private use
//! area, as WSL and Cygwin have it; of a device's name it is the third. The guest sees the name as it
//! wrote it. Names of the host that are no such spelling of anything pass as they are; a guest that writes
//! such a spelling itself is refused, so that one file never has two names.
//!
//! **Case and form.** Windows and macOS find a name by any case of it, macOS also by any of Unicode's
//! normalization forms, and both keep the spelling. All spellings of a name have one
//! [key](NameRules::key); the inode says whether two names are really one.

use std::borrow::Cow;

use unicode_normalization::UnicodeNormalization;

use crate::wire::{Errno, Result};

/// What the host's file systems make of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameRules {
    /// Names are text: bytes that are not UTF-8 are none.
    text: bool,
    /// What Windows cannot have is spelt with private characters.
    spelt: bool,
    /// A name is found by any case of it.
    any_case: bool,
    /// A name is found by any normalization form of it.
    any_form: bool,
}

/// Private characters stand this far above those that they stand for.
const PRIVATE: u32 = 0xf000;
/// Characters that no name on Windows has, besides control characters. (A slash is in no name at all.)
const ILLEGAL: &str = "<>:\"|?*\\";
/// What Windows takes for a device, whatever follows behind a dot. `COM` and `LPT` have a digit.
const DEVICES: [&str; 6] = ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"];
const PORTS: [&str; 2] = ["COM", "LPT"];
const PORT_DIGITS: &str = "123456789\u{b9}\u{b2}\u{b3}";
/// The character of a device's name that is replaced, counted from zero: each has one.
const OF_DEVICE: usize = 2;

impl NameRules {
    /// Any bytes, each name by its own spelling alone.
    pub const LINUX: Self = Self { text: false, spelt: false, any_case: false, any_form: false };
    /// NTFS and its kind.
    pub const WINDOWS: Self = Self { text: true, spelt: true, any_case: true, any_form: false };
    /// APFS, as it is formatted unless asked otherwise.
    pub const MACOS: Self = Self { text: true, spelt: false, any_case: true, any_form: true };

    /// What the host calls what the guest calls `name`, one component of a path. EILSEQ if it cannot have
    /// such a name.
    pub(crate) fn to_host(self, name: &[u8]) -> Result<Cow<'_, [u8]>> {
        if !self.text {
            return Ok(Cow::Borrowed(name));
        }
        let text = str::from_utf8(name).map_err(|_| Errno::EILSEQ)?;
        if !self.spelt {
            return Ok(Cow::Borrowed(name));
        }
        let spelling = spell(text);
        if said(&spelling) != text {
            return Err(Errno::EILSEQ);
        }
        Ok(match spelling {
            Cow::Borrowed(_) => Cow::Borrowed(name),
            Cow::Owned(spelling) => Cow::Owned(spelling.into_bytes()),
        })
    }

    /// What the guest calls what the host calls `name`.
    pub(crate) fn to_guest(self, name: &[u8]) -> Cow<'_, [u8]> {
        match str::from_utf8(name).map(said) {
            Ok(Cow::Owned(said)) if self.spelt => Cow::Owned(said.into_bytes()),
            _ => Cow::Borrowed(name),
        }
    }

    /// What all spellings have in common by which the host finds a name.
    pub(crate) fn key(self, name: &[u8]) -> Cow<'_, [u8]> {
        let Some(text) = str::from_utf8(name).ok().filter(|_| self.any_case) else {
            return Cow::Borrowed(name);
        };
        if text.is_ascii() {
            return Cow::Owned(name.to_ascii_lowercase());
        }
        let folded = text.chars().flat_map(char::to_lowercase);
        let key: String = if self.any_form { folded.nfd().collect() } else { folded.collect() };
        Cow::Owned(key.into_bytes())
    }
}

/// A name as Windows can have it.
fn spell(name: &str) -> Cow<'_, str> {
    let last = name.chars().count().saturating_sub(1);
    let is_device = is_device(name);
    let offends = |(at, character): (usize, char)| {
        character < ' '
            || ILLEGAL.contains(character)
            || at == last && matches!(character, '.' | ' ')
            || at == OF_DEVICE && is_device
    };
    if !name.chars().enumerate().any(offends) {
        return Cow::Borrowed(name);
    }
    let private = |character: char| char::from_u32(PRIVATE + u32::from(character));
    name.chars()
        .enumerate()
        .map(|(at, character)| match private(character) {
            Some(private) if offends((at, character)) => private,
            _ => character,
        })
        .collect()
}

/// What a spelling says: the name that has it. Owned if that is another than the spelling.
fn said(spelling: &str) -> Cow<'_, str> {
    let is_private = |character: char| (PRIVATE + 1..PRIVATE + 0x80).contains(&character.into());
    if !spelling.contains(is_private) {
        return Cow::Borrowed(spelling);
    }
    let public = |character: char| match character {
        private if is_private(private) => {
            char::from_u32(u32::from(private) - PRIVATE).unwrap_or(private)
        }
        other => other,
    };
    let name: String = spelling.chars().map(public).collect();
    // Dots alone are no name, and what would be spelt otherwise is no spelling.
    if matches!(name.as_str(), "." | "..") || spell(&name) != spelling {
        return Cow::Borrowed(spelling);
    }
    Cow::Owned(name)
}

/// Does Windows take it for a device? Then its first characters are ASCII.
fn is_device(name: &str) -> bool {
    let base = name.split('.').next().unwrap_or_default().trim_end_matches(' ');
    let is_port = |port: &&str| {
        let (Some(start), Some(digit)) = (base.get(..port.len()), base.get(port.len()..)) else {
            return false;
        };
        start.eq_ignore_ascii_case(port)
            && digit.chars().count() == 1
            && PORT_DIGITS.contains(digit)
    };
    DEVICES.iter().any(|device| base.eq_ignore_ascii_case(device)) || PORTS.iter().any(is_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelling(name: &str) -> String {
        let host = NameRules::WINDOWS.to_host(name.as_bytes()).unwrap();
        String::from_utf8(host.into_owned()).unwrap()
    }

    #[test]
    fn names_that_windows_cannot_have_are_spelt_so_that_it_can() {
        for (name, expected) in [
            ("plain.txt", "plain.txt"),
            ("über ünï", "über ünï"),
            ("a:b", "a\u{f03a}b"),
            ("<>:\"|?*\\", "\u{f03c}\u{f03e}\u{f03a}\u{f022}\u{f07c}\u{f03f}\u{f02a}\u{f05c}"),
            ("line\nfeed\u{1}", "line\u{f00a}feed\u{f001}"),
            ("dot.", "dot\u{f02e}"),
            ("dots...", "dots..\u{f02e}"),
            ("space ", "space\u{f020}"),
            (".hidden", ".hidden"),
            ("...", "..\u{f02e}"),
            ("CON", "CO\u{f04e}"),
            ("con.txt", "co\u{f06e}.txt"),
            ("nul .tar.gz", "nu\u{f06c} .tar.gz"),
            ("Com7", "Co\u{f06d}7"),
            ("lpt\u{b2}.log", "lp\u{f074}\u{b2}.log"),
            ("conout$", "co\u{f06e}out$"),
            ("console", "console"),
            ("COM", "COM"),
            ("COM10", "COM10"),
            ("com0", "com0"),
        ] {
            assert_eq!(spelling(name), expected, "{name:?}");
            assert_eq!(&*NameRules::WINDOWS.to_guest(expected.as_bytes()), name.as_bytes());
        }
    }

    /// Every spelling has one name and every name one spelling, whatever stands in them.
    #[test]
    fn no_two_names_are_one_file() {
        let letters = ["C", "O", "N", "1", ".", " ", ":", "\u{f03a}", "\u{f02e}", "\u{f04e}", "é"];
        let mut names: Vec<String> = vec![String::new()];
        let mut from = 0;
        for _ in 0..4 {
            let to = names.len();
            for at in from..to {
                names.extend(letters.map(|letter| format!("{}{letter}", names[at])));
            }
            from = to;
        }
        let rules = NameRules::WINDOWS;
        let mut seen = std::collections::HashMap::new();
        for name in names.iter().filter(|name| !matches!(name.as_str(), "" | "." | "..")) {
            let guest = rules.to_guest(name.as_bytes());
            assert!(!matches!(&*guest, b"." | b".."), "{name:?}");
            // What the host can have is found by the name that the guest is shown for it.
            if spell(name) == name.as_str() {
                assert_eq!(rules.to_host(&guest).as_deref(), Ok(name.as_bytes()), "{name:?}");
            }
            if let Ok(host) = rules.to_host(name.as_bytes()) {
                let host = host.into_owned();
                assert_eq!(&*rules.to_guest(&host), name.as_bytes(), "{name:?}");
                if let Some(other) = seen.insert(host, name) {
                    panic!("{name:?} and {other:?} have one spelling");
                }
            }
        }
        assert!(seen.len() > 1000);
    }

    #[test]
    fn what_is_not_text_is_refused_where_names_are_text() {
        let name = b"\xff\xfe";
        assert_eq!(&*NameRules::LINUX.to_host(name).unwrap(), name);
        assert_eq!(NameRules::WINDOWS.to_host(name), Err(Errno::EILSEQ));
        assert_eq!(NameRules::MACOS.to_host(name), Err(Errno::EILSEQ));
        assert_eq!(NameRules::WINDOWS.to_host("a\u{f03a}".as_bytes()), Err(Errno::EILSEQ));
        for rules in [NameRules::LINUX, NameRules::WINDOWS, NameRules::MACOS] {
            assert_eq!(&*rules.to_guest(name), name);
        }
    }

    #[test]
    fn all_spellings_of_a_name_have_one_key() {
        let same = |rules: NameRules, one: &str, other: &str| {
            rules.key(one.as_bytes()) == rules.key(other.as_bytes())
        };
        let (nfc, nfd) = ("\u{e9}t\u{e9}", "e\u{301}te\u{301}");
        for (one, other, linux, windows, macos) in [
            ("Read.me", "READ.ME", false, true, true),
            ("ÉTÉ", "été", false, true, true),
            (nfc, nfd, false, false, true),
            (nfc, "E\u{301}TE\u{301}", false, false, true),
            ("a", "b", false, false, false),
            ("\u{1100}\u{1161}", "\u{ac00}", false, false, true),
        ] {
            assert_eq!(same(NameRules::LINUX, one, other), linux, "{one:?} {other:?}");
            assert_eq!(same(NameRules::WINDOWS, one, other), windows, "{one:?} {other:?}");
            assert_eq!(same(NameRules::MACOS, one, other), macos, "{one:?} {other:?}");
        }
    }
}

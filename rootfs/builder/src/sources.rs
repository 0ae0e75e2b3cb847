//! Which of the host's apt sources are Debian's.
//!
//! A host often has other sources too, with newer packages of the same names: they would make the
//! image differ from host to host. Only sources of the wanted suite with Debian's `main` component
//! count, and their packages must be signed by Debian's own keys.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::BuildError;

/// Debian's keys, from the package debian-archive-keyring.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One repository: where it is, and which suite of it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Source {
    suite: String,
    uri: String,
}

/// Writes, in deb822 form, the sources of a suite out of `file`, or else of the host's apt.
pub(crate) fn debian(suite: &str, file: Option<&Path>) -> Result<String, BuildError> {
    let files = match file {
        Some(file) => vec![file.to_path_buf()],
        None => host_files(),
    };
    let mut sources = BTreeSet::new();
    for path in &files {
        let Ok(text) = fs::read_to_string(path) else { continue };
        let one_line = path.extension().is_some_and(|extension| extension == "list");
        let found = if one_line { one_line_style(&text) } else { deb822_style(&text) };
        sources.extend(found.into_iter().filter(|source| belongs(&source.suite, suite)));
    }
    if sources.iter().all(|source| source.suite != suite) {
        let searched: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
        let searched = if searched.is_empty() { "/etc/apt".into() } else { searched.join(", ") };
        return Err(BuildError::NoSource { suite: suite.to_owned(), searched });
    }
    let mut text = String::new();
    for Source { suite, uri } in sources {
        let _ = writeln!(
            text,
            "Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n"
        );
    }
    Ok(text)
}

/// The files that apt reads, in its order.
fn host_files() -> Vec<PathBuf> {
    let folder = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    let mut files: Vec<_> = folder
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "list" || end == "sources"))
        .collect();
    files.sort();
    files.insert(0, "/etc/apt/sources.list".into());
    files.retain(|path| path.exists());
    files
}

/// Whether a suite is the wanted one or its updates.
fn belongs(suite: &str, wanted: &str) -> bool {
    let rest = suite.strip_prefix(wanted);
    matches!(rest, Some("" | "-updates" | "-security"))
}

/// Whether a `Signed-By` value, or its absence, can be Debian's.
fn may_be_debians(signed_by: &str) -> bool {
    signed_by.is_empty() || signed_by.contains("debian-archive")
}

/// Reads the classic form: `deb [options] URI SUITE COMPONENT…`.
fn one_line_style(text: &str) -> Vec<Source> {
    let parse = |line: &str| {
        let line = line.split('#').next()?.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match line.strip_prefix('[') {
            Some(line) => line.split_once(']')?,
            None => ("", line),
        };
        let signed_by = options.split_whitespace().find_map(|it| it.strip_prefix("signed-by="));
        let mut words = rest.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        (may_be_debians(signed_by.unwrap_or_default()) && words.any(|word| word == "main"))
            .then(|| Source { uri: uri.to_owned(), suite: suite.to_owned() })
    };
    text.lines().filter_map(parse).collect()
}

/// Reads the deb822 form: stanzas of `Key: value` lines, continued by indented ones.
fn deb822_style(text: &str) -> Vec<Source> {
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let mut sources = Vec::new();
    for stanza in lines.split(|line| line.trim().is_empty()) {
        let field = |wanted: &str| {
            let is_field = |line: &&str| {
                let key = line.split(':').next().unwrap_or_default();
                line.contains(':') && key.eq_ignore_ascii_case(wanted)
            };
            let Some(at) = stanza.iter().position(is_field) else { return String::new() };
            let mut value = stanza[at][wanted.len() + 1..].to_owned();
            for more in stanza[at + 1..].iter().take_while(|line| line.starts_with([' ', '\t'])) {
                value.push_str(more);
            }
            value
        };
        let has = |key: &str, wanted: &str| field(key).split_whitespace().any(|it| it == wanted);
        let enabled = !has("Enabled", "no");
        let debians = has("Types", "deb") && has("Components", "main");
        if !(enabled && debians && may_be_debians(field("Signed-By").trim())) {
            continue;
        }
        for uri in field("URIs").split_whitespace() {
            for suite in field("Suites").split_whitespace() {
                sources.push(Source { uri: uri.to_owned(), suite: suite.to_owned() });
            }
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIN: &str = "http://mirror.test/debian";

    fn source(uri: &str, suite: &str) -> Source {
        Source { uri: uri.to_owned(), suite: suite.to_owned() }
    }

    #[test]
    fn the_classic_form() {
        let text = "# deb http://mirror.test/debian bookworm main\n\
                    deb http://mirror.test/debian bookworm main contrib # comment\n\
                    deb-src http://mirror.test/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/k/node.gpg] http://node.test nodistro main\n\
                    deb [trusted=yes] http://mirror.test/debian bookworm-updates main\n\
                    deb http://other.test bookworm stable\n\
                    deb [broken\n";
        let expected = [source(MAIN, "bookworm"), source(MAIN, "bookworm-updates")];
        assert_eq!(one_line_style(text), expected);
    }

    #[test]
    fn the_deb822_form() {
        let text = "Types: deb deb-src\n# comment\nURIs: http://mirror.test/debian\n\
                    Suites: bookworm\n bookworm-updates\nComponents: main contrib\n\
                    Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
                    types: deb\nuris: http://node.test\nsuites: bookworm\ncomponents: main\n\
                    signed-by: /k/node.gpg\n\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://off.test\nSuites: bookworm\n\
                    Components: main\n";
        let expected = [source(MAIN, "bookworm"), source(MAIN, "bookworm-updates")];
        assert_eq!(deb822_style(text), expected);
    }

    #[test]
    fn other_suites_are_left_out_and_a_missing_one_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.list");
        fs::write(
            &file,
            "deb http://mirror.test/debian bookworm main\n\
             deb http://mirror.test/debian bookworm-backports main\n\
             deb http://mirror.test/debian bookworm-pgdg main\n\
             deb http://mirror.test/debian-security bookworm-security main\n",
        )
        .unwrap();
        let text = debian("bookworm", Some(&file)).unwrap();
        assert_eq!(text.matches("Types:").count(), 2);
        assert_eq!(text.matches(KEYRING).count(), 2);
        assert!(text.contains("Suites: bookworm-security"));

        let error = debian("trixie", Some(&file)).unwrap_err();
        assert!(matches!(error, BuildError::NoSource { .. }), "{error}");
        assert!(error.to_string().contains("x.list"), "{error}");
    }
}

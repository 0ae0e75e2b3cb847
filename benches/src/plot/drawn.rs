//! Pictures read back, for tests.

use std::collections::BTreeMap;

use super::Plot;

/// One element of a picture.
#[derive(Debug)]
pub(super) struct Element {
    pub(super) tag: String,
    attributes: BTreeMap<String, String>,
    /// What stands directly behind its start.
    pub(super) text: String,
}

impl Element {
    pub(super) fn text(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    pub(super) fn number(&self, name: &str) -> f64 {
        self.text(name).parse().unwrap_or_else(|_| panic!("no {name} in {self:?}"))
    }
}

/// All elements of a picture's file, which has to be well formed.
pub(super) fn elements(plot: &Plot) -> Vec<Element> {
    let svg = plot.file();
    assert!(!svg.contains("NaN") && !svg.contains("inf\""), "{svg}");
    let (mut open, mut all) = (Vec::new(), Vec::new());
    for part in svg.split('<').skip(1) {
        let (inside, text) = part.split_once('>').expect("each tag ends");
        assert!(!text.contains('>'), "{text}");
        if let Some(tag) = inside.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(tag), "{svg}");
            continue;
        }
        let (tag, attributes) =
            inside.trim_end_matches('/').split_once(' ').unwrap_or((inside, ""));
        if !inside.ends_with('/') {
            open.push(tag.to_owned());
        }
        let pieces: Vec<&str> = attributes.split('"').collect();
        let pairs = pieces.chunks_exact(2).map(|pair| {
            let name = pair[0].trim().strip_suffix('=').expect("a name and a value");
            (name.to_owned(), plain(pair[1]))
        });
        all.push(Element { tag: tag.to_owned(), attributes: pairs.collect(), text: plain(text) });
    }
    assert!(open.is_empty(), "{open:?} in {svg}");
    all
}

/// Those of a class.
pub(super) fn of_class<'a>(elements: &'a [Element], class: &str) -> Vec<&'a Element> {
    let has = |element: &&Element| element.text("class").split(' ').any(|one| one == class);
    elements.iter().filter(has).collect()
}

/// Whether something written stands there.
pub(super) fn says(elements: &[Element], text: &str) -> bool {
    elements.iter().any(|element| element.tag == "text" && element.text == text)
}

fn plain(text: &str) -> String {
    let mut plain = text.trim().to_owned();
    for (escaped, sign) in [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&amp;", "&")] {
        plain = plain.replace(escaped, sign);
    }
    assert_eq!(super::escape(&plain), text.trim(), "something is not escaped");
    plain
}

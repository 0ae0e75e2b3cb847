//! Changes to the kernel's source for what no option says. Each one is small, has a reason, and stops
//! the build when the source no longer has the text that it replaces.

mod boot;
mod exits;
mod layout;
mod memory;
mod order;
mod shares;

use std::fs;
use std::path::Path;

use crate::Error;

/// A text that stands once in a file, and what takes its place.
struct Edit {
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

/// All changes.
fn edits() -> impl Iterator<Item = &'static Edit> {
    [layout::EDITS, order::EDITS, memory::EDITS, shares::EDITS, exits::EDITS, boot::EDITS]
        .into_iter()
        .flatten()
}

/// All that the changes are made of.
pub(crate) fn texts() -> impl Iterator<Item = &'static str> {
    edits().flat_map(|edit| [edit.file, edit.from, edit.to])
}

/// Makes the changes in the unpacked source.
pub(crate) fn apply(root: &Path) -> Result<(), Error> {
    edits().try_for_each(|edit| edit.apply(root))
}

impl Edit {
    fn apply(&self, root: &Path) -> Result<(), Error> {
        let path = root.join(self.file);
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let count = text.matches(self.from).count();
        if count != 1 {
            let reason = format!(
                "the text that Cabana changes in it stands there {count} times in place of once"
            );
            return Err(Error::BadResult { path, reason });
        }
        let changed = text.replace(self.from, self.to);
        fs::write(&path, changed).map_err(Error::io("write", &path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDIT: Edit = Edit { file: "a", from: "old\n", to: "new\n" };

    #[test]
    fn a_text_is_replaced_once_or_the_build_stops() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "1\nold\n2\n").unwrap();
        EDIT.apply(folder.path()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\nnew\n2\n");
        for text in ["1\n2\n", "old\nold\n"] {
            fs::write(&path, text).unwrap();
            let error = EDIT.apply(folder.path()).unwrap_err();
            assert!(matches!(error, Error::BadResult { .. }), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}

//! In place of an interpreter: there is none in this program.

/// Whether this program runs scripts.
pub(crate) const AVAILABLE: bool = false;

/// No script.
pub(super) enum Script {}

impl Script {
    pub(super) fn new(_text: &str) -> Result<Self, String> {
        Err("this program was built without scripts".to_owned())
    }

    pub(super) fn find(&self, _url: &str, _host: &str) -> Result<String, String> {
        match *self {}
    }
}

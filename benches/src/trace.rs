//! What `cabana run --trace-boot` writes.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::Error;

#[derive(Deserialize)]
pub(crate) struct Trace {
    pub(crate) marks: Vec<TraceMark>,
    pub(crate) exits: Option<TraceExits>,
}

#[derive(Deserialize)]
pub(crate) struct TraceMark {
    pub(crate) name: String,
    pub(crate) ms: f64,
}

#[derive(Deserialize)]
pub(crate) struct TraceExits {
    pub(crate) to_user_space: u64,
    pub(crate) total: Option<u64>,
}

impl Trace {
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(Error::file(path))?;
        serde_json::from_str(&text)
            .map_err(|error| Error::Content { path: path.to_owned(), why: error.to_string() })
    }
}

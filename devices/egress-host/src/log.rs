//! The log of a machine's network: one event a line, in JSON.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use cabana_egress::Event;
use serde::{Deserialize, Serialize};

use crate::gate::Listener;

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When, in milliseconds since 1970.
    pub time: u64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// Begins a log, in place of one that is there. Each event is in the file when the listener returns; a disk that
/// takes no more loses the rest.
pub(crate) fn begin(path: &Path) -> io::Result<Listener> {
    let file = Mutex::new(File::create(path)?);
    Ok(Arc::new(move |event: &Event| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let line = LogLine { time: now.as_millis() as u64, event: event.clone() };
        if let Ok(mut text) = serde_json::to_vec(&line) {
            text.push(b'\n');
            let _ = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&text);
        }
    }))
}

//! The journal of a shared folder: what a guest overwrites, truncates, renames over or deletes is kept
//! before it happens, so that the folder can be brought back to any moment.
//!
//! - [`Recorder`] writes while a guest has the share. The file server leads every change through it.
//! - [`diff`], [`rollback`], [`accept`] and [`log`] are for the host's user.
//! - [`Home`] says where journals live: out of every guest's reach.
//!
//! **The model.** Names in the share and names in the journal are one space of [`Place`]s. Removing a
//! file moves its name into the journal; replacing one does so with what was there. So all that
//! happens to names is making and moving, and a past state is found by walking the records backward.
//! What happens to contents is a [`Content`] that was: kept, or a prefix of what is there now.
//!
//! **Trust.** The records are the host's; the guest's part in them are paths, which the host resolved.
//! A rollback resolves them beneath the share's handle and follows no links.

mod accept;
mod error;
mod home;
mod kept;
mod log;
mod past;
mod plan;
mod record;
mod recorder;
mod rollback;
mod state;

use std::time::Duration;

use cabana_os::tree::Handle;

pub use accept::accept;
pub use error::JournalError;
pub use home::{Home, journals};
pub use plan::{Changed, Request, What};
pub use record::{Before, Content, Event, Ident, Place, Record};
pub use recorder::{Change, Mark, Recorder};
pub use rollback::{Outcome, rollback};

/// What one journal may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes on the disk, of records and of what is kept.
    pub bytes: u64,
    /// Records.
    pub records: u64,
    /// Older records are accepted when the journal is opened.
    pub age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 10 << 30, records: 4 << 20, age: Duration::from_secs(30 * 24 * 3600) }
    }
}

/// The records of a journal, also while a machine uses it.
pub fn log(home: &Home) -> Result<Vec<Record>, JournalError> {
    if home.log().exists() { Ok(log::read(&home.log())?.0) } else { Ok(Vec::new()) }
}

/// How the share differs from what it was, also while a machine uses the journal: then what the guest
/// is doing just now may be missing.
pub fn diff(home: &Home, request: &Request) -> Result<Vec<Changed>, JournalError> {
    let records = log(home)?;
    check_goes_back_to(&records, request.to)?;
    let refused = || JournalError::host("compare", &home.share);
    let root = Handle::of_directory(&home.share).map_err(refused())?;
    let kept = kept::Kept::open(&home.kept).map_err(refused())?;
    Ok(plan::Plan::make(&root, &kept, &records, request).map_err(refused())?.changed)
}

/// Zero is where the journal begins, wherever that is.
fn check_goes_back_to(records: &[Record], to: u64) -> Result<(), JournalError> {
    match records.first() {
        Some(first) if to != 0 && to + 1 < first.seq => {
            Err(JournalError::TooEarly { first: first.seq })
        }
        _ => Ok(()),
    }
}

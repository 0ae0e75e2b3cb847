//! Taking changes for good: their records go, and what was kept for them.

use std::collections::BTreeSet;
use std::time::Duration;

use cabana_os::process::realtime;

use crate::JournalError;
use crate::home::Home;
use crate::kept::Kept;
use crate::log::{self, Log};
use crate::record::{Content, Event, Place, Record};

/// Accepts what happened up to the record `to`, everything if that is `None`. Returns the number of
/// records that went. Nothing may use the journal meanwhile.
pub fn accept(home: &Home, to: Option<u64>) -> Result<usize, JournalError> {
    let _lock = home.lock()?;
    if home.plan().exists() {
        return Err(JournalError::Unfinished(home.share.clone()));
    }
    let (records, _) = log::read(&home.log())?;
    cut(home, &records, to.unwrap_or(u64::MAX))
}

/// Accepts what is older than `age`. The caller holds the journal's lock.
pub(crate) fn older_than(home: &Home, age: Duration) -> Result<(), JournalError> {
    if !home.log().exists() {
        return Ok(());
    }
    let (records, _) = log::read(&home.log())?;
    let oldest = realtime().saturating_sub(age).as_nanos() as u64;
    let old = records.iter().take_while(|record| record.time < oldest).last();
    old.map_or(Ok(0), |last| cut(home, &records, last.seq)).map(drop)
}

/// Leaves the records behind `to`. A process that is killed in between leaves the old file or the new
/// one; what is kept for nobody is found when the journal is cut next.
fn cut(home: &Home, records: &[Record], to: u64) -> Result<usize, JournalError> {
    let (gone, mut left): (Vec<_>, Vec<_>) =
        records.iter().cloned().partition(|record| record.seq <= to);
    if left.is_empty()
        && let Some(last) = gone.last()
    {
        // The numbers go on.
        left.push(Record { seq: last.seq + 1, event: Event::Opened, ..last.clone() });
    }
    Log::replace(&home.log(), &left)?;
    let refused = || JournalError::host("remove what was kept in", &home.kept);
    let kept = Kept::open(&home.kept).map_err(refused())?;
    let needed: BTreeSet<u64> = left.iter().filter_map(kept_for).collect();
    for number in kept.numbers().map_err(refused())? {
        if !needed.contains(&number) {
            kept.remove(number).map_err(refused())?;
        }
    }
    Ok(gone.len())
}

/// What a record has kept.
fn kept_for(record: &Record) -> Option<u64> {
    match &record.event {
        Event::Move { to: Place::Kept(number), .. } => Some(*number),
        Event::Move { over: true, .. } | Event::Change { content: Content::Kept, .. } => {
            Some(record.seq)
        }
        _ => None,
    }
}

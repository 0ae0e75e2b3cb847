//! The file of records: appended to by one process at a time, readable by others meanwhile.
//!
//! A process that is killed may leave its last record torn; who opens the file to write next cuts
//! that off. Nothing else is ever changed in it: leaving records out makes a new file, which takes
//! the old one's name.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cabana_os::file::sync_folder;
use cabana_os::process::realtime;

use crate::JournalError;
use crate::record::{Event, MAGIC, Record};

/// The file, open for appending.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    path: PathBuf,
    next: u64,
    len: u64,
    /// Not written yet: what may be lost with the process, since the folder says it too.
    later: Vec<u8>,
    scratch: Vec<u8>,
}

impl Log {
    /// Opens the file, made when missing, and reads it. The caller holds the journal's lock.
    pub(crate) fn open(path: &Path) -> Result<(Self, Vec<Record>), JournalError> {
        let refused = || JournalError::host("open", path);
        if !path.exists() {
            write_whole(path, &[]).map_err(JournalError::host("make", path))?;
        }
        let (records, whole) = read(path)?;
        let file = File::options().read(true).append(true).open(path).map_err(refused())?;
        if file.metadata().map_err(refused())?.len() > whole {
            file.set_len(whole).map_err(JournalError::host("cut the torn end off", path))?;
        }
        let next = records.last().map_or(1, |last| last.seq + 1);
        let (later, scratch) = (Vec::new(), Vec::new());
        Ok((Self { file, path: path.to_owned(), next, len: whole, later, scratch }, records))
    }

    /// The number of the next record.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Leaves numbers out, up to this one.
    pub(crate) fn skip_to(&mut self, next: u64) {
        self.next = self.next.max(next);
    }

    /// Bytes of the file.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Appends a record: it is in the host's hands when this returns. Returns its number.
    pub(crate) fn append(&mut self, session: u32, event: Event) -> io::Result<u64> {
        let record = self.record(session, event);
        let before = self.later.len();
        record.encode(&mut self.later);
        match self.flush() {
            Ok(()) => Ok(record.seq),
            Err(error) => {
                // What was promised for later stays promised; this record was not.
                self.later.truncate(before);
                Err(error)
            }
        }
    }

    /// Appends a record with the next one, or at the next flush.
    pub(crate) fn append_later(&mut self, session: u32, event: Event) {
        let record = self.record(session, event);
        record.encode(&mut self.later);
    }

    fn record(&mut self, session: u32, event: Event) -> Record {
        let seq = self.next;
        self.next += 1;
        Record { seq, time: realtime().as_nanos() as u64, session, event }
    }

    /// Writes what was left for later.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if self.later.is_empty() {
            return Ok(());
        }
        std::mem::swap(&mut self.later, &mut self.scratch);
        let written = self.file.write_all(&self.scratch);
        match written {
            Ok(()) => {
                self.len += self.scratch.len() as u64;
                self.scratch.clear();
                Ok(())
            }
            Err(error) => {
                std::mem::swap(&mut self.later, &mut self.scratch);
                // A part may have been written: the next record must not stand behind it.
                self.file.set_len(self.len)?;
                Err(error)
            }
        }
    }

    /// Brings the file to the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// A second handle, to sync without holding anybody up.
    pub(crate) fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Makes the file one of these records alone; numbers go on.
    pub(crate) fn replace(path: &Path, records: &[Record]) -> Result<(), JournalError> {
        write_whole(path, records).map_err(JournalError::host("write", path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The records of the file and the bytes that they take. A torn record at its end is none; anything
/// else that is no record is damage.
pub(crate) fn read(path: &Path) -> Result<(Vec<Record>, u64), JournalError> {
    let bytes = fs::read(path).map_err(JournalError::host("read", path))?;
    let damaged = |at, why| JournalError::Damaged { path: path.to_owned(), at, why };
    if !bytes.starts_with(MAGIC) {
        return Err(damaged(0, "it does not begin as a journal of this version does"));
    }
    let mut at = MAGIC.len();
    let mut records: Vec<Record> = Vec::new();
    while let Some((record, len)) = Record::decode(&bytes[at..]) {
        if records.last().is_some_and(|last| last.seq >= record.seq) {
            return Err(damaged(at, "the numbers do not ascend"));
        }
        records.push(record);
        at += len;
    }
    // What is torn is the last record, and nothing whole stands behind it.
    let behind = (at + 1..bytes.len()).find(|from| Record::decode(&bytes[*from..]).is_some());
    match behind {
        Some(_) => Err(damaged(at, "a record does not match its checksum")),
        None => Ok((records, at as u64)),
    }
}

fn write_whole(path: &Path, records: &[Record]) -> io::Result<()> {
    let mut bytes = MAGIC.to_vec();
    for record in records {
        record.encode(&mut bytes);
    }
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_folder(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> Event {
        Event::Opened
    }

    #[test]
    fn a_torn_end_is_cut_off_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut log, records) = Log::open(&path).unwrap();
        assert!(records.is_empty());
        assert_eq!(log.append(0, opened()).unwrap(), 1);
        log.append_later(0, opened());
        assert_eq!(read(&path).unwrap().0.len(), 1);
        assert_eq!(log.append(0, opened()).unwrap(), 3);
        drop(log);
        let whole = fs::read(&path).unwrap();
        assert_eq!(read(&path).unwrap().1, whole.len() as u64);
        for len in MAGIC.len()..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            let (log, records) = Log::open(&path).unwrap();
            assert!(records.len() < 3);
            assert_eq!(log.next(), records.len() as u64 + 1);
            assert_eq!(fs::metadata(&path).unwrap().len(), log.len());
        }
        let mut damaged = whole.clone();
        damaged[MAGIC.len() + 14] ^= 1;
        fs::write(&path, &damaged).unwrap();
        assert!(matches!(Log::open(&path), Err(JournalError::Damaged { at: 16, .. })));
        fs::write(&path, "something else").unwrap();
        assert!(matches!(Log::open(&path), Err(JournalError::Damaged { at: 0, .. })));
    }
}

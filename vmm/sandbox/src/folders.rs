//! The folders of the host's that a guest sees, and the journals of those that have one.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cabana_fs::FileServer;
use cabana_journal::{Limits, Recorder};

use crate::guest::share_name;
use crate::{Error, Share, ShareJournal};

/// The file server of a machine.
#[derive(Debug)]
pub(crate) struct Folders {
    server: Arc<FileServer>,
    /// By their ids. A folder that is shown twice has one.
    journals: Mutex<HashMap<String, Weak<Recorder>>>,
}

impl Folders {
    /// A file server with these folders.
    pub(crate) fn of(shares: &[Share]) -> Result<Self, Error> {
        let folders = Self { server: Arc::new(FileServer::new()), journals: Mutex::default() };
        // All are looked at before the first share is there: no journal may lie in one.
        let journals = shares.iter().filter_map(|share| share.journal.as_ref());
        for journal in journals {
            journal.home.check_out_of_reach(shares.iter().map(|share| share.host.as_path()))?;
        }
        for (index, share) in shares.iter().enumerate() {
            let name = share_name(index);
            folders.attach(&name, &share.host, share.read_only, share.journal.as_ref())?;
        }
        Ok(folders)
    }

    pub(crate) fn server(&self) -> &Arc<FileServer> {
        &self.server
    }

    /// Shows one more folder. That its journal, if it has one, and those of others are out of reach is the caller's
    /// to know.
    pub(crate) fn attach(
        &self,
        name: &str,
        path: &Path,
        read_only: bool,
        journal: Option<&ShareJournal>,
    ) -> Result<(), Error> {
        let share = cabana_fs::Share { name: name.to_owned(), path: path.to_owned(), read_only };
        let journal =
            journal.filter(|_| !read_only).map(|journal| self.open(journal)).transpose()?;
        Ok(self.server.attach_with_journal(&share, journal)?)
    }

    pub(crate) fn detach(&self, name: &str) -> Result<(), Error> {
        Ok(self.server.detach(name)?)
    }

    fn open(&self, journal: &ShareJournal) -> Result<Arc<Recorder>, Error> {
        let mut journals = self.journals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = journals.get(&journal.home.id).and_then(Weak::upgrade) {
            return Ok(open);
        }
        let limits = Limits { bytes: journal.bytes, ..Limits::default() };
        let recorder = Arc::new(Recorder::open(&journal.home, limits)?);
        journals.insert(journal.home.id.clone(), Arc::downgrade(&recorder));
        Ok(recorder)
    }
}

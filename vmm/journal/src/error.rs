//! What can go wrong, each in a sentence.

use std::io;
use std::path::PathBuf;

/// A journal that cannot be used as asked.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// There is none.
    #[error("{0} has no journal; `cabana share list` names those that there are")]
    NoJournal(String),
    /// Somebody else has it.
    #[error(
        "the journal of {0} is in use by a running machine or another command; wait for its end, or end it"
    )]
    InUse(PathBuf),
    /// It would lie where a guest reaches it.
    #[error(
        "cannot keep a journal of {share}: {journal} lies in the shared folder {within}; set CABANA_STATE \
         to a folder outside of all shares", share = share.display(), journal = journal.display(),
        within = within.display()
    )]
    Reachable {
        /// The folder.
        share: PathBuf,
        /// Where its journal would be.
        journal: PathBuf,
        /// The share that holds it.
        within: PathBuf,
    },
    /// A rollback was interrupted.
    #[error(
        "a rollback of {path} was interrupted; `cabana share rollback {path}` completes it", path = .0.display()
    )]
    Unfinished(PathBuf),
    /// The file is not what it should be.
    #[error(
        "the journal {path} is damaged at byte {at}: {why}; the records before are whole, and \
         what is kept stands beside it", path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: usize,
        /// What is wrong there.
        why: &'static str,
    },
    /// The point in time lies before the journal's first record.
    #[error("the journal goes back to record {first} only; choose a later moment")]
    TooEarly {
        /// The earliest point that can be named.
        first: u64,
    },
    /// The host refuses.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Host {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

impl JournalError {
    /// Says what was tried on what.
    pub(crate) fn host<P: Into<PathBuf>>(
        what: &'static str,
        path: P,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Host { what, path, source }
    }
}

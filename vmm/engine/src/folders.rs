//! The folders that a running machine shows, what its worker reaches of the host's, and the journals of those that
//! have one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cabana_api::{MachineSpec, ShareSpec};
use cabana_os::{AsHandle, BorrowedHandle, OwnedHandle, file};
use cabana_sandbox::journal::{Home, JournalError, journals};
use cabana_worker::link::Role;

use crate::Error;
use crate::worker::Handles;

/// By their names in the file server.
#[derive(Debug, Default)]
pub(crate) struct Folders {
    shown: BTreeMap<String, Folder>,
    added: u64,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    journal: Option<Home>,
}

/// A folder, open for a worker.
#[derive(Debug)]
pub(crate) struct Opened {
    folder: OwnedHandle,
    journal: Option<Journal>,
}

#[derive(Debug)]
struct Journal {
    bytes: u64,
    folder: OwnedHandle,
    kept: OwnedHandle,
}

impl Folders {
    /// Adds a folder of the machine's start; its name in the file server.
    pub(crate) fn begin(&mut self, share: &ShareSpec) -> Result<(String, Opened), Error> {
        let name = format!("share{}", self.shown.len());
        let opened = self.insert(&name, share, home(share)?)?;
        Ok((name, opened))
    }

    /// Adds a folder while the machine runs; its name in the file server.
    pub(crate) fn add(
        &mut self,
        spec: &MachineSpec,
        share: &ShareSpec,
    ) -> Result<(String, Opened), Error> {
        check_reach(spec, share)?;
        let home = home(share)?;
        if let Some(home) = &home {
            self.check_journal_reach(spec, home)?;
        }
        let name = format!("live{}", self.added);
        self.added += 1;
        let opened = self.insert(&name, share, home)?;
        Ok((name, opened))
    }

    /// Forgets a folder that is no longer shown, or never was.
    pub(crate) fn remove(&mut self, name: &str) {
        self.shown.remove(name);
    }

    fn insert(
        &mut self,
        name: &str,
        share: &ShareSpec,
        home: Option<Home>,
    ) -> Result<Opened, Error> {
        let folder = open_folder(&share.host)?;
        let paths =
            || self.shown.values().map(|folder| folder.path.as_path()).chain([&*share.host]);
        let homes = self.shown.values().filter_map(|folder| folder.journal.as_ref()).chain(&home);
        for home in homes {
            home.check_out_of_reach(paths()).map_err(refused)?;
        }
        let journal = match (&home, share.journal) {
            (Some(home), Some(bytes)) => {
                let (folder, kept) = (open_folder(&home.folder)?, open_folder(&home.kept)?);
                Some(Journal { bytes, folder, kept })
            }
            _ => None,
        };
        self.shown.insert(name.to_owned(), Folder { path: share.host.clone(), journal: home });
        Ok(Opened { folder, journal })
    }

    /// The worker has to reach a journal too: one that it has from the start, or all.
    fn check_journal_reach(&self, spec: &MachineSpec, home: &Home) -> Result<(), Error> {
        let known = |folder: &Folder| folder.journal.as_ref().is_some_and(|other| other == home);
        let kept = home.kept.starts_with(&home.folder) || is_below(&home.kept, &spec.share_roots);
        if self.shown.values().any(known) || (spec.journals && kept) {
            return Ok(());
        }
        let share = home.share.display();
        Err(Error::Invalid(if spec.journals {
            let kept = home.kept.display();
            format!(
                "the journal of {share} keeps things in {kept}, which lies below no share root of the machine; share \
                 {share} from the machine's start, or add a root above it"
            )
        } else {
            format!(
                "{share} cannot get a journal now: the machine's worker reaches no journals; describe the machine with \
                 `journals`, or share the folder from its start"
            )
        }))
    }
}

impl Opened {
    /// How much the journal may take, if there is one.
    pub(crate) fn journal(&self) -> Option<u64> {
        self.journal.as_ref().map(|journal| journal.bytes)
    }

    /// What goes with a request to show it, in the order of the link.
    pub(crate) fn handles(&self) -> Vec<BorrowedHandle<'_>> {
        let journal = self.journal.iter().flat_map(|journal| [&journal.folder, &journal.kept]);
        std::iter::once(&self.folder).chain(journal).map(AsHandle::as_handle).collect()
    }

    /// Gathers the same for a machine's start.
    pub(crate) fn gather(self, share: &ShareSpec, handles: &mut Handles) {
        let name = share.host.display().to_string();
        let journal = self.journal();
        let ShareSpec { guest, read_only, .. } = share.clone();
        handles.add(Role::Share { guest, read_only, journal }, &name, self.folder);
        if let Some(journal) = self.journal {
            let name = format!("the journal of {name}");
            handles.add(Role::Journal, &name, journal.folder);
            handles.add(Role::Journal, name, journal.kept);
        }
    }
}

/// The folder of all journals, made when missing.
pub(crate) fn all_journals() -> Result<OwnedHandle, Error> {
    let path = journals();
    let what = "the folder of journals";
    std::fs::create_dir_all(&path).map_err(|source| Error::Open {
        what,
        path: path.clone(),
        source,
    })?;
    open_folder(&path)
}

/// Where a folder's journal is, made when missing; `None` if it is to have none.
fn home(share: &ShareSpec) -> Result<Option<Home>, Error> {
    if share.journal.is_none() || share.read_only {
        return Ok(None);
    }
    Home::make(&journals(), &share.host).map(Some).map_err(refused)
}

fn refused(error: JournalError) -> Error {
    cabana_sandbox::Error::from(error).into()
}

/// Whether the worker, which is confined, reaches a folder: below a share of its machine, read-only if that
/// is, or below a folder of `share_roots`.
fn check_reach(spec: &MachineSpec, share: &ShareSpec) -> Result<(), Error> {
    let real = |path: &Path| {
        let what = "the shared folder";
        path.canonicalize().map_err(|source| Error::Open { what, path: path.to_owned(), source })
    };
    let wanted = real(&share.host)?;
    let shares = spec.shares.iter().filter(|other| share.read_only || !other.read_only);
    if is_below(&wanted, shares.map(|other| &other.host).chain(&spec.share_roots)) {
        return Ok(());
    }
    Err(Error::OutsideShareRoots { path: share.host.clone() })
}

/// Whether a path without links lies below one of these folders, which may have some.
fn is_below<'a>(path: &Path, folders: impl IntoIterator<Item = &'a PathBuf>) -> bool {
    let mut folders = folders.into_iter();
    folders.any(|folder| folder.canonicalize().is_ok_and(|folder| path.starts_with(folder)))
}

pub(crate) fn open_folder(path: &Path) -> Result<OwnedHandle, Error> {
    let what = "the shared folder";
    let opened = file::open_folder(path);
    Ok(opened.map_err(|source| Error::Open { what, path: path.to_owned(), source })?.into())
}

//! Where journals live: a folder of the user's state for each shared folder, found by that folder's
//! path or by the journal's id.
//!
//! What is kept stands in the same folder if that is on the share's file system and mount, where
//! keeping a file is giving it one more name. Else it stands beside the share, if the user may make a
//! folder there. Else (the share is a whole file system) it stands in the state folder and is copied.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::{env, fmt::Write};

use cabana_os::file::try_lock;
use cabana_os::tree::{Handle, InodeStat, path_bytes, path_from_bytes};
use sha2::{Digest, Sha256};

use crate::JournalError;

/// Bytes of the hash in an id.
const ID_LEN: usize = 6;

/// The place of one journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// Its id: twelve hexadecimal digits.
    pub id: String,
    /// The shared folder, without links in its path.
    pub share: PathBuf,
    /// The journal's own folder.
    pub folder: PathBuf,
    /// Where it keeps things.
    pub kept: PathBuf,
}

/// The user's journals: `$CABANA_STATE/journals`, else `$XDG_STATE_HOME/cabana/journals`, else
/// `~/.local/state/cabana/journals`, or on Windows `%LOCALAPPDATA%/cabana/journals`.
pub fn journals() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("CABANA_STATE").unwrap_or_else(|| {
        let states = ["XDG_STATE_HOME", "LOCALAPPDATA"].into_iter().find_map(set);
        let states = states.filter(|path| path.is_absolute());
        let home = || set("HOME").unwrap_or_else(|| PathBuf::from("/root")).join(".local/state");
        states.unwrap_or_else(home).join("cabana")
    });
    std::path::absolute(&state).unwrap_or(state).join("journals")
}

impl Home {
    /// The journal of a folder, made when missing.
    pub fn make(journals: &Path, share: &Path) -> Result<Self, JournalError> {
        let share = fs::canonicalize(share).map_err(JournalError::host("find", share))?;
        let id = id(&share);
        let folder = journals.join(&id);
        if let Ok(home) = Self::read(&folder) {
            return Ok(home);
        }
        let refused = || JournalError::host("make the journal's folder", &folder);
        make_private(&folder).map_err(refused())?;
        let folder = fs::canonicalize(&folder).map_err(refused())?;
        let kept = choose_kept(&share, &folder, &id).map_err(refused())?;
        let home = Self { id, share, folder, kept };
        let text = [&*path_bytes(&home.share), b"\0", &*path_bytes(&home.kept)].concat();
        let new = home.folder.join("where.new");
        fs::write(&new, text).map_err(JournalError::host("write", &new))?;
        fs::rename(&new, home.folder.join("where")).map_err(JournalError::host("write", &new))?;
        Ok(home)
    }

    /// A journal whose folders somebody else has found, who may call them by other paths than the user does.
    pub fn given(share: PathBuf, folder: PathBuf, kept: PathBuf) -> Self {
        let id = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { id, share, folder, kept }
    }

    /// The journal of a folder, or the one with an id.
    pub fn find(journals: &Path, what: &Path) -> Result<Self, JournalError> {
        let none = || JournalError::NoJournal(what.display().to_string());
        let by_id = what.components().count() == 1 && journals.join(what).join("where").exists();
        if by_id {
            return Self::read(&journals.join(what));
        }
        // The folder itself may be gone: then its path is taken as it stands.
        let absolute = std::path::absolute(what).unwrap_or_else(|_| what.to_owned());
        let share = fs::canonicalize(what).unwrap_or(absolute);
        let folder = journals.join(id(&share));
        if folder.join("where").exists() { Self::read(&folder) } else { Err(none()) }
    }

    /// All journals, by the paths of their folders.
    pub fn list(journals: &Path) -> Result<Vec<Self>, JournalError> {
        let refused = || JournalError::host("read", journals);
        let entries = match fs::read_dir(journals) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(refused()(error)),
        };
        let mut homes = Vec::new();
        for entry in entries {
            let folder = entry.map_err(refused())?.path();
            if folder.join("where").exists() {
                homes.push(Self::read(&folder)?);
            }
        }
        homes.sort_by(|one, other| one.share.cmp(&other.share));
        Ok(homes)
    }

    /// Fails if a guest that has these folders could reach the journal.
    pub fn check_out_of_reach<'a>(
        &self,
        shares: impl IntoIterator<Item = &'a Path>,
    ) -> Result<(), JournalError> {
        for share in shares {
            let within = fs::canonicalize(share).unwrap_or_else(|_| share.to_owned());
            for journal in [&self.folder, &self.kept] {
                if journal.starts_with(&within) {
                    let (share, journal) = (self.share.clone(), journal.clone());
                    return Err(JournalError::Reachable { share, journal, within });
                }
            }
        }
        Ok(())
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// The plan of a rollback that has not ended.
    pub(crate) fn plan(&self) -> PathBuf {
        self.folder.join("plan")
    }

    /// Takes the journal for this process alone, until the file is closed.
    pub(crate) fn lock(&self) -> Result<File, JournalError> {
        let path = self.folder.join("lock");
        let refused = || JournalError::host("lock", &path);
        let file = File::create(&path).map_err(refused())?;
        if try_lock(&file).map_err(refused())? {
            return Ok(file);
        }
        Err(JournalError::InUse(self.share.clone()))
    }

    fn read(folder: &Path) -> Result<Self, JournalError> {
        let path = folder.join("where");
        let text = fs::read(&path).map_err(JournalError::host("read", &path))?;
        let split = text.iter().position(|byte| *byte == 0);
        let (share, kept) = split.map(|at| (&text[..at], &text[at + 1..])).ok_or_else(|| {
            let why = "it does not say where the share is";
            JournalError::Damaged { path: path.clone(), at: 0, why }
        })?;
        let [share, kept] = [share, kept].map(path_from_bytes);
        let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        Ok(Self::given(share, folder, kept))
    }
}

fn id(share: &Path) -> String {
    let hash = Sha256::digest(path_bytes(share));
    hash[..ID_LEN].iter().fold(String::new(), |mut id, byte| {
        let _ = write!(id, "{byte:02x}");
        id
    })
}

fn choose_kept(share: &Path, folder: &Path, id: &str) -> io::Result<PathBuf> {
    let mount = |path: &Path| InodeStat::of(&Handle::of_directory(path)?).map(|stat| stat.mount);
    let wanted = mount(share)?;
    let inside = folder.join("kept");
    if mount(folder)? != wanted
        && let Some(parent) = share.parent()
        && mount(parent).ok() == Some(wanted)
    {
        let beside = parent.join(format!(".cabana-journal-{id}"));
        if make_private(&beside).is_ok() {
            return Ok(beside);
        }
    }
    make_private(&inside)?;
    Ok(inside)
}

/// A folder that is for its owner alone: what is kept has the permissions that it had.
fn make_private(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    Handle::of_directory(path)?.set_mode(0o700)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_found_by_folder_and_by_id() {
        let dir = tempfile::tempdir().unwrap();
        let (journals, share) = (dir.path().join("state/journals"), dir.path().join("share"));
        fs::create_dir(&share).unwrap();
        assert!(matches!(Home::find(&journals, &share), Err(JournalError::NoJournal(_))));
        let made = Home::make(&journals, &share).unwrap();
        assert_eq!(Home::make(&journals, &share).unwrap(), made);
        assert_eq!(Home::find(&journals, &share).unwrap(), made);
        assert_eq!(Home::find(&journals, Path::new(&made.id)).unwrap(), made);
        assert_eq!(Home::list(&journals).unwrap(), std::slice::from_ref(&made));
        fs::remove_dir(&share).unwrap();
        assert_eq!(Home::find(&journals, &made.share).unwrap(), made);
    }

    #[test]
    fn what_is_kept_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::make(&dir.path().join("journals"), dir.path()).unwrap();
        let mode = Handle::of_directory(&home.kept).unwrap().stat().unwrap().mode;
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_journal_within_a_share_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (journals, share) = (dir.path().join("state/journals"), dir.path().join("share"));
        fs::create_dir(&share).unwrap();
        let home = Home::make(&journals, &share).unwrap();
        home.check_out_of_reach([share.as_path()]).unwrap();
        let told = home.check_out_of_reach([share.as_path(), dir.path()]).unwrap_err();
        assert!(told.to_string().contains("set CABANA_STATE"), "{told}");
    }

    #[test]
    fn one_process_at_a_time_writes() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::make(&dir.path().join("journals"), dir.path()).unwrap();
        let lock = home.lock().unwrap();
        assert!(matches!(home.lock(), Err(JournalError::InUse(_))));
        drop(lock);
        home.lock().unwrap();
    }
}

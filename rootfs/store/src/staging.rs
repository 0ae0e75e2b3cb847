//! Building an artifact where no reader sees it, and putting it in place in one step.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cabana_os::{file, tree};

use crate::error::Context;
use crate::lock::Lock;
use crate::manifest::{FileEntry, MANIFEST, Manifest, Stamp, StampEntry, VERSION};
use crate::store::{Artifact, Kind, Store, is_file_name, write_stamp};
use crate::{StoreError, sys};

/// The store's folder of unfinished artifacts.
const STAGING: &str = "staging";
/// What the name of a staging folder's lock ends with; no artifact's name can.
const LOCK: &str = "+lock";

/// An artifact that is being built: a folder that vanishes with this value unless it is committed.
///
/// It holds the artifact's lock. The lock of a killed builder is free, and the next program that
/// stages or lists anything removes what it left.
#[derive(Debug)]
pub struct Staging {
    store: Store,
    kind: Kind,
    name: String,
    // Declared before the lock, so that the folder is gone before the lock is.
    folder: Folder,
    _lock: Lock,
}

impl Staging {
    /// Takes the artifact's lock, waiting for it if `wait`, and makes an empty folder.
    pub(crate) fn new(
        store: &Store,
        kind: Kind,
        name: &str,
        wait: bool,
    ) -> Result<Option<Self>, StoreError> {
        collect(store);
        let parent = store.path().join(STAGING);
        sys::make_folder(&parent).context("make the folder", &parent)?;
        let path = parent.join(format!("{kind}-{name}"));
        let lock_path = lock_path(&path);
        let Some(lock) = Lock::take(&lock_path, wait).context("lock", &lock_path)? else {
            return Ok(None);
        };
        clear(&path)?;
        let folder = Folder(path);
        for folder in [folder.files(), folder.work()] {
            sys::make_folder(&folder).context("make the folder", &folder)?;
        }
        let (store, name) = (store.clone(), name.to_owned());
        Ok(Some(Self { store, kind, name, folder, _lock: lock }))
    }

    /// Where the artifact's files go: regular files only, no folders.
    pub fn path(&self) -> PathBuf {
        self.folder.files()
    }

    /// A second folder on the same file system, for what is needed on the way; never committed.
    pub fn work(&self) -> PathBuf {
        self.folder.work()
    }

    /// Hashes the files, writes the manifest, and puts the artifact in place in one step, replacing
    /// the one that is there.
    ///
    /// `inputs` is the SHA-256, in hexadecimal, of what the artifact was built from; `facts` is
    /// what should be remembered about it. The files become read-only and are on disk when this
    /// returns.
    pub fn commit(
        self,
        inputs: &str,
        facts: BTreeMap<String, String>,
    ) -> Result<Artifact, StoreError> {
        let source = self.path();
        let mut files = BTreeMap::new();
        let mut stamp = BTreeMap::new();
        for entry in fs::read_dir(&source).context("list", &source)? {
            let entry = entry.context("list", &source)?;
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if !is_file_name(&name) || !entry.file_type().context("look at", &path)?.is_file() {
                return Err(self.unfit(format!("'{name}' is not a file that an artifact can have")));
            }
            file::adopt(&path);
            let file = file::seal(&path).context("make read-only and write", &path)?;
            let looked = tree::stat(&file).context("look at", &path)?;
            let hashed = FileEntry::of(&file).context("read", &path)?;
            stamp.insert(name.clone(), StampEntry::new(&hashed.sha256, &looked));
            files.insert(name, hashed);
        }
        if files.is_empty() {
            return Err(self.unfit("it has no files".to_owned()));
        }
        let manifest = Manifest {
            version: VERSION,
            kind: self.kind,
            name: self.name.clone(),
            inputs: inputs.to_owned(),
            files,
            facts,
        };
        let path = source.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::from);
        let text = text.context("write", &path)?;
        write(&path, &text).context("write", &path)?;
        file::adopt(&path);
        write_stamp(&source, &Stamp(stamp)).context("write the stamp of", &source)?;
        file::sync_folder(&path).context("write", &source)?;

        let dir = self.store.dir(self.kind, &self.name);
        self.put_in_place(&dir)?;
        Ok(Artifact { kind: self.kind, name: self.name.clone(), dir, manifest })
    }

    /// Moves what stands at `dir` into the staging folder, which then takes it along.
    pub(crate) fn take_away(self, dir: &Path) -> io::Result<()> {
        fs::rename(dir, self.folder.old())
    }

    fn put_in_place(&self, dir: &Path) -> Result<(), StoreError> {
        let source = self.path();
        let parent = self.store.path().join(self.kind.as_str());
        sys::make_folder(&parent).context("make the folder", &parent)?;
        let replaces = dir.symlink_metadata().is_ok();
        if !(replaces && file::exchange(&source, dir).context("replace", dir)?) {
            if replaces {
                // A file system that cannot exchange: readers may miss the artifact for an instant.
                fs::rename(dir, self.folder.old()).context("replace", dir)?;
            }
            let moved = fs::rename(&source, dir).inspect_err(|_| {
                if replaces {
                    let _ = fs::rename(self.folder.old(), dir);
                }
            });
            moved.context("write", dir)?;
        }
        file::sync_folder(dir).context("write", &parent)
    }

    fn unfit(&self, problem: String) -> StoreError {
        StoreError::Unfit { kind: self.kind, name: self.name.clone(), problem }
    }
}

/// The folder of a staging, removed on drop.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn files(&self) -> PathBuf {
        self.0.join("files")
    }

    fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    fn old(&self) -> PathBuf {
        self.0.join("old")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed now is collected by the next program that uses the store.
        let _ = clear(&self.0);
    }
}

/// Removes what killed builders left. Failures wait for a later run: nobody asked for this now.
pub(crate) fn collect(store: &Store) {
    let Ok(entries) = fs::read_dir(store.path().join(STAGING)) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = entry.path().with_file_name(name.strip_suffix(LOCK).unwrap_or(&name));
        if let Ok(Some(_lock)) = Lock::take(&lock_path(&path), false) {
            let _ = clear(&path);
        }
    }
}

/// Removes a staging folder, unless something is mounted in it.
fn clear(path: &Path) -> Result<(), StoreError> {
    if let Some(mount) = mount_inside(path) {
        return Err(StoreError::Mounted(mount));
    }
    match file::remove_tree(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// A mount point beneath `path`, such as the `/dev` of a build that was killed. Removing the tree
/// would reach through it.
fn mount_inside(path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|mount| PathBuf::from(mount.replace("\\040", " ")))
        .find(|mount| mount.starts_with(&path))
}

fn lock_path(folder: &Path) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(LOCK);
    name.into()
}

/// Writes a file that is on the disk when this returns.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

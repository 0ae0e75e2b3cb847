//! Finding, verifying, listing and removing artifacts.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::{env, fmt};

use cabana_os::{file, tree};
use serde::{Deserialize, Serialize};

use crate::error::Context;
use crate::manifest::{MANIFEST, Manifest, STAMP, Stamp, StampEntry, VERSION};
use crate::staging::{self, Staging};
use crate::{Bytes, StoreError, digest};

/// What an artifact is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A guest kernel.
    Kernel,
    /// The program that runs as a guest's PID 1.
    Agent,
    /// A root file system.
    Image,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Kernel, Self::Agent, Self::Image];

    /// The kind's name, which is its folder in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Agent => "agent",
            Self::Image => "image",
        }
    }

    pub(crate) const fn with_article(self) -> &'static str {
        match self {
            Self::Kernel => "a kernel",
            Self::Agent => "an agent",
            Self::Image => "an image",
        }
    }

    pub(crate) fn how_to_build(self, name: &str) -> String {
        match self {
            Self::Image => format!("cabana image build {name}"),
            Self::Kernel | Self::Agent => "cargo xtask setup".to_owned(),
        }
    }

    pub(crate) fn how_to_rebuild(self, name: &str) -> String {
        match self {
            Self::Image => format!("cabana image remove {name} && cabana image build {name}"),
            Self::Kernel | Self::Agent => "cargo xtask setup".to_owned(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The store; opening it touches nothing, and its folders are made when something is staged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the user's store: the [home](Self::home), or the folder of this host's processor in it if there is one.
    pub fn open() -> Result<Self, StoreError> {
        Self::home().map(|home| home.own(env::consts::ARCH))
    }

    /// The user's store, whatever the processor: `$CABANA_HOME`, else `$XDG_CACHE_HOME/cabana`, else
    /// `~/.cache/cabana`, or on Windows `%LOCALAPPDATA%/cabana`.
    pub fn home() -> Result<Self, StoreError> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let caches = ["XDG_CACHE_HOME", "LOCALAPPDATA"].map(set);
        let root = place(set("CABANA_HOME"), caches, set("HOME"));
        Self::open_at(root.ok_or(StoreError::NoHome)?)
    }

    /// Opens a store in a folder, which need not exist yet.
    pub fn open_at(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let root = std::path::absolute(path).context("find the folder", path)?;
        Ok(Self { root })
    }

    /// The store of hosts with this processor, where hosts of several share this one.
    fn own(self, processor: &str) -> Self {
        let own = self.foreign(processor);
        if own.root.is_dir() { own } else { self }
    }

    /// The store within this one for machines of another processor, by Rust's name for it: the same names, and
    /// other artifacts.
    #[must_use]
    pub fn foreign(&self, processor: &str) -> Self {
        Self { root: self.root.join(processor) }
    }

    /// The store's folder.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Finds an artifact and makes sure that its files are what its manifest says.
    ///
    /// Files whose times match the artifact's stamp are taken as verified; the others are read and
    /// hashed, and the stamp is written anew where that is possible.
    pub fn find(&self, kind: Kind, name: &str) -> Result<Artifact, StoreError> {
        check_name(kind, name)?;
        let dir = self.dir(kind, name);
        loop {
            // While it is open, no other folder can get this one's identity.
            let before = file::open_folder_itself(&dir);
            let before = before.map_err(|error| self.not_found(kind, name, error))?;
            let found = self.load(kind, name).and_then(|artifact| {
                artifact.verify()?;
                Ok(artifact)
            });
            // A builder may have put a new artifact in place between two of our reads.
            let before = tree::stat(&before).context("look at", &dir)?;
            let is_same = tree::look(&dir).is_ok_and(|after| after.is_of(&before));
            if found.is_ok() || is_same {
                return found;
            }
        }
    }

    /// Lists what is there, by kind and name, without hashing anything.
    pub fn list(&self) -> Result<Vec<Listing>, StoreError> {
        staging::collect(self);
        let mut listings = Vec::new();
        for kind in Kind::ALL {
            let folder = self.root.join(kind.as_str());
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(StoreError::io("list", folder, error)),
            };
            for entry in entries {
                let entry = entry.context("list", &folder)?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                if check_name(kind, &name).is_ok() {
                    let allocated = Bytes(allocated(&entry.path()));
                    let artifact = self.load(kind, &name);
                    listings.push(Listing { kind, name, allocated, artifact });
                }
            }
        }
        listings.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        Ok(listings)
    }

    /// Removes an artifact, damaged or not, and returns the bytes that it took on disk.
    ///
    /// Machines that run from it keep their open files; the room is free when they end.
    pub fn remove(&self, kind: Kind, name: &str) -> Result<Bytes, StoreError> {
        check_name(kind, name)?;
        let dir = self.dir(kind, name);
        file::open_folder_itself(&dir).map_err(|error| self.not_found(kind, name, error))?;
        let Some(staging) = self.try_stage(kind, name)? else {
            return Err(StoreError::Busy { kind, name: name.to_owned() });
        };
        let freed = allocated(&dir);
        staging.take_away(&dir).map_err(|error| self.not_found(kind, name, error))?;
        Ok(Bytes(freed))
    }

    /// Starts to build an artifact: a folder of its own, which vanishes unless it is committed.
    /// Waits until no other process builds the same artifact.
    pub fn stage(&self, kind: Kind, name: &str) -> Result<Staging, StoreError> {
        check_name(kind, name)?;
        let staging = Staging::new(self, kind, name, true)?;
        staging.ok_or_else(|| StoreError::Busy { kind, name: name.to_owned() })
    }

    /// Like [`Self::stage`], but returns `None` instead of waiting.
    pub fn try_stage(&self, kind: Kind, name: &str) -> Result<Option<Staging>, StoreError> {
        check_name(kind, name)?;
        Staging::new(self, kind, name, false)
    }

    pub(crate) fn dir(&self, kind: Kind, name: &str) -> PathBuf {
        self.root.join(kind.as_str()).join(name)
    }

    /// Reads an artifact's manifest and nothing else.
    fn load(&self, kind: Kind, name: &str) -> Result<Artifact, StoreError> {
        #[derive(Deserialize)]
        struct Header {
            version: u32,
        }
        let dir = self.dir(kind, name);
        file::open_folder_itself(&dir).map_err(|error| self.not_found(kind, name, error))?;
        let corrupt = |problem: String| StoreError::Corrupt {
            kind,
            name: name.to_owned(),
            file: MANIFEST.to_owned(),
            problem,
        };
        let path = dir.join(MANIFEST);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(corrupt("is missing".to_owned()));
            }
            Err(error) => return Err(StoreError::io("read", path, error)),
        };
        let manifest = match serde_json::from_slice::<Manifest>(&text) {
            Ok(manifest) if manifest.version <= VERSION => manifest,
            // A later version may have another layout, but says that it is one.
            result => match (result, serde_json::from_slice::<Header>(&text)) {
                (Err(error), Ok(Header { version: ..=VERSION }) | Err(_)) => {
                    return Err(corrupt(format!("cannot be read ({error})")));
                }
                (Ok(Manifest { version, .. }), _) | (Err(_), Ok(Header { version })) => {
                    return Err(StoreError::TooNew { kind, name: name.to_owned(), version });
                }
            },
        };
        if manifest.kind != kind || manifest.name != name {
            let (kind, name) = (manifest.kind, &manifest.name);
            return Err(corrupt(format!("belongs to the {kind} '{name}'")));
        }
        if let Some(file) = manifest.files.keys().find(|file| !is_file_name(file)) {
            return Err(corrupt(format!("names a file '{file}' that cannot be one")));
        }
        Ok(Artifact { kind, name: name.to_owned(), dir, manifest })
    }

    fn not_found(&self, kind: Kind, name: &str, error: io::Error) -> StoreError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                StoreError::NotFound { kind, name: name.to_owned(), store: self.root.clone() }
            }
            _ => StoreError::io("open", self.dir(kind, name), error),
        }
    }
}

/// An artifact in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// The folder of its files.
    pub dir: PathBuf,
    /// What it is.
    pub manifest: Manifest,
}

impl Artifact {
    /// The path of one of its files.
    pub fn file(&self, name: &str) -> Result<PathBuf, StoreError> {
        if self.manifest.files.contains_key(name) {
            return Ok(self.dir.join(name));
        }
        Err(StoreError::NoFile { kind: self.kind, name: self.name.clone(), file: name.to_owned() })
    }

    /// Copies one of its files into an empty file, reading and writing its data alone.
    ///
    /// The manifest says where the data is, so this is quick even on a file system that cannot
    /// report holes.
    pub fn copy_to(&self, name: &str, to: &File) -> Result<(), StoreError> {
        let path = self.file(name)?;
        let entry = &self.manifest.files[name];
        let from = File::open(&path).context("open", &path)?;
        to.set_len(entry.size)
            .and_then(|()| digest::copy(&from, to, &entry.runs()))
            .context("copy", &path)
    }

    /// The sizes of its files added up, holes included.
    pub fn size(&self) -> Bytes {
        Bytes(self.manifest.files.values().map(|entry| entry.size).sum())
    }

    /// Checks each file by the stamp, or else by its hash.
    fn verify(&self) -> Result<(), StoreError> {
        let stamp: Stamp = fs::read(self.dir.join(STAMP))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let mut fresh = BTreeMap::new();
        for (name, entry) in &self.manifest.files {
            let path = self.dir.join(name);
            let looked = match tree::look(&path) {
                Ok(looked) if looked.kind() == tree::mode::REGULAR => looked,
                Ok(_) => return Err(self.corrupt(name, "is not a regular file")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(self.corrupt(name, "is missing"));
                }
                Err(error) => return Err(StoreError::io("look at", path, error)),
            };
            let now = StampEntry::new(&entry.sha256, &looked);
            if stamp.0.get(name) != Some(&now) {
                let file = File::open(&path).context("open", &path)?;
                if !entry.holds(&file).context("read", &path)? {
                    return Err(self.corrupt(name, "is not what was stored (its hash is wrong)"));
                }
            }
            fresh.insert(name.clone(), now);
        }
        if stamp.0 != fresh {
            // A store that cannot be written works all the same: it hashes every time.
            let _ = write_stamp(&self.dir, &Stamp(fresh));
        }
        Ok(())
    }

    fn corrupt(&self, file: &str, problem: &str) -> StoreError {
        StoreError::Corrupt {
            kind: self.kind,
            name: self.name.clone(),
            file: file.to_owned(),
            problem: problem.to_owned(),
        }
    }
}

/// One line of a list: an artifact, or what keeps it from being one.
#[derive(Debug)]
pub struct Listing {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// What it takes on disk.
    pub allocated: Bytes,
    /// The artifact, unless its manifest is damaged. Its files were not verified.
    pub artifact: Result<Artifact, StoreError>,
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<6}  {:<16}  {:>8}", self.kind, self.name, self.allocated)?;
        match &self.artifact {
            Ok(artifact) => match artifact.manifest.facts.get("summary") {
                Some(summary) => write!(f, "  {summary}"),
                None => Ok(()),
            },
            Err(error) => write!(f, "  {error}"),
        }
    }
}

/// Where the store stands, by the user's own choice, the folders for caches and the user's folder.
fn place(
    cabana: Option<PathBuf>,
    caches: [Option<PathBuf>; 2],
    home: Option<PathBuf>,
) -> Option<PathBuf> {
    // The XDG specification has relative paths ignored.
    let cache = caches.into_iter().flatten().find(|path| path.is_absolute());
    cabana
        .or_else(|| cache.map(|cache| cache.join("cabana")))
        .or_else(|| home.map(|home| home.join(".cache/cabana")))
}

/// Writes the stamp of an artifact's files in one step.
pub(crate) fn write_stamp(dir: &Path, stamp: &Stamp) -> io::Result<()> {
    let text = serde_json::to_vec(stamp)?;
    // A name per process: two may find the same artifact at the same moment.
    let temporary = dir.join(format!("{STAMP}.{}", std::process::id()));
    let written =
        fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, dir.join(STAMP)));
    match &written {
        Ok(()) => file::adopt(&dir.join(STAMP)),
        Err(_) => drop(fs::remove_file(&temporary)),
    }
    written
}

fn check_name(kind: Kind, name: &str) -> Result<(), StoreError> {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let good = name.len() <= 64
        && name.bytes().next().is_some_and(letter)
        && name.bytes().all(|byte| letter(byte) || b"._-".contains(&byte));
    if good { Ok(()) } else { Err(StoreError::BadName { kind, name: name.to_owned() }) }
}

/// Whether a file of an artifact may have a name: flat, visible, and not one of the store's own.
pub(crate) fn is_file_name(name: &str) -> bool {
    name.len() <= 64
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && !name.starts_with(STAMP)
        && name != MANIFEST
}

/// Bytes that a folder's tree takes on disk; what cannot be read counts as nothing.
fn allocated(path: &Path) -> u64 {
    let Ok(looked) = tree::look(path) else { return 0 };
    let is_folder = looked.kind() == tree::mode::DIRECTORY;
    let entries = is_folder.then(|| fs::read_dir(path).ok()).flatten();
    looked.blocks * 512
        + entries.into_iter().flatten().flatten().map(|entry| allocated(&entry.path())).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_several_processors_share_a_home() {
        let folder = tempfile::tempdir().unwrap();
        let home = Store::open_at(folder.path()).unwrap();
        assert_eq!(home.clone().own("aarch64"), home);
        fs::create_dir(folder.path().join("aarch64")).unwrap();
        assert_eq!(home.clone().own("aarch64"), home.foreign("aarch64"));
        assert_eq!(home.clone().own("x86_64"), home);
    }

    #[test]
    fn the_environment_places_the_store() {
        // With a drive on Windows.
        let path = |text: &str| std::path::absolute(text).ok();
        let relative = || Some(PathBuf::from("relative"));
        assert_eq!(place(path("/c"), [path("/x"), path("/l")], path("/h")), path("/c"));
        assert_eq!(place(None, [path("/x"), path("/l")], path("/h")), path("/x/cabana"));
        assert_eq!(place(None, [None, path("/l")], path("/h")), path("/l/cabana"));
        assert_eq!(place(None, [relative(), None], path("/h")), path("/h/.cache/cabana"));
        assert_eq!(place(None, [None, None], None), None);
    }

    #[test]
    fn names_stay_inside_the_store() {
        for name in ["default", "a", "0", "linux-6.12_x.y"] {
            check_name(Kind::Image, name).unwrap();
        }
        let long = "x".repeat(65);
        for name in
            ["", ".", "..", "../x", "a/b", "/etc", "A", "-x", "_x", "a b", "ä", "a\0", &long]
        {
            let error = check_name(Kind::Image, name).unwrap_err();
            assert!(matches!(error, StoreError::BadName { .. }), "{name}");
        }
        for name in ["manifest.json", "stamp.json", "stamp.json.7", "../x", ".x", "a/b", ""] {
            assert!(!is_file_name(name), "{name}");
        }
        assert!(is_file_name("root.erofs") && is_file_name("System.map"));
    }

    #[test]
    fn errors_say_what_to_do() {
        let name = || "default".to_owned();
        let error = StoreError::Corrupt {
            kind: Kind::Image,
            name: name(),
            file: "root.erofs".to_owned(),
            problem: "is missing".to_owned(),
        };
        assert_eq!(
            error.to_string(),
            "root.erofs of the image 'default' is missing; build it anew: cabana image remove \
             default && cabana image build default"
        );
        let error = StoreError::NotFound { kind: Kind::Kernel, name: name(), store: "/s".into() };
        assert_eq!(
            error.to_string(),
            "there is no kernel 'default' in /s; cargo xtask setup makes it"
        );
    }
}

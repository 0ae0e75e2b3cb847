//! `cabana snapshot`: machines kept in files, to start from.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use cabana_os::file::allocated;
use cabana_snapshot::{Snapshot, Touched};
use cabana_store::{Bytes, Store};
use serde::Serialize;
use serde_json::json;

use crate::args::{SaveArgs, SnapshotArgs, SnapshotVerb};
use crate::machines::print;
use crate::trace::Start;
use crate::{Failure, run};

/// Where those stand that have a name, in the store's folder.
const FOLDER: &str = "snapshots";

pub(crate) fn snapshot(args: SnapshotArgs, started: Start) -> Result<u8, Failure> {
    match args.verb {
        SnapshotVerb::Save(args) => save(*args, started),
        SnapshotVerb::List { json } => list(json),
        SnapshotVerb::Remove { name, json } => remove(&name, json),
    }
}

/// Where the snapshot of this name is: in the store, or where a path says.
pub(crate) fn locate(name: &str) -> Result<PathBuf, Failure> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    if name.is_empty() || name.starts_with('.') {
        return Err(Failure::new(format!("{name:?} cannot be the name of a snapshot")));
    }
    Ok(Store::open()?.path().join(FOLDER).join(name))
}

fn save(args: SaveArgs, started: Start) -> Result<u8, Failure> {
    let path = locate(&args.name)?;
    if let Some(folder) = path.parent().filter(|_| !args.name.contains('/')) {
        fs::create_dir_all(folder).map_err(|error| {
            Failure::new(format!("cannot make the folder {}: {error}", folder.display()))
        })?;
    }
    run::keep(args.run, started, &path)
}

/// What `cabana snapshot ls` says of one.
#[derive(Serialize)]
struct Entry {
    name: String,
    path: PathBuf,
    /// Bytes on the disk.
    size: u64,
    /// Seconds since 1970.
    made_at: Option<u64>,
    made_by: Option<String>,
    /// Why it cannot be used.
    broken: Option<String>,
}

impl Entry {
    fn of(path: PathBuf) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let size = File::open(&path).and_then(|file| allocated(&file)).unwrap_or(0);
        let entry = Self { name, path, size, made_at: None, made_by: None, broken: None };
        match Snapshot::open(&entry.path) {
            Ok(snapshot) => Self {
                made_at: Some(snapshot.made_at()),
                made_by: Some(snapshot.made_by().to_owned()),
                ..entry
            },
            Err(error) => Self { broken: Some(error.to_string()), ..entry },
        }
    }
}

fn list(json: bool) -> Result<u8, Failure> {
    let folder = Store::open()?.path().join(FOLDER);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let entries = entries.map_err(|error| {
        Failure::new(format!("cannot list the snapshots in {}: {error}", folder.display()))
    })?;
    let named =
        |path: &Path| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.'));
    let mut paths: Vec<_> =
        entries.iter().map(fs::DirEntry::path).filter(|path| named(path)).collect();
    paths.sort();
    let entries: Vec<_> = paths.into_iter().map(Entry::of).collect();
    if json {
        println!("{}", serde_json::to_string_pretty(&entries)?);
        return Ok(0);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for entry in entries {
        let state = match (&entry.broken, entry.made_at) {
            (Some(why), _) => why.clone(),
            (None, made_at) => ago(now.saturating_sub(made_at.unwrap_or(now))),
        };
        println!("{:<24} {:>10}  {state}", entry.name, Bytes(entry.size).to_string());
    }
    Ok(0)
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => "just now".to_owned(),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// Machines that came out of it go on: they have it open.
fn remove(name: &str, json: bool) -> Result<u8, Failure> {
    let path = locate(name)?;
    fs::remove_file(&path)
        .and_then(|()| Touched::remove(&path))
        .map_err(|error| Failure::new(format!("cannot remove {}: {error}", path.display())))?;
    if json {
        print(&json!({ "snapshot": name, "removed": true }))?;
    }
    Ok(0)
}

//! Builds root images from Debian packages.
//!
//! An image is an artifact of the store with three files: [`ROOT`], a read-only EROFS that all
//! machines share through the host's page cache; [`SCRATCH`], the template of a machine's writable
//! disk; and [`PACKAGES`], the list of what is in it. [`Flavour`]s say which packages it has.
//!
//! The packages come from the mirror that the host's apt is configured for, and from Debian's own
//! archive alone. The same versions of the same packages give the same image, bit for bit,
//! whichever mirror they come from and whenever they are installed.

mod erofs;
mod error;
mod flavour;
mod foreign;
mod packages;
mod process;
mod progress;
mod scratch;
mod sources;
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;
use std::{env, fs};

use cabana_store::{Artifact, Kind, Store};

use crate::error::Context;
use crate::process::Tool;

pub use erofs::ROOT;
pub use error::BuildError;
pub use flavour::{Base, Flavour};
pub use progress::{Progress, Step};
pub use scratch::{SCRATCH, SCRATCH_SIZE};

/// The file name of the list of packages in the artifact: a table with the columns package,
/// version and architecture, separated by tabs, under a line of headings.
pub const PACKAGES: &str = "packages.tsv";

/// How to build.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Build even if the store has an image of the same definition, to get newer packages.
    pub rebuild: bool,
    /// An apt sources file (`.list`, or deb822) to use in place of the host's.
    pub sources: Option<PathBuf>,
    /// Set it (from a signal handler's thread, say) to stop the build, which then leaves nothing.
    pub cancel: Arc<AtomicBool>,
}

/// Builds an image and puts it into the store under its flavour's name, or returns the one that is
/// there if it has the same definition.
///
/// Needs root (or root of a user namespace), and the tools of [`missing_tools`]. Two builds of one
/// image take turns, and the second finds the first one's result. A build that is killed leaves
/// nothing running or mounted; its folder is removed by the next use of the store.
pub fn build_image(
    store: &Store,
    flavour: &Flavour,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Artifact, BuildError> {
    let inputs = flavour.inputs_hash();
    let existing = || {
        let found = store.find(Kind::Image, &flavour.name).ok();
        found.filter(|artifact| artifact.manifest.inputs == inputs)
    };
    if !options.rebuild
        && let Some(artifact) = existing()
    {
        return Ok(artifact);
    }
    let mut at = |step| progress(Progress { step, fraction: None });
    let staging = if let Some(staging) = store.try_stage(Kind::Image, &flavour.name)? {
        staging
    } else {
        at(Step::Wait);
        let staging = store.stage(Kind::Image, &flavour.name)?;
        if let Some(artifact) = existing() {
            return Ok(artifact);
        }
        staging
    };
    if env::consts::OS != "linux" {
        return Err(BuildError::NotLinux);
    }
    if let Some(error) = missing_tools().into_iter().next() {
        return Err(error);
    }
    if cabana_os::tree::owner().0 != 0 {
        return Err(BuildError::NeedsRoot);
    }
    let sources = sources::debian(&flavour.suite, options.sources.as_deref())?;

    let (files, work) = (staging.path(), staging.work());
    let (root, cancel) = (work.join("root"), &*options.cancel);
    let started = now();
    tree::bootstrap(flavour, &sources, &work, &root, cancel, progress)?;
    let mut at = |step| progress(Progress { step, fraction: None });
    at(Step::Strip);
    tree::finish(&root, flavour.base)?;
    let (table, count) = packages::list(flavour.base, &root, &work)?;
    write(&files.join(PACKAGES), &table)?;
    at(Step::Image);
    let epoch = tree::newest(&root, started)?;
    erofs::write(&root, &files.join(ROOT), epoch, &inputs, cancel)?;
    // Else the tree, too, would be written out when the image is made to reach the disk.
    fs::remove_dir_all(&root).context("remove", &root)?;
    at(Step::Scratch);
    scratch::write(&files.join(SCRATCH), &work, cancel)?;
    at(Step::Store);
    let facts = BTreeMap::from([
        ("summary".to_owned(), flavour.summary.clone()),
        ("suite".to_owned(), flavour.suite.clone()),
        ("architecture".to_owned(), flavour.architecture.clone()),
        ("packages".to_owned(), count.to_string()),
        ("newest-file".to_owned(), epoch.to_string()),
    ]);
    Ok(staging.commit(&inputs, facts)?)
}

/// What a build needs and the host lacks, each an error that names the Debian package.
pub fn missing_tools() -> Vec<BuildError> {
    const OTHERS: [Tool; 4] = [
        Tool { name: "apt-get", package: "apt" },
        Tool { name: "gpgv", package: "gpgv" },
        Tool { name: "setpriv", package: "util-linux" },
        Tool { name: "unshare", package: "util-linux" },
    ];
    let own = [tree::MMDEBSTRAP, erofs::MKFS, scratch::MKFS, scratch::TUNE2FS, scratch::DEBUGFS];
    let mut missing: Vec<_> =
        own.iter().chain(&OTHERS).filter_map(|tool| tool.check().err()).collect();
    if !Path::new(sources::KEYRING).exists() {
        let tool = format!("Debian's keys ({})", sources::KEYRING);
        missing.push(BuildError::MissingTool { tool, package: "debian-archive-keyring" });
    }
    missing
}

fn write(path: &Path, text: &str) -> Result<(), BuildError> {
    fs::write(path, text).context("write", path)
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |duration| duration.as_secs() as i64)
}

//! The artifacts that `cabana` needs in the user's store: guest kernel, agent, root image. Those for another processor
//! stand in a store of their own within it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use cabana_agent::initramfs;
use cabana_builder::Flavour;
use cabana_kernel::Architecture;
use cabana_store::{Kind, Store};
use sha2::{Digest, Sha256};

use crate::cargo;
use crate::failure::Failure;
use crate::progress::Board;

/// The name under which `cabana` looks for each of them.
const NAME: &str = "default";

/// The agent's program, and the initramfs with it that its artifact is.
const AGENT: &str = "cabana-agent";
const INITRAMFS: &str = "agent.cpio";

/// The steps of building an image, taken as equally long.
const IMAGE_STEPS: f64 = 9.0;

/// Whose artifacts: the guests' processor, and where they are kept.
pub(crate) struct Guests {
    pub architecture: Architecture,
    pub store: Store,
}

impl Guests {
    /// Guests of a processor.
    pub(crate) fn of(architecture: Architecture) -> Result<Self, Failure> {
        let store = if architecture == Architecture::HOST {
            Store::open()?
        } else {
            Store::home()?.foreign(architecture.name())
        };
        Ok(Self { architecture, store })
    }
}

/// The target of static programs, such as the agent, which runs without any library of its guest.
pub(crate) fn musl(architecture: Architecture) -> String {
    format!("{}-unknown-linux-musl", architecture.name())
}

/// Builds the guest kernel unless the store has one of the same inputs.
pub(crate) fn kernel(guests: &Guests, board: &Board) -> Result<(), Failure> {
    let store = &guests.store;
    let options = cabana_kernel::Options::new(guests.architecture, "", "");
    let inputs = cabana_kernel::inputs_hash(&options)?;
    if has(store, Kind::Kernel, NAME, &inputs) {
        return Ok(());
    }
    let task = board.task("guest kernel");
    let staging = store.stage(Kind::Kernel, NAME)?;
    // While this one waited for its turn, another may have built the same.
    if has(store, Kind::Kernel, NAME, &inputs) {
        task.done();
        return Ok(());
    }
    let (work, result) = (staging.work().join("build"), staging.work().join("result"));
    fs::create_dir_all(&work).map_err(Failure::file(&work))?;
    let options = cabana_kernel::Options { work, output: result, ..options };
    let built = cabana_kernel::build(&options, &mut |progress| {
        task.at(progress.fraction, &progress.to_string());
    })?;
    for file in [&built.kernel, &built.config, &built.system_map] {
        place(file, &staging.path())?;
    }
    staging.commit(&inputs, built.facts)?;
    task.done();
    Ok(())
}

/// Builds the default root image unless the store has one of the same definition.
pub(crate) fn image(guests: &Guests, board: &Board) -> Result<(), Failure> {
    flavour(guests, board, Flavour::find(NAME)?, "root image")
}

/// The same for busybox alone, which is built in seconds.
pub(crate) fn tiny_image(guests: &Guests, board: &Board) -> Result<(), Failure> {
    flavour(guests, board, Flavour::find("tiny")?, "tiny image")
}

/// The same for the image in which the guest suite runs tools on shared folders.
pub(crate) fn tools_image(guests: &Guests, board: &Board) -> Result<(), Failure> {
    let definition = cargo::workspace().join("tests/guest/tools.list");
    flavour(guests, board, Flavour::find(&definition.to_string_lossy())?, "tools image")
}

fn flavour(
    guests: &Guests,
    board: &Board,
    flavour: Flavour,
    task: &'static str,
) -> Result<(), Failure> {
    let store = &guests.store;
    let flavour = &flavour.for_processor(guests.architecture.name());
    if has(store, Kind::Image, &flavour.name, &flavour.inputs_hash()) {
        return Ok(());
    }
    let task = board.task(task);
    let options = cabana_builder::Options::default();
    cabana_builder::build_image(store, flavour, &options, &mut |progress| {
        let part = f64::from(progress.fraction.unwrap_or(0.0));
        task.at((f64::from(progress.step as u8) + part) / IMAGE_STEPS, &progress.to_string());
    })?;
    task.done();
    Ok(())
}

/// Builds the agent, and puts it into the store if it changed.
pub(crate) fn agent(guests: &Guests) -> Result<(), Failure> {
    let store = &guests.store;
    let arguments = ["--profile", "agent", "--target", &musl(guests.architecture)];
    let built = cargo::build_binary("cabana-agent", AGENT, &arguments)?;
    let program = fs::read(&built).map_err(Failure::file(&built))?;
    let initramfs = initramfs::pack(&program);
    let inputs = format!("{:x}", Sha256::digest(&initramfs));
    if has(store, Kind::Agent, NAME, &inputs) {
        return Ok(());
    }
    let staging = store.stage(Kind::Agent, NAME)?;
    let target = staging.path().join(INITRAMFS);
    fs::write(&target, initramfs).map_err(Failure::file(&target))?;
    staging.commit(&inputs, BTreeMap::new())?;
    Ok(())
}

/// Whether the store has this artifact, whole, of these inputs.
fn has(store: &Store, kind: Kind, name: &str, inputs: &str) -> bool {
    store.find(kind, name).is_ok_and(|artifact| artifact.manifest.inputs == inputs)
}

/// Moves a file into a folder of the same file system.
fn place(file: &Path, folder: &Path) -> Result<(), Failure> {
    let name = file.file_name().unwrap_or_default();
    fs::rename(file, folder.join(name)).map_err(Failure::file(file))
}

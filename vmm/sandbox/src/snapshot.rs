//! Machines as snapshots: what of a [`Vmm`] goes into the file, and how another one comes out of it.
//!
//! A snapshot holds two parts, `machine` (`cabana_machine::AtRest`, by another name on arm64) and `sandbox` (below), and
//! two contents, `ram` and `disk`. The root image is not part of it: both machines map the same one.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cabana_block::Disk;
use cabana_machine::{AtRest, Frozen, MachineError, Platform, Restore, STATE_VERSION, Timeline};
use cabana_memory::{GuestAddress, GuestRam};
use cabana_os::{process, tree};
use cabana_pmem::{Image, ImageError};
use cabana_snapshot::{Draft, Snapshot, SnapshotError, write_nonzero};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::backend::Processor;
use crate::folders::Folders;
use crate::machine::{Card, Equipment, Vmm};
use crate::touched::Memory;
use crate::{Error, Guest, Introduction, Machine, NetworkConfig, Share, backend};

/// All of a machine but RAM and disk.
type State = <Processor as Platform>::AtRest;

/// Names in the file.
const MACHINE: &str = State::PART;
const SANDBOX: &str = "sandbox";
const RAM: &str = "ram";
const DISK: &str = "disk";

/// The generation of [`Description`].
const DESCRIPTION_VERSION: u16 = 1;

/// Bytes of a root image by which it is known again: its superblock, which names its content (the UUID)
/// and its size.
const IMAGE_HEAD: u64 = 4096;

/// What has to be known of a machine before another can be made for its state.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Description {
    image: ImageId,
    /// Where the image was.
    image_path: Vec<u8>,
    network: bool,
    /// There is a disk, and whether the guest may flush it.
    disk: Option<bool>,
}

/// A root image.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ImageId {
    len: u64,
    head: [u8; 32],
}

/// What a machine comes out of a snapshot with. Everything else (processors, memory, disk, what runs) is
/// in the snapshot.
#[derive(Clone, Debug)]
pub struct RestoreConfig {
    /// The snapshot.
    pub snapshot: PathBuf,
    /// The root image that the machine had; where it was, if left out.
    pub image: Option<PathBuf>,
    /// Where changes of the disk go, in a file without a name: it vanishes with the machine.
    pub disk_folder: PathBuf,
    /// Folders of the host that the guest sees from now on.
    pub shares: Vec<Share>,
    /// The network card; there has to be one if there was one, and none if there was none. What leaves
    /// through it is decided anew.
    pub network: Option<NetworkConfig>,
    /// The guest's name for itself.
    pub hostname: String,
    /// Where moments of the start are noted.
    pub timeline: Arc<Timeline>,
    /// As of [`MachineConfig`](crate::MachineConfig).
    pub alone: bool,
}

impl Machine {
    /// Keeps the machine in a file, as it is now, and lets it go on. Its shares are not part of that: the
    /// guest lets go of them for the moment, which it cannot while a program has files or its folder in
    /// one. Commands that run are, but not their connections: in a machine out of the snapshot those end
    /// that are not in the background. Fails without having changed anything but, perhaps, leaving
    /// the guest held; then [`Machine::stop`] is all that is left.
    pub fn snapshot(&self, path: &Path) -> Result<(), Error> {
        self.guest().freeze()?;
        let saved = self.vmm().save(path);
        self.guest().thaw()?;
        saved
    }

    /// A machine that goes on where another was kept, with an identity, randomness and shares of its own.
    pub fn restore(config: &RestoreConfig) -> Result<Self, Error> {
        let vmm = Vmm::restore(config)?;
        let control = vmm.accept()?;
        let guest = Guest::wake(vmm.link(), control, config.into(), &config.timeline)?;
        Ok(Self::new(vmm, guest))
    }
}

impl From<&RestoreConfig> for Introduction {
    fn from(config: &RestoreConfig) -> Self {
        let RestoreConfig { hostname, shares, network, .. } = config;
        Self::new(hostname, shares, network.is_some())
    }
}

impl Vmm {
    /// Keeps the machine in a file. Its agent has been [held](Guest::freeze).
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let board = self.board().ok_or(Error::Stopped)?;
        let frozen = board.freeze();
        let description = Description {
            image: self.image_id()?,
            image_path: tree::path_bytes(self.image_path()).to_vec(),
            network: self.has_card(),
            disk: self.disk().map(Disk::offers_flush),
        };
        let made_by = concat!("Cabana ", env!("CARGO_PKG_VERSION"));
        let mut draft = Draft::new(path, made_by, process::realtime())?;
        draft.part(MACHINE, STATE_VERSION, frozen.state()?.encode());
        // Plain data always encodes: there is no writer that could fail.
        let description = postcard::to_allocvec(&description).unwrap_or_default();
        draft.part(SANDBOX, DESCRIPTION_VERSION, description);
        draft.content(RAM, frozen.ram().size(), |file, at| write_ram(&frozen, file, at))?;
        if let Some(disk) = self.disk() {
            draft.content(DISK, disk.len(), |file, at| disk.copy_to(file, at))?;
        }
        Ok(draft.commit()?)
    }

    /// A machine out of a snapshot, which waits for its agent to be [woken](Guest::wake).
    pub fn restore(config: &RestoreConfig) -> Result<Self, Error> {
        let timeline = Arc::clone(&config.timeline);
        let snapshot = Snapshot::open(&config.snapshot)?;
        let (state, description) = read(&snapshot)?;
        let image_path = match &config.image {
            Some(path) => path.clone(),
            None => tree::path_from_bytes(&description.image_path),
        };
        check(&snapshot, config, &description, &image_path)?;
        let image = Image::open(&image_path)?;
        timeline.mark("snapshot open");
        let vm = backend::create_vm()?;
        timeline.mark("VM created");
        let shares = Folders::of(&config.shares)?;
        let disk = disk(&snapshot, &description, &config.disk_folder)?;
        let ram = map_ram(&snapshot, state.memory())?;
        let image_at = Processor::device_memory(state.memory());
        let memory = Memory { ram: ram.clone(), image: Arc::clone(&image), image_at };
        let (touched, recorder) = memory.prepare(snapshot);
        let equipment = Equipment {
            image,
            image_path: &image_path,
            memory: state.memory(),
            shares,
            card: Card::of(config.network.as_ref(), None),
            disk,
            recorder,
            alone: config.alone,
        };
        Self::equip(equipment, |devices, device_memory| {
            let restore = Restore { state, ram, devices, device_memory, touched, timeline };
            Processor::restore(vm, restore).map_err(|error| match error {
                MachineError::Restore(why) => {
                    Error::CannotGoOn { path: config.snapshot.clone(), why }
                }
                error => error.into(),
            })
        })
    }

    fn image_id(&self) -> Result<ImageId, Error> {
        image_id(self.image_path()).map_err(Error::host("the root image"))
    }
}

fn image_id(path: &Path) -> io::Result<ImageId> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut head = Vec::new();
    file.take(IMAGE_HEAD).read_to_end(&mut head)?;
    Ok(ImageId { len, head: Sha256::digest(head).into() })
}

/// RAM is kept in one content, piece behind piece.
fn write_ram(frozen: &Frozen<'_, Processor>, file: &File, start: u64) -> io::Result<()> {
    let ram = frozen.ram();
    let mut at = start;
    for piece in ram.slots() {
        let len = piece.len as u64;
        write_nonzero(file, at, len, |offset, bytes| {
            let from = GuestAddress(piece.guest.0 + offset);
            ram.read_bytes(from, bytes).map_err(io::Error::other)
        })?;
        at += len;
    }
    Ok(())
}

fn read(snapshot: &Snapshot) -> Result<(State, Description), SnapshotError> {
    let state = State::decode(snapshot.part(MACHINE, STATE_VERSION)?);
    let state = state.ok_or_else(|| snapshot.nonsense(MACHINE))?;
    match postcard::take_from_bytes(snapshot.part(SANDBOX, DESCRIPTION_VERSION)?) {
        Ok((description, [])) => Ok((state, description)),
        _ => Err(snapshot.nonsense(SANDBOX)),
    }
}

/// Can the snapshot's machine be one with this configuration?
fn check(
    snapshot: &Snapshot,
    config: &RestoreConfig,
    description: &Description,
    image_path: &Path,
) -> Result<(), Error> {
    let refuse = |why: String| Err(Error::CannotGoOn { path: snapshot.path().to_owned(), why });
    let image = image_id(image_path)
        .map_err(|source| ImageError::Io { path: image_path.to_owned(), source })?;
    if image != description.image {
        return refuse(format!("{} is not the root image that it had", image_path.display()));
    }
    match (description.network, config.network.is_some()) {
        (true, false) => refuse("it had a network card, and is to have none".to_owned()),
        (false, true) => refuse("it had no network card, and is to have one".to_owned()),
        _ => Ok(()),
    }
}

/// RAM with what the snapshot has of it, mapped: whoever writes gets a copy of the page, and what nobody
/// touches is shared by all machines out of the snapshot.
fn map_ram(snapshot: &Snapshot, memory: u64) -> Result<GuestRam, Error> {
    let content = snapshot.content(RAM).filter(|content| content.len == memory);
    let content = content.ok_or_else(|| snapshot.nonsense(RAM))?;
    let mapped = |error| Error::from(MachineError::Memory(error));
    let ram = GuestRam::new(&Processor::ram_pieces(memory)).map_err(mapped)?;
    let mut begin = 0;
    for piece in ram.slots() {
        let end = begin + piece.len as u64;
        for &(start, len) in &content.extents {
            let (from, to) = (start.max(begin), (start + len).min(end));
            if from < to {
                let guest = GuestAddress(piece.guest.0 + (from - begin));
                ram.map_file(guest, (to - from) as usize, snapshot.file(), content.start + from)
                    .map_err(mapped)?;
            }
        }
        begin = end;
    }
    Ok(ram)
}

fn disk(
    snapshot: &Snapshot,
    description: &Description,
    folder: &Path,
) -> Result<Option<Disk>, Error> {
    let Some(offers_flush) = description.disk else { return Ok(None) };
    let content = snapshot.content(DISK).ok_or_else(|| snapshot.nonsense(DISK))?;
    let base = snapshot.file().try_clone().map_err(Error::host("a descriptor"))?;
    let disk = Disk::overlay(base, content.start, content.len, folder)?;
    Ok(Some(disk.offering_flush(offers_flush)))
}

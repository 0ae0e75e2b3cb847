//! What other processes of the host do in folders that the guest looks into, made known to the guest.
//!
//! Linux's virtio-fs driver takes no notifications from a device (6.12). So the guest's agent is told
//! of a change and *repeats* it in the guest: it makes, removes or touches the entry there, and the
//! guest's kernel tells its `inotify` watchers and drops what it had cached. The server recognizes
//! these requests by the thread that they come from, and changes nothing on the host for them; it
//! answers as if it had ([`server::replay`](crate::server)). What a hostile guest makes of that concerns
//! its own view alone.
//!
//! A folder is watched from the moment that the guest first looks up something in it or lists it. The
//! server's own doing, which is the guest's, is left out.

use std::ffi::CString;
use std::sync::{Mutex, PoisonError};

use cabana_os::{EntryChange, Event, FolderWatch};
use rustc_hash::FxHashMap;

use crate::nodes::Node;

/// Folders from which names are swept at the earliest, once their nodes are forgotten.
const SWEEP: usize = 1024;

/// Something to be repeated in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// The number by which the guest knows the folder (its FUSE node).
    pub directory: u64,
    /// The entry's name.
    pub name: Vec<u8>,
    /// What to do to it.
    pub step: Step,
}

/// What to do in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make an entry of this type (the top bits of a mode).
    Make(u32),
    /// Remove the entry; a folder or not.
    Remove {
        /// It is a folder.
        folder: bool,
        /// The node that the guest knows by the name, or zero.
        node: u64,
    },
    /// Set the time of modification alone, for a change of content.
    Modify,
    /// Set both times, for a change of attributes.
    Touch,
    /// Open for writing and close.
    Close,
}

/// The folders that are watched on the host.
#[derive(Debug)]
pub(crate) struct Folders {
    watch: FolderWatch,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The node of a folder, by what the host calls it in events.
    nodes: FxHashMap<Box<[u8]>, u64>,
    sweep_at: usize,
}

impl Folders {
    pub(crate) fn new(watch: FolderWatch) -> Self {
        Self { watch, known: Mutex::default() }
    }

    /// Watches a folder. Where the host cannot, the guest sees changes as it does without.
    pub(crate) fn add(&self, node: &Node, is_known: impl Fn(u64) -> bool) {
        let Ok(name) = self.watch.add(&node.handle) else { return };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.nodes.insert(name, node.id);
        if known.nodes.len() > known.sweep_at.max(SWEEP) {
            known.nodes.retain(|_, id| is_known(*id));
            known.sweep_at = 2 * known.nodes.len();
        }
    }

    pub(crate) fn wait(&self, wake: &Event) -> std::io::Result<()> {
        self.watch.wait(wake)
    }

    /// What has happened since, in order: the folder's node, the name, the change.
    pub(crate) fn take(&self) -> std::io::Result<Vec<(u64, CString, EntryChange)>> {
        let mut events = Vec::new();
        self.watch.read(|folder, name, change| {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(node) = known.nodes.get(folder) {
                events.push((*node, name.to_owned(), change));
            }
        })?;
        Ok(events)
    }
}

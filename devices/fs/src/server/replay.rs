//! Repeating in the guest what happened on the host; see `watch`.

use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use cabana_os::{EntryChange, Event, FolderWatch};
use rustc_hash::FxHashSet;

use crate::coherence::{NameKey, Young};
use crate::message::{self, Reply, Request};
use crate::names::Name;
use crate::nodes::{Node, Seen, hash_name};
use crate::server::{FileServer, Outcome};
use crate::watch::{Folders, Replay, Step};
use crate::wire::{self, InHeader, Result, mode, opcode, open};

impl FileServer {
    /// From now on watches the folders that the guest looks into. A second call does nothing. Fails
    /// where the host has no such thing: the guest then sees changes within a second, and no events.
    pub fn watch(&self) -> io::Result<()> {
        if self.folders.get().is_none() {
            let _ = self.folders.set(Folders::new(FolderWatch::new()?));
        }
        Ok(())
    }

    /// Waits until [`changes`](Self::changes) has something or the event is signalled; does not wait
    /// before [`watch`](Self::watch).
    pub fn await_changes(&self, wake: &Event) -> io::Result<()> {
        self.folders.get().map_or(Ok(()), |folders| folders.wait(wake))
    }

    /// What others have done on the host since, as it is to be repeated in the guest, in order.
    pub fn changes(&self) -> io::Result<Vec<Replay>> {
        let Some(folders) = self.folders.get() else { return Ok(Vec::new()) };
        let (mut replays, changes) = (Vec::new(), folders.take()?);
        let of_names = changes.iter().filter(|(_, _, change)| change.came || change.went);
        let seen = self.nodes.seen_in(&of_names.map(|(directory, ..)| *directory).collect());
        let mut settled = FxHashSet::default();
        for (directory, name, change) in changes {
            if let (Ok(node), Some(name)) = (self.nodes.get(directory), Name::of_entry(&name)) {
                // What there is now already answers for what follows of the same name.
                let is_first = !(change.came || change.went)
                    || settled.insert((directory, hash_name(self.names, name)));
                let change = EntryChange {
                    came: change.came && is_first,
                    went: change.went && is_first,
                    ..change
                };
                self.plan(&node, name, change, &seen, &mut replays);
            }
        }
        Ok(replays)
    }

    /// The thread of the guest that repeats changes; zero for none.
    pub fn set_replayer(&self, thread: u32) {
        self.replayer.store(thread, Ordering::Release);
    }

    /// What the thread is at; `None` once it is done.
    pub fn set_replay(&self, replay: Option<Replay>) {
        *self.replay.lock().unwrap_or_else(PoisonError::into_inner) = replay;
    }

    /// How long a change proves nothing of later ones.
    pub(super) fn young(&self) -> Young {
        if self.folders.get().is_some() { Young::Watched } else { Young::Unwatched }
    }

    pub(super) fn is_replayer(&self, header: &InHeader) -> bool {
        header.pid != 0 && header.pid == self.replayer.load(Ordering::Acquire)
    }

    /// Begins to watch a folder in which the guest looks something up.
    pub(super) fn look_into(&self, directory: &Node) {
        if let Some(folders) = self.folders.get()
            && !directory.watched.load(Ordering::Relaxed)
            && !directory.watched.swap(true, Ordering::Relaxed)
        {
            folders.add(directory, |id| self.nodes.get(id).is_ok());
        }
    }

    /// A request of the thread that repeats changes: it changes nothing.
    pub(super) fn replayed(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<Outcome> {
        match header.opcode {
            opcode::LOOKUP if header.nodeid != wire::ROOT_ID => {
                let names = self.read_names(header, request, 1)?;
                let (name, _) = Name::take(&names)?;
                let step = self.replay_of(header.nodeid, name);
                let directory = self.nodes.get(header.nodeid)?;
                let entry = match step {
                    Some(Step::Make(_)) => return Err(wire::Errno::ENOENT),
                    Some(Step::Remove { folder, node }) => self.before_removal(node, folder),
                    _ => self.resolve(&directory, name)?,
                };
                self.put_entry(reply, &entry)?;
            }
            opcode::MKNOD | opcode::MKDIR | opcode::SYMLINK => {
                match header.opcode {
                    opcode::MKNOD => drop(message::read::<wire::MknodIn>(request)?),
                    opcode::MKDIR => drop(message::read::<wire::MkdirIn>(request)?),
                    _ => {}
                }
                let names = self.read_names(header, request, 1)?;
                let (name, _) = Name::take(&names)?;
                let entry = self.resolve(&*self.nodes.get(header.nodeid)?, name)?;
                self.put_entry(reply, &entry)?;
            }
            opcode::UNLINK | opcode::RMDIR => {}
            opcode::SETATTR => self.getattr(header, reply)?,
            opcode::OPEN => {
                let input = wire::OpenIn { flags: open::RDONLY, open_flags: 0 };
                self.open_with(header, input, reply)?;
            }
            _ => return self.serve(header, request, reply),
        }
        Ok(Outcome::Answered)
    }

    fn replay_of(&self, directory: u64, name: Name) -> Option<Step> {
        let replay = self.replay.lock().unwrap_or_else(PoisonError::into_inner);
        let replay = replay.as_ref()?;
        let is_it =
            replay.directory == directory && *replay.name == *self.names.to_guest(name.as_bytes());
        is_it.then_some(replay.step)
    }

    /// What had the name: the node that the guest knows, or one that it never sees again.
    fn before_removal(&self, node: u64, folder: bool) -> wire::EntryOut {
        let known = self.nodes.get(node).ok().and_then(|node| {
            let stat = node.handle.stat().ok()?;
            self.nodes.enter_known(&node.share, &stat)?;
            Some(self.entry(&node, NameKey::default(), &stat))
        });
        known.unwrap_or_else(|| {
            let kind = if folder { mode::DIRECTORY } else { mode::REGULAR };
            let attr = wire::Attr { mode: kind | 0o600, nlink: 1, ino: u64::MAX, ..<_>::default() };
            wire::EntryOut { nodeid: self.nodes.unused_id(), attr, ..<_>::default() }
        })
    }

    /// Several changes may come as one, and more may have happened by now: what there is counts.
    fn plan(
        &self,
        directory: &Node,
        name: Name,
        change: EntryChange,
        seen: &Seen,
        to: &mut Vec<Replay>,
    ) {
        let mut step = |step| {
            let replay = Replay {
                directory: directory.id,
                name: self.names.to_guest(name.as_bytes()).into_owned(),
                step,
            };
            if to.last() != Some(&replay) {
                to.push(replay);
            }
        };
        let now = directory.handle.stat_child(name.as_c_str()).ok();
        if change.came || change.went {
            let before = seen.get(&(directory.id, hash_name(self.names, name)));
            let same = |node: &Node| now.is_some_and(|now| node.is(&directory.share, &now));
            match (&before, &now) {
                (Some(node), Some(_)) if same(node) => {}
                (Some(node), _) => {
                    step(Step::Remove { folder: node.kind == mode::DIRECTORY, node: node.id });
                }
                (None, None) if change.went => {
                    step(Step::Remove { folder: change.folder, node: 0 });
                }
                (None, _) => {}
            }
            if let Some(now) = now.filter(|_| !before.is_some_and(|node| same(node))) {
                step(Step::Make(now.kind()));
            }
        }
        if now.is_none() {
            return;
        }
        if change.content || change.came {
            step(Step::Modify);
        }
        if change.attributes {
            step(Step::Touch);
        }
        if change.closed {
            step(Step::Close);
        }
    }

    /// How a node is found by the name that the guest last had for it.
    pub(super) fn note_name(&self, node: &Node, directory: u64, name: Name) -> NameKey {
        let hash = hash_name(self.names, name);
        node.seen_in.store(directory, Ordering::Relaxed);
        node.seen_name.store(hash, Ordering::Relaxed);
        NameKey { directory, hash }
    }
}

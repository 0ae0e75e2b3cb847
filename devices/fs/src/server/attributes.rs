//! LOOKUP, attributes, and what the guest sees of them.
//!
//! Owners: what belongs to the process's own user and group is root's (0) in the guest, and so is
//! what the guest makes; all else is nobody's (65534). The guest cannot change an owner; asking
//! for the one that is there succeeds. An idmapped mount shows 0 as any user of the guest.

use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cabana_os::process::realtime_coarse;

use crate::coherence::{NameKey, VALID};
use crate::handles::Open;
use crate::host::{self, Access, NewTime, Stat, Time};
use crate::message::{self, Reply, Request};
use crate::names::Name;
use crate::nodes::Node;
use crate::observer::Change;
use crate::server::FileServer;
use crate::server::file::open_node;
use crate::share::Attached;
use crate::wire::{self, Errno, InHeader, Result, fattr, mode};

/// The guest's root: the process's own user and group.
const MINE: u32 = 0;
/// Anybody else.
const NOBODY: u32 = 65534;
/// `STATX_BASIC_STATS`.
const STATX_BASIC: u32 = 0x7ff;
/// `STATX_BTIME`.
const STATX_BIRTH: u32 = 0x800;

impl FileServer {
    pub(super) fn lookup(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<()> {
        let names = self.read_names(header, request, 1)?;
        let (name, _) = Name::take(&names)?;
        let entry = self.look_up(header.nodeid, name);
        self.sent_back.found(header.pid, entry.map_or(0, |entry| entry.nodeid));
        self.put_entry(reply, &entry?)
    }

    fn look_up(&self, parent: u64, name: Name) -> Result<wire::EntryOut> {
        if parent == wire::ROOT_ID {
            let share = self.shares.find(name)?;
            let handle = share.root.try_clone()?;
            let stat = handle.stat()?;
            let node = self.nodes.enter(&share, handle, &stat)?;
            Ok(self.entry(&node, NameKey::default(), &stat))
        } else {
            self.nodes.within(parent, |directory| {
                self.resolve(directory, name).map_err(|error| match error {
                    // A directory that the host has removed: let the guest look for it anew.
                    Errno::ENOENT if is_removed(directory) => Errno::ESTALE,
                    error => error,
                })
            })
        }
    }

    /// Tells the guest of the entry `name` of `directory`, one lookup.
    pub(super) fn resolve(&self, directory: &Node, name: Name) -> Result<wire::EntryOut> {
        self.look_into(directory);
        if directory.known_below.load(Ordering::Relaxed) {
            // One look by name is enough: the node's own handle keeps its inode from being another.
            let stat = directory.handle.stat_child(name.as_c_str())?;
            if let Some(node) = self.nodes.enter_known(&directory.share, &stat) {
                let key = self.note_name(&node, directory.id, name);
                return Ok(self.entry(&node, key, &stat));
            }
            directory.known_below.store(false, Ordering::Relaxed);
        }
        let handle = directory.handle.child(name.as_c_str())?;
        let stat = handle.stat()?;
        let node = self.nodes.enter(&directory.share, handle, &stat)?;
        if node.is_known() {
            directory.known_below.store(true, Ordering::Relaxed);
        }
        let key = self.note_name(&node, directory.id, name);
        Ok(self.entry(&node, key, &stat))
    }

    /// What the guest is told with a name of a node.
    pub(super) fn entry(&self, node: &Node, name: NameKey, stat: &Stat) -> wire::EntryOut {
        let mut valid = match node.kind {
            mode::REGULAR => {
                let mut cached = node.cached.lock().unwrap_or_else(PoisonError::into_inner);
                cached.resolved(name, stat, realtime_coarse(), self.young())
            }
            mode::DIRECTORY => VALID,
            // Nothing is opened behind a link, so nothing would notice another one in its place.
            _ => Duration::ZERO,
        };
        if self.nodes.is_crowded() {
            valid = Duration::ZERO;
        }
        wire::EntryOut {
            nodeid: node.id,
            generation: 0,
            entry_valid: valid.as_secs(),
            entry_valid_nsec: valid.subsec_nanos(),
            attr_valid: VALID.as_secs(),
            attr_valid_nsec: VALID.subsec_nanos(),
            attr: self.attr(&node.share, stat),
        }
    }

    /// Writes an entry; one that the guest does not get is not a lookup.
    pub(super) fn put_entry(&self, reply: &mut impl Reply, entry: &wire::EntryOut) -> Result<()> {
        message::write(reply, entry).inspect_err(|_| self.nodes.forget(entry.nodeid, 1))
    }

    pub(super) fn getattr(&self, header: &InHeader, reply: &mut impl Reply) -> Result<()> {
        let attr = if header.nodeid == wire::ROOT_ID {
            self.shares.attr()
        } else {
            let node = self.nodes.get(header.nodeid)?;
            // A journal knows its names for an inode by the inode's birth too.
            let stat = match node.share.observer.journal {
                None => self.or_open(&node, node.handle.attributes())?,
                Some(_) => self.stat(&node)?,
            };
            self.attr(&node.share, &stat)
        };
        put_attr(reply, attr)
    }

    pub(super) fn statx(&self, header: &InHeader, reply: &mut impl Reply) -> Result<()> {
        let (attr, born) = self.attr_of(header.nodeid)?;
        let time = |sec, nsec| wire::SxTime { sec, nsec, reserved: 0 };
        let birth = if born.is_some() { STATX_BIRTH } else { 0 };
        let born = born.unwrap_or_default();
        let output = wire::StatxOut {
            attr_valid: VALID.as_secs(),
            attr_valid_nsec: VALID.subsec_nanos(),
            stat: wire::Statx {
                mask: STATX_BASIC | birth,
                blksize: attr.blksize,
                nlink: attr.nlink,
                uid: attr.uid,
                gid: attr.gid,
                mode: attr.mode as u16,
                ino: attr.ino,
                size: attr.size,
                blocks: attr.blocks,
                atime: time(attr.atime as i64, attr.atimensec),
                btime: time(born.sec, born.nsec),
                ctime: time(attr.ctime as i64, attr.ctimensec),
                mtime: time(attr.mtime as i64, attr.mtimensec),
                ..wire::Statx::default()
            },
            ..wire::StatxOut::default()
        };
        message::write(reply, &output)
    }

    pub(super) fn statfs(&self, header: &InHeader, reply: &mut impl Reply) -> Result<()> {
        let output = if header.nodeid == wire::ROOT_ID {
            wire::StatfsOut { bsize: 4096, frsize: 4096, namelen: 255, ..<_>::default() }
        } else {
            host::statfs(&self.nodes.get(header.nodeid)?.handle)?
        };
        message::write(reply, &output)
    }

    pub(super) fn setattr(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<()> {
        let input: wire::SetattrIn = message::read(request)?;
        let node = self.writable_node(header.nodeid)?;
        let has = |flag: u32| input.valid & flag != 0;
        if has(fattr::UID | fattr::GID) {
            let attr = self.attr(&node.share, &node.handle.stat()?);
            let other_user = has(fattr::UID) && input.uid != attr.uid;
            let other_group = has(fattr::GID) && input.gid != attr.gid;
            if other_user || other_group {
                return Err(Errno::EPERM);
            }
        }
        if has(fattr::MODE) {
            change_attributes(&node, || {
                if node.kind == mode::SYMLINK {
                    return Err(Errno::EOPNOTSUPP);
                }
                Ok(node.handle.set_mode(host::permissions(input.mode))?)
            })?;
        }
        if has(fattr::SIZE) {
            let open = has(fattr::FH).then(|| self.handles.get(input.fh, header.nodeid));
            let open = open.transpose()?;
            let open = open.as_deref().map(Open::as_file).transpose()?;
            let mark = open.map(|open| &open.mark);
            let change = Change::Content { node: &node, from: input.size, mark };
            node.share.change(&change, || match open {
                Some(open) => Ok(host::set_len(&open.file, input.size)?),
                None => Ok(host::set_len(&open_node(&node, Access::WRITE)?.0, input.size)?),
            })?;
        }
        let accessed = new_time(
            has(fattr::ATIME),
            has(fattr::ATIME_NOW),
            Time { sec: input.atime as i64, nsec: input.atimensec },
        );
        let modified = new_time(
            has(fattr::MTIME),
            has(fattr::MTIME_NOW),
            Time { sec: input.mtime as i64, nsec: input.mtimensec },
        );
        if accessed.is_some() || modified.is_some() {
            change_attributes(&node, || Ok(node.handle.set_times(accessed, modified)?))?;
        }
        put_attr(reply, self.attr(&node.share, &self.stat(&node)?))
    }

    /// What the host says of a node.
    fn stat(&self, node: &Node) -> Result<Stat> {
        self.or_open(node, node.handle.stat())
    }

    /// What it says of a file that the guest has open, where the host finds none without a name by its handle.
    fn or_open(&self, node: &Node, found: io::Result<Stat>) -> Result<Stat> {
        match found.map_err(Errno::from) {
            Err(Errno::ESTALE) => {
                let open = self.handles.any_of(node).ok_or(Errno::ESTALE)?;
                Ok(host::stat(&open.as_file()?.file)?)
            }
            found => found,
        }
    }

    /// A node's attributes, and when it was made, if the host knows.
    fn attr_of(&self, id: u64) -> Result<(wire::Attr, Option<Time>)> {
        if id == wire::ROOT_ID {
            return Ok((self.shares.attr(), None));
        }
        let node = self.nodes.get(id)?;
        let stat = self.stat(&node)?;
        Ok((self.attr(&node.share, &stat), stat.born))
    }

    /// An inode as the guest sees it. Set-ID bits and device numbers stay on the host.
    fn attr(&self, share: &Attached, stat: &Stat) -> wire::Attr {
        let mine = |id: u32, own: u32| if id == own { MINE } else { NOBODY };
        wire::Attr {
            ino: self.numbers.number(stat.device, stat.ino),
            size: stat.size,
            blocks: stat.blocks,
            atime: stat.accessed.sec as u64,
            mtime: stat.modified.sec as u64,
            ctime: stat.changed.sec as u64,
            atimensec: stat.accessed.nsec,
            mtimensec: stat.modified.nsec,
            ctimensec: stat.changed.nsec,
            mode: stat.mode & (mode::TYPE | mode::PERMISSIONS),
            nlink: share.observer.links(stat),
            uid: mine(stat.uid, self.owner.uid),
            gid: mine(stat.gid, self.owner.gid),
            rdev: 0,
            blksize: stat.block_size,
            flags: 0,
        }
    }
}

fn put_attr(reply: &mut impl Reply, attr: wire::Attr) -> Result<()> {
    let (attr_valid, attr_valid_nsec) = (VALID.as_secs(), VALID.subsec_nanos());
    message::write(reply, &wire::AttrOut { attr_valid, attr_valid_nsec, dummy: 0, attr })
}

/// Makes a change to what stands beside a node's content.
pub(super) fn change_attributes(node: &Node, make: impl FnOnce() -> Result<()>) -> Result<()> {
    node.share.change(&Change::Attributes { node }, make)
}

fn is_removed(directory: &Node) -> bool {
    directory.handle.stat().is_ok_and(|stat| stat.links == 0)
}

fn new_time(set: bool, now: bool, time: Time) -> Option<NewTime> {
    match (set, now) {
        (_, true) => Some(NewTime::Now),
        (true, false) => Some(NewTime::At(time)),
        (false, false) => None,
    }
}

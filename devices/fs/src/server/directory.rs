//! Reading directories, with or without the attributes of what they list.

use std::sync::{Mutex, PoisonError};

use zerocopy::IntoBytes;

use crate::coherence::NameKey;
use crate::handles::{Open, OpenDirectory, Stream};
use crate::host::{self, Listed};
use crate::message::{self, Reply, Request};
use crate::names::Name;
use crate::nodes::Node;
use crate::server::FileServer;
use crate::wire::{self, Errno, InHeader, Result, mode};

/// The most bytes of one answer.
const MAX_LISTING: usize = 128 << 10;
/// The least room for entries of the host: the longest has 19 bytes and a name.
const MIN_HOST_ROOM: usize = 512;
/// The synthetic root lists `.`, `..` and the shares, each at its number and this many.
const FIRST_SHARE: u64 = 2;

impl FileServer {
    pub(super) fn opendir(&self, header: &InHeader, reply: &mut impl Reply) -> Result<()> {
        let open = if header.nodeid == wire::ROOT_ID {
            Open::Root
        } else {
            let node = self.nodes.get(header.nodeid)?;
            if node.kind != mode::DIRECTORY {
                return Err(Errno::ENOTDIR);
            }
            self.handles.check_room()?;
            self.look_into(&node);
            let listing = host::Listing::open(&node.handle)?;
            let stream = Mutex::new(Stream { listing, position: Some(0) });
            Open::Directory(OpenDirectory { node, stream })
        };
        let fh = self.handles.insert(open)?;
        let output = wire::OpenOut { fh, open_flags: 0, backing_id: 0 };
        message::write(reply, &output).inspect_err(|_| {
            let _ = self.handles.remove(fh, header.nodeid);
        })
    }

    pub(super) fn readdir(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
        plus: bool,
    ) -> Result<()> {
        let input: wire::ReadIn = message::read(request)?;
        let room = reply.room().min(input.size as usize).min(MAX_LISTING);
        let mut listing = Listing { bytes: Vec::with_capacity(room), room, plus };
        match &*self.handles.get(input.fh, header.nodeid)? {
            Open::Root => self.list_shares(input.offset, &mut listing)?,
            Open::Directory(open) => self.list(open, input.offset, &mut listing)?,
            Open::File(_) => return Err(Errno::ENOTDIR),
        }
        reply.put(&listing.bytes)
    }

    fn list_shares(&self, offset: u64, listing: &mut Listing) -> Result<()> {
        let dots: [&[u8]; 2] = [b".", b".."];
        for (index, name) in (1..).zip(dots) {
            if offset < index {
                let dirent = dirent(wire::ROOT_ID, index, mode::DIRECTORY, name);
                listing.put(&dirent, name, wire::EntryOut::default)?;
            }
        }
        for share in self.shares.from(offset.saturating_sub(FIRST_SHARE).saturating_add(1)) {
            let name = share.name.to_bytes();
            let Ok(stat) = share.root.stat() else { continue };
            let number = self.numbers.number(stat.device, stat.ino);
            let dirent = dirent(number, share.id + FIRST_SHARE, mode::DIRECTORY, name);
            let entry = || {
                let node = self.nodes.enter(&share, share.root.try_clone().ok()?, &stat).ok()?;
                Some(self.entry(&node, NameKey::default(), &stat))
            };
            if !listing.put(&dirent, name, || entry().unwrap_or_default())? {
                break;
            }
        }
        Ok(())
    }

    fn list(&self, open: &OpenDirectory, offset: u64, listing: &mut Listing) -> Result<()> {
        let mut stream = open.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if stream.position != Some(offset) {
            stream.listing.seek(offset)?;
        }
        stream.position = None;
        let (mut next, mut last) = (offset, Ok(true));
        stream.listing.read(listing.host_room(), |entry| {
            last = self.list_one(&open.node, entry, listing);
            if last == Ok(true) {
                next = entry.next;
            }
            last == Ok(true)
        })?;
        // With entries left over the host is further on than the guest.
        stream.position = last?.then_some(next);
        Ok(())
    }

    /// Lists one entry; false if there is no room for it.
    fn list_one(&self, directory: &Node, entry: &Listed, listing: &mut Listing) -> Result<bool> {
        let bytes = entry.name.to_bytes();
        let shown = self.names.to_guest(bytes);
        let name = Name::of_entry(entry.name);
        // What is above a share is none of the guest's business.
        let number = match bytes {
            b".." => wire::ROOT_ID,
            _ => self.numbers.number(directory.device, entry.ino),
        };
        let dirent = dirent(number, entry.next, entry.kind, &shown);
        listing.put(&dirent, &shown, || {
            // An entry that is gone by now, or that there is no room for, is listed without.
            name.filter(|_| !self.nodes.is_crowded())
                .and_then(|name| self.resolve(directory, name).ok())
                .unwrap_or_default()
        })
    }
}

fn dirent(ino: u64, off: u64, kind: u32, name: &[u8]) -> wire::Dirent {
    wire::Dirent { ino, off, namelen: name.len() as u32, kind: kind >> 12 }
}

/// The answer to a READDIR or READDIRPLUS as it grows.
struct Listing {
    bytes: Vec<u8>,
    room: usize,
    plus: bool,
}

impl Listing {
    /// Bytes that an entry takes besides its name.
    fn overhead(&self) -> usize {
        let plus = if self.plus { size_of::<wire::EntryOut>() } else { 0 };
        plus + size_of::<wire::Dirent>()
    }

    /// How much to read from the host, so that little of it has no room here.
    fn host_room(&self) -> usize {
        let typical_name = 16;
        let entries = self.room / (self.overhead() + typical_name);
        (entries * (19 + typical_name)).max(MIN_HOST_ROOM)
    }

    /// Appends an entry, with `entry` if that is wanted. False if there is no room for it; an
    /// error if there is none for any, which the guest would take for the directory's end.
    fn put(
        &mut self,
        dirent: &wire::Dirent,
        name: &[u8],
        entry: impl FnOnce() -> wire::EntryOut,
    ) -> Result<bool> {
        let len = (self.overhead() + name.len()).next_multiple_of(8);
        if self.room - self.bytes.len() < len {
            return if self.bytes.is_empty() { Err(Errno::EINVAL) } else { Ok(false) };
        }
        let end = self.bytes.len() + len;
        if self.plus {
            self.bytes.extend_from_slice(entry().as_bytes());
        }
        self.bytes.extend_from_slice(dirent.as_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        Ok(true)
    }
}

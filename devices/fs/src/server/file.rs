//! Open files: reading, writing, and the space that they take.

use std::fs::File;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use cabana_os::process::realtime_coarse;

use crate::coherence::Opening;
use crate::handles::{Open, OpenFile};
use crate::host::{self, Access, Stat};
use crate::message::{self, Reply, Request};
use crate::nodes::Node;
use crate::observer::Change;
use crate::server::{FileServer, MAX_TRANSFER};
use crate::wire::{self, Errno, InHeader, Result, mode, open};

/// The most bytes of one copy within the host: a bounded time on the queue's thread.
const MAX_COPY: usize = 16 << 20;
/// How often a file is looked at that ends before its end: a writer may cut it and write it anew meanwhile.
const SECOND_LOOKS: usize = 4;

/// What the guest's `open(2)` flags ask for.
pub(super) fn access(flags: u32) -> Access {
    let mode = flags & open::ACCMODE;
    Access {
        read: mode != open::WRONLY,
        write: mode == open::WRONLY || mode == open::RDWR,
        append: flags & open::APPEND != 0,
        data_sync: flags & open::DSYNC != 0,
        sync: flags & open::SYNC != 0,
    }
}

/// Opens a node's file on the host; every file that is ever read or written is opened here or
/// was made by the guest.
pub(super) fn open_node(node: &Node, access: Access) -> Result<(File, Stat)> {
    if access.write {
        node.share.check_writable()?;
    }
    if node.kind == mode::DIRECTORY {
        return Err(Errno::EISDIR);
    }
    let file = host::open(&node.handle, node.kind, access)?;
    let stat = host::stat(&file)?;
    if access.write && stat.mode & mode::SET_ID != 0 {
        // What the guest may write must not run as somebody. The host's kernel sees to it
        // unless this process is privileged, and then this does not fail.
        let change = Change::Attributes { node };
        let _ = node
            .share
            .change(&change, || Ok(host::set_permissions(&file, host::permissions(stat.mode))?));
    }
    Ok((file, stat))
}

/// Some hosts take offsets that no file has for places: its end, its position.
fn check_offset(offset: u64) -> Result<()> {
    i64::try_from(offset).map(drop).map_err(|_| Errno::EINVAL)
}

/// A change of an open file's content from an offset on.
fn content(open: &OpenFile, from: u64) -> Change<'_> {
    Change::Content { node: &open.node, from, mark: Some(&open.mark) }
}

impl FileServer {
    pub(super) fn open(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<()> {
        let input = message::read(request)?;
        self.open_with(header, input, reply)
    }

    pub(super) fn open_with(
        &self,
        header: &InHeader,
        input: wire::OpenIn,
        reply: &mut impl Reply,
    ) -> Result<()> {
        let node = self.node(header.nodeid)?;
        self.handles.check_room()?;
        let access = access(input.flags);
        let (file, stat) = open_node(&node, access)?;
        let opening = {
            let mut cached = node.cached.lock().unwrap_or_else(PoisonError::into_inner);
            let anew = self.sent_back.take(header.pid, node.id);
            cached.open(&stat, realtime_coarse(), self.young(), anew)
        };
        if opening == Opening::Stale {
            self.sent_back.note(header.pid, node.id);
            return Err(Errno::ESTALE);
        }
        let open_flags = if opening == Opening::Unchanged { open::KEEP_CACHE } else { 0 };
        let id = node.id;
        let fh = self.handles.insert(Open::File(OpenFile::new(node, file, stat.size, access)))?;
        message::write(reply, &wire::OpenOut { fh, open_flags, backing_id: 0 }).inspect_err(|_| {
            let _ = self.handles.remove(fh, id);
        })
    }

    pub(super) fn read(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<()> {
        let input: wire::ReadIn = message::read(request)?;
        let open = self.handles.get(input.fh, header.nodeid)?;
        let open = open.as_file()?;
        check_offset(input.offset)?;
        let len = reply.room().min(input.size.min(MAX_TRANSFER) as usize);
        let count = reply.put_file(&open.file, input.offset, len)?;
        let end = input.offset.saturating_add(count as u64);
        if count == len || end >= open.len {
            return Ok(());
        }
        // Cut by somebody, who may be writing it anew; or the host does not have all of it, and then zeroes in
        // place of what is missing would be a lie.
        for _ in 0..SECOND_LOOKS {
            let is_end = host::stat(&open.file)?.size <= end;
            if is_end || reply.put_file(&open.file, end, len - count)? > 0 {
                return Ok(());
            }
        }
        Err(Errno::EIO)
    }

    pub(super) fn write(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<()> {
        let input: wire::WriteIn = message::read(request)?;
        if input.size > MAX_TRANSFER || input.size as usize > request.left() {
            return Err(Errno::EINVAL);
        }
        let open = self.handles.get(input.fh, header.nodeid)?;
        let open = open.as_file()?;
        check_offset(input.offset)?;
        // The guest may have changed it since (`fcntl(2)`).
        let append = input.flags & open::APPEND != 0;
        if open.append.swap(append, Ordering::Relaxed) != append {
            host::set_append(&open.file, append)?;
        }
        let from = if append { u64::MAX } else { input.offset };
        let count = open.node.share.change(&content(open, from), || {
            let at = if append { host::append_at(input.offset) } else { input.offset };
            request.write_file(&open.file, at, input.size as usize)
        })?;
        message::write(reply, &wire::WriteOut { size: count as u32, padding: 0 })
    }

    pub(super) fn release(&self, header: &InHeader, request: &mut impl Request) -> Result<()> {
        let input: wire::ReleaseIn = message::read(request)?;
        self.handles.remove(input.fh, header.nodeid)
    }

    pub(super) fn fsync(&self, header: &InHeader, request: &mut impl Request) -> Result<()> {
        let input: wire::FsyncIn = message::read(request)?;
        let data_only = input.fsync_flags & wire::FSYNC_FDATASYNC != 0;
        match &*self.handles.get(input.fh, header.nodeid)? {
            Open::File(open) => Ok(host::sync(&open.file, data_only)?),
            Open::Directory(open) => {
                let stream = open.stream.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(stream.listing.sync(data_only)?)
            }
            Open::Root => Ok(()),
        }
    }

    /// `sync(2)` and `syncfs(2)`: all that the guest may have changed reaches the host's disks.
    pub(super) fn syncfs(&self) -> Result<()> {
        for share in self.shares.from(0) {
            if share.check_writable().is_ok() {
                host::sync_file_system(&share.root)?;
            }
        }
        Ok(())
    }

    pub(super) fn fallocate(&self, header: &InHeader, request: &mut impl Request) -> Result<()> {
        let input: wire::FallocateIn = message::read(request)?;
        let known = wire::FALLOC_KEEP_SIZE | wire::FALLOC_PUNCH_HOLE | wire::FALLOC_ZERO_RANGE;
        if input.mode & !known != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let open = self.handles.get(input.fh, header.nodeid)?;
        let open = open.as_file()?;
        open.node.share.change(&content(open, input.offset), || {
            Ok(host::allocate(&open.file, input.mode, input.offset, input.length)?)
        })
    }

    pub(super) fn lseek(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<()> {
        let input: wire::LseekIn = message::read(request)?;
        let hole = match input.whence {
            wire::SEEK_DATA => false,
            wire::SEEK_HOLE => true,
            _ => return Err(Errno::EINVAL),
        };
        let open = self.handles.get(input.fh, header.nodeid)?;
        let offset = host::seek_sparse(&open.as_file()?.file, input.offset, hole)?;
        message::write(reply, &wire::LseekOut { offset })
    }

    pub(super) fn copy_file_range(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<()> {
        let input: wire::CopyFileRangeIn = message::read(request)?;
        if input.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let from = self.handles.get(input.fh_in, header.nodeid)?;
        let to = self.handles.get(input.fh_out, input.nodeid_out)?;
        let len = usize::try_from(input.len).unwrap_or(usize::MAX).min(MAX_COPY);
        let (from, to) = (from.as_file()?, to.as_file()?);
        let count = to.node.share.change(&content(to, input.off_out), || {
            Ok(host::copy_range(&from.file, input.off_in, &to.file, input.off_out, len)?)
        })?;
        message::write(reply, &wire::WriteOut { size: count as u32, padding: 0 })
    }
}

//! The file server: takes FUSE requests, one at a time per caller, and answers them.
//!
//! All state is behind locks of its own, so several queues may call [`FileServer::handle`] from
//! several threads.

mod attributes;
mod directory;
mod entries;
mod file;
mod replay;
mod xattr;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use cabana_journal::Recorder;
use cabana_os::process::realtime;

use crate::coherence::SentBack;
use crate::handles::HandleTable;
use crate::host::{NAME_RULES, Owner, Time, descriptor_limit};
use crate::host_names::NameRules;
use crate::message::{self, Bytes, Reply, ReplyBuffer, Request};
use crate::names::{NAME_MAX, Name, TARGET_MAX};
use crate::nodes::{InodeNumbers, Node, NodeTable};
use crate::share::{Share, ShareError, ShareTable};
use crate::watch::{Folders, Replay};
use crate::wire::{self, Errno, InHeader, Result, init, opcode};

/// The most bytes of one READ or WRITE.
pub(crate) const MAX_TRANSFER: u32 = 1 << 20;
/// The guest's page, in which it counts `max_pages`.
const PAGE_SIZE: u32 = 4096;
/// Requests that the guest keeps in flight on its own account (readahead and the like).
const MAX_BACKGROUND: u16 = 64;
/// The most bytes of names in one request: two names, or one and a link's target.
const MAX_NAMES: usize = NAME_MAX + TARGET_MAX + 2;

/// What the server wants of the guest's kernel. Not `POSIX_LOCKS` and `FLOCK_LOCKS`: see the
/// crate's documentation. Not `WRITEBACK_CACHE`: what the guest writes is on the host when `write(2)`
/// returns. Not `ATOMIC_O_TRUNC`: Linux would have OPEN cut a file that is opened for reading before it looks whether the
/// file is a program that runs; as it is, OPEN cuts nothing, and a SETATTR comes when the file may be cut.
const WANTED: u64 = init::ASYNC_READ
    | init::BIG_WRITES
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT
    | init::INIT_EXT
    | init::ALLOW_IDMAP;

/// The most that one guest may make the host hold. Each takes a descriptor of this process; the
/// guest gets ENFILE beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Inodes that the guest's kernel has cached.
    pub nodes: usize,
    /// Files and directories that the guest has open.
    pub open: usize,
}

impl Limits {
    /// Three quarters of the descriptors that this process may have for inodes and an eighth for
    /// open files; the rest is for everything else. Raise the process's limit before.
    pub fn of_this_process() -> Self {
        let descriptors = descriptor_limit();
        Self { nodes: (descriptors / 4 * 3).min(1 << 20), open: (descriptors / 8).min(1 << 18) }
    }
}

/// Serves shares to one guest.
#[derive(Debug)]
pub struct FileServer {
    shares: ShareTable,
    nodes: NodeTable,
    handles: HandleTable,
    numbers: InodeNumbers,
    owner: Owner,
    names: NameRules,
    sent_back: SentBack,
    /// INIT has been agreed.
    ready: AtomicBool,
    setxattr_ext: AtomicBool,
    /// Folders that are watched on the host, once that is asked for.
    folders: OnceLock<Folders>,
    /// The thread of the guest that repeats the host's changes, and what it is at.
    replayer: AtomicU32,
    replay: Mutex<Option<Replay>>,
}

/// Is there an answer?
enum Outcome {
    Answered,
    Silent,
}

impl Default for FileServer {
    fn default() -> Self {
        Self::new()
    }
}

impl FileServer {
    /// A server without shares, with [`Limits::of_this_process`].
    pub fn new() -> Self {
        Self::with_limits(Limits::of_this_process())
    }

    /// A server without shares.
    pub fn with_limits(limits: Limits) -> Self {
        Self::with_rules(limits, NAME_RULES)
    }

    /// A server without shares for a host with other rules for names than this one.
    pub fn with_rules(limits: Limits, names: NameRules) -> Self {
        Self {
            shares: ShareTable::default(),
            nodes: NodeTable::new(limits.nodes),
            handles: HandleTable::new(limits.open),
            numbers: InodeNumbers::default(),
            owner: Owner::of_this_process(),
            names,
            sent_back: SentBack::default(),
            ready: AtomicBool::new(false),
            setxattr_ext: AtomicBool::new(false),
            folders: OnceLock::new(),
            replayer: AtomicU32::new(0),
            replay: Mutex::default(),
        }
    }

    /// Adds a share; the guest sees it at its next look into the root.
    pub fn attach(&self, share: &Share) -> std::result::Result<(), ShareError> {
        self.attach_with_journal(share, None)
    }

    /// Adds a share with its journal, if it has one, which keeps what the guest destroys.
    pub fn attach_with_journal(
        &self,
        share: &Share,
        journal: Option<Arc<Recorder>>,
    ) -> std::result::Result<(), ShareError> {
        self.shares.attach(share, journal, now())
    }

    /// Takes a share away and closes all that the guest has of it; what the guest still asks of
    /// it is answered with ESTALE.
    pub fn detach(&self, name: &str) -> std::result::Result<(), ShareError> {
        let share = self
            .shares
            .detach(name, now())
            .ok_or_else(|| ShareError::NotShared(name.to_owned()))?;
        self.handles.remove_share(&share);
        self.nodes.remove_share(&share);
        Ok(())
    }

    /// Forgets the guest: all that it knows and has open. The shares stay.
    pub fn reset(&self) {
        self.ready.store(false, Ordering::Release);
        self.handles.clear();
        self.nodes.clear();
    }

    /// Has the guest mounted the device?
    pub fn is_mounted(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// What the guest makes the host hold now.
    pub fn usage(&self) -> Limits {
        Limits { nodes: self.nodes.len(), open: self.handles.len() }
    }

    /// Serves a request that lies in a buffer; returns the reply's length in `reply`.
    pub fn handle_bytes(&self, mut request: &[u8], reply: &mut [u8]) -> usize {
        self.handle(&mut request, ReplyBuffer::new(reply)) as usize
    }

    /// Serves one request. Returns the bytes of the reply, none if there is none.
    pub fn handle(&self, request: &mut impl Request, mut reply: impl Reply) -> u32 {
        let whole = request.left();
        let header: InHeader = match message::read(request) {
            Ok(header) => header,
            Err(error) => return reply.finish(0, Err(error)),
        };
        if header.len as usize != whole {
            return reply.finish(header.unique, Err(Errno::EINVAL));
        }
        match self.dispatch(&header, request, &mut reply) {
            Ok(Outcome::Answered) => reply.finish(header.unique, Ok(())),
            Ok(Outcome::Silent) => 0,
            Err(error) => reply.finish(header.unique, Err(error)),
        }
    }

    fn dispatch(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<Outcome> {
        if !self.ready.load(Ordering::Acquire) && header.opcode != opcode::INIT {
            return match header.opcode {
                opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT => Ok(Outcome::Silent),
                _ => Err(Errno::EIO),
            };
        }
        if self.is_replayer(header) {
            return self.replayed(header, request, reply);
        }
        self.serve(header, request, reply)
    }

    fn serve(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<Outcome> {
        match header.opcode {
            opcode::INIT => self.init(request, reply),
            opcode::DESTROY => {
                self.reset();
                Ok(())
            }
            opcode::FORGET => {
                let _ = self.forget(header, request);
                return Ok(Outcome::Silent);
            }
            opcode::BATCH_FORGET => {
                let _ = self.batch_forget(request);
                return Ok(Outcome::Silent);
            }
            // No request is ever waiting.
            opcode::INTERRUPT => return Ok(Outcome::Silent),
            opcode::LOOKUP => self.lookup(header, request, reply),
            opcode::GETATTR => self.getattr(header, reply),
            opcode::SETATTR => self.setattr(header, request, reply),
            opcode::STATX => self.statx(header, reply),
            opcode::STATFS => self.statfs(header, reply),
            opcode::READLINK => self.readlink(header, reply),
            opcode::SYMLINK => self.symlink(header, request, reply),
            opcode::MKNOD => self.mknod(header, request, reply),
            opcode::MKDIR => self.mkdir(header, request, reply),
            opcode::UNLINK => self.unlink(header, request),
            opcode::RMDIR => self.rmdir(header, request),
            opcode::RENAME => self.rename(header, request),
            opcode::RENAME2 => self.rename2(header, request),
            opcode::LINK => self.link(header, request, reply),
            opcode::CREATE => self.create(header, request, reply),
            opcode::TMPFILE => self.tmpfile(header, request, reply),
            opcode::OPEN => self.open(header, request, reply),
            opcode::READ => self.read(header, request, reply),
            opcode::WRITE => self.write(header, request, reply),
            opcode::RELEASE | opcode::RELEASEDIR => self.release(header, request),
            opcode::FSYNC | opcode::FSYNCDIR => self.fsync(header, request),
            opcode::SYNCFS => self.syncfs(),
            opcode::FALLOCATE => self.fallocate(header, request),
            opcode::LSEEK => self.lseek(header, request, reply),
            opcode::COPY_FILE_RANGE => self.copy_file_range(header, request, reply),
            opcode::OPENDIR => self.opendir(header, reply),
            opcode::READDIR => self.readdir(header, request, reply, false),
            opcode::READDIRPLUS => self.readdir(header, request, reply, true),
            opcode::SETXATTR => self.setxattr(header, request),
            opcode::GETXATTR => self.getxattr(header, request, reply),
            opcode::LISTXATTR => self.listxattr(header, request, reply),
            opcode::REMOVEXATTR => self.removexattr(header, request),
            // Linux remembers the answer and does without: FLUSH (all is written already), ACCESS
            // (it checks itself), locks (it keeps them itself), POLL, BMAP, IOCTL.
            _ => Err(Errno::ENOSYS),
        }?;
        Ok(Outcome::Answered)
    }

    /// Agrees on the protocol. A new mount begins with nothing.
    fn init(&self, request: &mut impl Request, reply: &mut impl Reply) -> Result<()> {
        let input: wire::InitIn = message::read(request)?;
        if input.major > wire::MAJOR {
            // The guest asks again with a version that both know.
            let output = wire::InitOut { major: wire::MAJOR, minor: wire::MINOR, ..<_>::default() };
            return message::write(reply, &output);
        }
        if input.major < wire::MAJOR || input.minor < wire::OLDEST_MINOR {
            return Err(Errno::EPROTO);
        }
        let mut offered = u64::from(input.flags);
        if offered & init::INIT_EXT != 0 {
            offered |= u64::from(message::read::<u32>(request)?) << 32;
        }
        let agreed = offered & WANTED;
        let output = wire::InitOut {
            major: wire::MAJOR,
            minor: input.minor.min(wire::MINOR),
            max_readahead: input.max_readahead,
            flags: agreed as u32,
            max_background: MAX_BACKGROUND,
            congestion_threshold: MAX_BACKGROUND / 4 * 3,
            max_write: MAX_TRANSFER,
            time_gran: 1,
            max_pages: (MAX_TRANSFER / PAGE_SIZE) as u16,
            flags2: (agreed >> 32) as u32,
            ..wire::InitOut::default()
        };
        message::write(reply, &output)?;
        self.reset();
        self.setxattr_ext.store(agreed & init::SETXATTR_EXT != 0, Ordering::Relaxed);
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    fn forget(&self, header: &InHeader, request: &mut impl Request) -> Result<()> {
        let input: wire::ForgetIn = message::read(request)?;
        self.nodes.forget(header.nodeid, input.nlookup);
        Ok(())
    }

    fn batch_forget(&self, request: &mut impl Request) -> Result<()> {
        let input: wire::BatchForgetIn = message::read(request)?;
        for _ in 0..input.count {
            let one: wire::ForgetOne = message::read(request)?;
            self.nodes.forget(one.nodeid, one.nlookup);
        }
        Ok(())
    }

    /// All that is left of a request, which begins with `count` names of entries, as the host has them.
    fn read_names(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        count: usize,
    ) -> Result<Bytes> {
        let bytes = message::read_rest(request, MAX_NAMES)?;
        // The shares are called what the user calls them.
        if self.names == NameRules::LINUX || header.nodeid == wire::ROOT_ID {
            return Ok(bytes);
        }
        let (mut on_host, mut rest) = (Bytes::new(), &bytes[..]);
        for _ in 0..count {
            let (name, behind) = Name::take(rest)?;
            on_host.extend_from_slice(&self.names.to_host(name.as_bytes())?);
            on_host.push(0);
            rest = behind;
        }
        on_host.extend_from_slice(rest);
        Ok(on_host)
    }

    /// The node that a request is about, where that cannot be the synthetic root: nothing can be
    /// changed there.
    fn node(&self, id: u64) -> Result<Arc<Node>> {
        if id == wire::ROOT_ID { Err(Errno::EROFS) } else { self.nodes.get(id) }
    }

    /// The node that a request wants to change.
    fn writable_node(&self, id: u64) -> Result<Arc<Node>> {
        let node = self.node(id)?;
        node.share.check_writable()?;
        Ok(node)
    }
}

fn now() -> Time {
    let now = realtime();
    Time { sec: now.as_secs() as i64, nsec: now.subsec_nanos() }
}

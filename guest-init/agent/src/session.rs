//! Sessions: made and removed at the host's request, by the hundred.
//!
//! A session is a keeper ([`keeper`]) in namespaces of its own with a view of the files ([`view`]), a
//! cgroup ([`cgroup`]), a user ([`users`]) and a folder on the disk ([`disk`]). Commands enter it by the
//! keeper's pidfd. Nothing of it has a name in the machine's own namespaces but its cgroup and, on a disk,
//! its folder: with the keeper everything else ends.
//!
//! Nothing here costs anything before the first session.

mod card;
mod cgroup;
pub(crate) mod confine;
mod disk;
pub(crate) mod filter;
mod keeper;
mod mounting;
mod share;
mod users;
mod view;
mod watch;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::{fs, io, thread};

use cabana_protocol::session::is_name;
use cabana_protocol::{
    Cause, Failed, SessionInfo, SessionLimits, SessionSpec, SetupFailed, ShareMount,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::UnshareFlags;

use self::cgroup::Cgroup;
use self::disk::{Disk, Removed};
use self::users::Users;
use self::watch::Watch;
use crate::background::Background;
use crate::events::Events;

/// The most sessions at a time.
const MOST: usize = 1000;

/// The most shares of one session.
const MOST_SHARES: usize = 64;

/// The least of each limit: enough for a shell.
const LEAST_MEMORY: u64 = 4 << 20;
const LEAST_CPU: u32 = 10;
const CPU_WEIGHTS: std::ops::RangeInclusive<u16> = 1..=10_000;
const LEAST_DISK: u64 = 64 << 10;

/// Open files, and terminals, of the whole machine: as many as the kernel can count.
const MOST_FILES: &str = "9223372036854775807";
const MOST_TERMINALS: &str = "1048576";

/// The stack of a thread that makes a session or changes one.
const STACK: usize = 256 * 1024;

/// The namespaces of a session that a thread or a process can enter; that of processes is for its
/// children alone.
const NAMESPACES: UnshareFlags = UnshareFlags::NEWNS
    .union(UnshareFlags::NEWUTS)
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWCGROUP);

/// Why a session could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// The request is at fault, or the moment.
    #[error("{message}")]
    Refused { cause: Cause, message: String },
    /// A system call failed.
    #[error("{what}: {source}")]
    System { what: &'static str, source: io::Error },
}

impl SessionError {
    pub(crate) fn refused(cause: Cause, message: impl Into<String>) -> Self {
        Self::Refused { cause, message: message.into() }
    }

    /// Why the machine's own view could not be changed.
    pub(crate) fn of_setup(failed: &SetupFailed) -> Self {
        Self::Refused { cause: Cause::Other, message: format!("{}: {}", failed.what, failed.why) }
    }

    fn at<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::System { what, source: error.into() }
    }

    /// The answer to a request that was about this.
    pub(crate) fn answer(self, about: &str) -> Failed {
        let cause = match &self {
            Self::Refused { cause, .. } => *cause,
            Self::System { source, .. } => match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT | libc::ENOMEM | libc::EAGAIN | libc::EMFILE) => {
                    Cause::Exhausted
                }
                Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::ENODEV) => Cause::Unsupported,
                _ => Cause::Other,
            },
        };
        Failed { cause, message: format!("{about}: {self}") }
    }
}

/// All sessions of the machine.
#[derive(Debug)]
pub(crate) struct Sessions {
    slots: Mutex<BTreeMap<String, Slot>>,
    users: Arc<Users>,
    ground: OnceLock<Result<Ground, String>>,
    /// The root of the machine's writable disk, until the ground is prepared.
    root: Mutex<Option<OwnedFd>>,
    events: Arc<Events>,
    background: Arc<Background>,
}

/// What all sessions stand on.
#[derive(Debug)]
struct Ground {
    disk: Disk,
    watch: Watch,
}

/// What a name is taken by.
#[derive(Debug)]
enum Slot {
    Alive(Arc<Session>),
    /// It is being made or removed.
    Busy,
}

/// A session that lives.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) name: String,
    pub(crate) uid: u32,
    cgroup: Cgroup,
    keeper: OwnedFd,
    keeper_pid: Pid,
    /// It is being removed.
    ending: AtomicBool,
    network: bool,
    limits: Mutex<SessionLimits>,
    shares: Mutex<Vec<String>>,
}

impl Sessions {
    /// No session yet. `root` is that of the machine's writable ext4 file system, if it has a disk.
    pub(crate) fn new(
        root: Option<OwnedFd>,
        events: Arc<Events>,
        background: Arc<Background>,
    ) -> Self {
        Self {
            slots: Mutex::default(),
            users: Arc::default(),
            ground: OnceLock::new(),
            root: Mutex::new(root),
            events,
            background,
        }
    }

    /// Makes a session.
    pub(crate) fn create(&self, spec: &SessionSpec) -> Result<SessionInfo, SessionError> {
        check(spec)?;
        let ground = self.ground()?;
        self.reserve(&spec.name)?;
        match self.make(ground, spec) {
            Ok(session) => {
                ground.watch.add(&session);
                let info = info(&session, &ground.disk);
                lock(&self.slots).insert(spec.name.clone(), Slot::Alive(session));
                Ok(info)
            }
            Err(error) => {
                lock(&self.slots).remove(&spec.name);
                Err(error)
            }
        }
    }

    /// The session of this name.
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Session>, SessionError> {
        match lock(&self.slots).get(name) {
            Some(Slot::Alive(session)) => Ok(Arc::clone(session)),
            _ => Err(SessionError::refused(Cause::NotFound, "there is no such session")),
        }
    }

    /// All sessions, by name.
    pub(crate) fn list(&self) -> Vec<SessionInfo> {
        let Some(Ok(ground)) = self.ground.get() else { return Vec::new() };
        let slots = lock(&self.slots);
        let alive = slots.values().filter_map(|slot| match slot {
            Slot::Alive(session) => Some(Arc::clone(session)),
            Slot::Busy => None,
        });
        let alive: Vec<_> = alive.collect();
        drop(slots);
        alive.iter().map(|session| info(session, &ground.disk)).collect()
    }

    /// Gives a session other limits.
    pub(crate) fn update(
        &self,
        name: &str,
        new: SessionLimits,
    ) -> Result<SessionInfo, SessionError> {
        check_limits(&new)?;
        let (session, ground) = (self.find(name)?, self.ground()?);
        let mut limits = lock(&session.limits);
        if limits.disk != new.disk {
            ground.disk.set_quota(session.uid, new.disk).map_err(SessionError::at("its quota"))?;
        }
        session
            .cgroup
            .limit(&limits, &new, ground.disk.device())
            .map_err(SessionError::at("its limits"))?;
        *limits = new;
        drop(limits);
        Ok(info(&session, &ground.disk))
    }

    /// Ends a session. Its user is another's only when its files are deleted.
    pub(crate) fn remove(&self, name: &str) -> Result<(), SessionError> {
        let ground = self.ground()?;
        let session = {
            let mut slots = lock(&self.slots);
            match slots.get_mut(name) {
                Some(slot @ Slot::Alive(_)) => match std::mem::replace(slot, Slot::Busy) {
                    Slot::Alive(session) => session,
                    Slot::Busy => unreachable!("it was matched to be alive"),
                },
                _ => {
                    return Err(SessionError::refused(Cause::NotFound, "there is no such session"));
                }
            }
        };
        let removed = self.take_apart(ground, &session);
        let mut slots = lock(&self.slots);
        match removed {
            Ok(()) => drop(slots.remove(name)),
            // It can be tried again.
            Err(_) => drop(slots.insert(name.to_owned(), Slot::Alive(session))),
        }
        removed
    }

    /// Shows a share to a session that lives.
    pub(crate) fn add_share(&self, name: &str, share: &ShareMount) -> Result<(), SessionError> {
        let session = self.find(name)?;
        let mut shares = lock(&session.shares);
        if shares.contains(&share.guest_path) {
            return Err(SessionError::refused(Cause::Exists, "a share is shown there already"));
        }
        if shares.len() == MOST_SHARES {
            return Err(SessionError::refused(Cause::Exhausted, "it has as many shares as it can"));
        }
        let ready = share::Ready::take(share, session.uid)?;
        session.as_root(|root| ready.attach_alive(root))??;
        shares.push(share.guest_path.clone());
        Ok(())
    }

    /// Hides a share from a session.
    pub(crate) fn remove_share(&self, name: &str, guest_path: &str) -> Result<(), SessionError> {
        let session = self.find(name)?;
        let mut shares = lock(&session.shares);
        let Some(index) = shares.iter().position(|path| path == guest_path) else {
            return Err(SessionError::refused(Cause::NotFound, "no share is shown there"));
        };
        session.as_root(|root| share::hide(root, guest_path))??;
        shares.remove(index);
        Ok(())
    }

    fn ground(&self) -> Result<&Ground, SessionError> {
        let prepare = || -> io::Result<Ground> {
            fs::create_dir_all("/run/cabana/root")?;
            fs::set_permissions(
                "/run/cabana",
                std::os::unix::fs::PermissionsExt::from_mode(0o700),
            )?;
            for folder in ["/tmp", "/var/tmp"] {
                fs::create_dir_all(folder)?;
            }
            cgroup::prepare()?;
            raise_common_limits()?;
            let disk = Disk::prepare(lock(&self.root).take(), &self.users)?;
            let watch = Watch::start(Arc::clone(&self.events))?;
            Ok(Ground { disk, watch })
        };
        let ground = self.ground.get_or_init(|| prepare().map_err(|error| error.to_string()));
        ground.as_ref().map_err(|why| {
            let message = format!("this machine cannot have sessions: {why}");
            SessionError::refused(Cause::Unsupported, message)
        })
    }

    /// Takes the name.
    fn reserve(&self, name: &str) -> Result<(), SessionError> {
        let mut slots = lock(&self.slots);
        if slots.contains_key(name) {
            return Err(SessionError::refused(Cause::Exists, "there is a session of this name"));
        }
        if slots.len() == MOST {
            return Err(SessionError::refused(Cause::Exhausted, "there are as many as can be"));
        }
        slots.insert(name.to_owned(), Slot::Busy);
        Ok(())
    }

    fn make(&self, ground: &Ground, spec: &SessionSpec) -> Result<Arc<Session>, SessionError> {
        let no_user = || SessionError::refused(Cause::Exhausted, "there is no user left");
        let (uid, kept) = self.users.take(&spec.name).ok_or_else(no_user)?;
        let made = assemble(ground, spec, uid);
        if made.is_err() {
            if kept {
                self.users.keep(&spec.name, uid);
            } else if !matches!(ground.disk.remove(&spec.name, uid), Ok(Removed::Later)) {
                self.users.release(uid);
            }
        }
        made
    }

    fn take_apart(&self, ground: &Ground, session: &Session) -> Result<(), SessionError> {
        session.ending.store(true, Ordering::Relaxed);
        keeper::kill(&session.keeper);
        session.cgroup.kill().map_err(SessionError::at("ending its processes"))?;
        self.background.forget_session(&session.name);
        session.cgroup.remove().map_err(SessionError::at("its cgroup"))?;
        match ground.disk.remove(&session.name, session.uid) {
            Ok(Removed::Whole) => self.users.release(session.uid),
            Ok(Removed::Later) => {}
            // Its name and its user stay with what is left of it.
            Err(error) => {
                self.users.keep(&session.name, session.uid);
                return Err(SessionError::at("its folder on the disk")(error));
            }
        }
        Ok(())
    }
}

/// Makes the parts of a session, and no part of it stays if one cannot be made but its folder on the disk.
fn assemble(ground: &Ground, spec: &SessionSpec, uid: u32) -> Result<Arc<Session>, SessionError> {
    let SessionSpec { name, limits, shares, network } = spec;
    let ready = shares.iter().map(|share| share::Ready::take(share, uid));
    let ready = ready.collect::<Result<Vec<_>, _>>()?;
    let folder = ground.disk.create(name, uid, limits.disk).map_err(|error| {
        if error.kind() == io::ErrorKind::Unsupported {
            let message = "the machine's disk has no quotas: it is of an older template";
            SessionError::refused(Cause::Unsupported, message)
        } else {
            SessionError::at("its folder on the disk")(error)
        }
    })?;
    let cgroup = Cgroup::create(uid, limits, ground.disk.device())
        .map_err(SessionError::at("its cgroup"))?;
    let plan = view::Plan {
        name,
        uid,
        folder,
        shared_memory: limits.memory.map(|memory| memory / 2),
        shares: ready,
        card: network.as_ref(),
    };
    let keeper = on_a_thread(|| {
        view::enter(plan)?;
        keeper::start(&cgroup)
    });
    match keeper {
        Ok(Ok(keeper)) => Ok(Arc::new(Session {
            name: name.clone(),
            uid,
            cgroup,
            keeper: keeper.pidfd,
            keeper_pid: keeper.pid,
            ending: AtomicBool::new(false),
            network: network.is_some(),
            limits: Mutex::new(*limits),
            shares: Mutex::new(shares.iter().map(|share| share.guest_path.clone()).collect()),
        })),
        Ok(Err(error)) | Err(error) => {
            let _ = cgroup.kill().and_then(|()| cgroup.remove());
            Err(error)
        }
    }
}

impl Session {
    /// What a process is born into.
    pub(crate) fn cgroup(&self) -> BorrowedFd<'_> {
        self.cgroup.as_fd()
    }

    /// Readable when the session has ended.
    pub(crate) fn ended(&self) -> BorrowedFd<'_> {
        self.keeper.as_fd()
    }

    /// Whether it has.
    pub(crate) fn has_ended(&self) -> bool {
        let mut ended = [PollFd::new(&self.keeper, PollFlags::IN)];
        poll(&mut ended, Some(&Timespec::default())) != Ok(0)
    }

    /// The folder of the kernel's tables of its network.
    pub(crate) fn network_tables(&self) -> String {
        format!("/proc/{}/net", self.keeper_pid.as_raw_pid())
    }

    /// Whether it is being removed.
    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// The absolute path of its home.
    pub(crate) fn home(&self) -> String {
        format!("/sessions/{}", self.name)
    }

    /// A new terminal of the session's own.
    pub(crate) fn open_terminal(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/{}/root/dev/pts/ptmx", self.keeper_pid.as_raw_pid());
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(path, flags, Mode::empty())?)
    }

    /// Lets the children of this thread be born among the session's processes. The thread can have no
    /// other children and start no threads afterwards.
    pub(crate) fn adopt_children(&self) -> io::Result<()> {
        self.enter(UnshareFlags::NEWPID)
    }

    /// Puts this process, or a thread that has left its root and folder, into the session's namespaces.
    pub(crate) fn enter_all(&self) -> io::Result<()> {
        self.enter(NAMESPACES | UnshareFlags::NEWNET)
    }

    /// Puts this thread into the session's network.
    pub(crate) fn enter_network(&self) -> io::Result<()> {
        self.enter(UnshareFlags::NEWNET)
    }

    /// Runs this on a thread that sees what the session sees, from its home, with its user's rights.
    pub(crate) fn as_user<T: Send>(
        &self,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, SessionError> {
        on_a_thread(|| {
            self.enter_view().map_err(SessionError::at("entering it"))?;
            let become_user = || -> io::Result<()> {
                let (uid, gid) = (
                    rustix::thread::Uid::from_raw(self.uid),
                    rustix::thread::Gid::from_raw(self.uid),
                );
                rustix::thread::set_thread_groups(&[])?;
                rustix::thread::set_thread_res_gid(gid, gid, gid)?;
                // Leaving root behind empties the thread's sets of capabilities.
                rustix::thread::set_thread_res_uid(uid, uid, uid)?;
                rustix::process::umask(Mode::from_raw_mode(0o022));
                Ok(rustix::process::chdir(self.home())?)
            };
            become_user().map_err(SessionError::at("entering it"))?;
            Ok(work())
        })?
    }

    /// Runs this as root on a thread whose root is the session's.
    fn as_root<T: Send>(
        &self,
        work: impl FnOnce(BorrowedFd<'_>) -> T + Send,
    ) -> Result<T, SessionError> {
        on_a_thread(|| {
            self.enter_view().map_err(SessionError::at("entering it"))?;
            rustix::process::umask(Mode::empty());
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open("/", flags, Mode::empty());
            Ok(work(root.map_err(SessionError::at("entering it"))?.as_fd()))
        })?
    }

    fn enter_view(&self) -> io::Result<()> {
        // SAFETY: the thread's own root and folder from now on; descriptors stay shared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
        self.enter(UnshareFlags::NEWNS)
    }

    fn enter(&self, namespaces: UnshareFlags) -> io::Result<()> {
        let flags = namespaces.bits() as libc::c_int;
        // SAFETY: changes the namespaces of this thread; no memory is involved.
        if unsafe { libc::setns(self.keeper.as_raw_fd(), flags) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Raises limits that are numbers for the whole machine, so that no session can use them up for the
/// others: what they count is charged to the memory of who has it, and a session's terminals have a number
/// of their own (`Documentation/admin-guide/sysctl/fs.rst`, `kernel.rst`).
fn raise_common_limits() -> io::Result<()> {
    for (limit, most) in [("fs/file-max", MOST_FILES), ("kernel/pty/max", MOST_TERMINALS)] {
        fs::write(format!("/proc/sys/{limit}"), most)?;
    }
    Ok(())
}

/// Runs this on a thread of its own, which may change what a thread has for itself.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, SessionError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        let thread = thread.map_err(SessionError::at("a thread"))?;
        // A panic ends the machine.
        thread.join().map_err(|_| SessionError::at("a thread")(Errno::INTR))
    })
}

fn info(session: &Session, disk: &Disk) -> SessionInfo {
    SessionInfo {
        name: session.name.clone(),
        uid: session.uid,
        limits: *lock(&session.limits),
        shares: lock(&session.shares).clone(),
        network: session.network,
        pids: session.cgroup.pids(),
        memory: session.cgroup.memory(),
        disk: disk.used(session.uid),
    }
}

fn check(spec: &SessionSpec) -> Result<(), SessionError> {
    if !is_name(&spec.name) {
        let message = "its name has to be of letters, digits, `.`, `_` and `-`, a letter or digit \
                       first, and at most 64 characters long";
        return Err(SessionError::refused(Cause::Invalid, message));
    }
    if spec.shares.len() > MOST_SHARES {
        let message = format!("it can have at most {MOST_SHARES} shares");
        return Err(SessionError::refused(Cause::Invalid, message));
    }
    check_limits(&spec.limits)
}

fn check_limits(limits: &SessionLimits) -> Result<(), SessionError> {
    let low = |what: &str, least: u64| {
        Err(SessionError::refused(Cause::Invalid, format!("its limit of {what} is below {least}")))
    };
    if limits.memory.is_some_and(|memory| memory < LEAST_MEMORY) {
        return low("memory", LEAST_MEMORY);
    }
    if limits.pids == Some(0) {
        return low("processes", 1);
    }
    if limits.cpu_weight.is_some_and(|weight| !CPU_WEIGHTS.contains(&weight)) {
        let message = "its weight of processor time has to be from 1 to 10000";
        return Err(SessionError::refused(Cause::Invalid, message));
    }
    if limits.cpu_max.is_some_and(|cpu| cpu < LEAST_CPU) {
        return low("processor time in thousandths", LEAST_CPU.into());
    }
    if limits.io_read == Some(0) || limits.io_write == Some(0) {
        return low("bytes a second", 1);
    }
    if limits.disk.is_some_and(|disk| disk < LEAST_DISK) {
        return low("disk", LEAST_DISK);
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

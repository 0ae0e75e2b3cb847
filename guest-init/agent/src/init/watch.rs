//! Repeating the host's changes of shares, so that the guest's programs hear of them by `inotify(7)`
//! and the kernel drops what it had cached.
//!
//! A folder is found by its node, as a file handle: that of an inode that the kernel does not have in
//! its cache is refused at once, and then nobody watches it.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cabana_protocol::watch::{Replay, Replayed, Step, Watcher};
use cabana_protocol::{ProtocolError, WATCH_PORT, WATCH_SOURCE, read_message, write_message};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::transport;

/// `FILEID_INO64_GEN`: a handle of FUSE is the node's number and a generation, always zero here.
const HANDLE_KIND: i32 = 0x81;

/// `struct file_handle` of FUSE.
#[repr(C)]
struct Handle {
    len: u32,
    kind: i32,
    node_high: u32,
    node_low: u32,
    generation: u32,
}

/// What is open of the device, which keeps it mounted.
enum State {
    /// There is no thread.
    Idle,
    /// Its root.
    Open(File),
    /// Nothing, for the time of a snapshot; the thread is there.
    Released,
    Stopped,
}

static STATE: Mutex<State> = Mutex::new(State::Idle);

/// Ends the repeating for good, so that the device can be unmounted.
pub(super) fn stop() {
    *state() = State::Stopped;
}

/// Lets go of the device until [`start`].
pub(super) fn release() {
    let mut state = state();
    if let State::Open(_) = *state {
        *state = State::Released;
    }
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts to repeat changes in the device that is mounted at `root`, or goes on with it, on a thread of
/// its own. A host that tells of none is no failure.
pub(super) fn start(path: &'static str) {
    let mut state = state();
    match *state {
        State::Idle => {}
        State::Released => {
            if let Ok(root) = File::open(path) {
                *state = State::Open(root);
            }
            return;
        }
        State::Open(_) | State::Stopped => return,
    }
    let Ok(root) = File::open(path) else { return };
    *state = State::Open(root);
    drop(state);
    let _ = transport::spawn(move || {
        let ended = repeat_all();
        if let Err(error) = &ended {
            eprintln!("cabana-agent: watching the shares: {error}");
        }
        let again = {
            let mut state = self::state();
            let again = was_cut_off(&ended) && matches!(*state, State::Open(_));
            if !matches!(*state, State::Stopped) {
                *state = State::Idle;
            }
            again
        };
        // The machine came out of a snapshot and had its shares before this thread knew.
        if again {
            start(path);
        }
    });
}

/// Has the connection been there and then gone?
fn was_cut_off(ended: &Result<Ended, ProtocolError>) -> bool {
    !matches!(ended, Ok(Ended::NeverBegan))
}

enum Ended {
    NeverBegan,
    Cut,
}

fn repeat_all() -> Result<Ended, ProtocolError> {
    let Ok(connection) = transport::connect_from(WATCH_SOURCE, WATCH_PORT) else {
        return Ok(Ended::NeverBegan);
    };
    let mut stream = File::from(connection);
    let thread = rustix::thread::gettid().as_raw_nonzero().get() as u32;
    write_message(&mut stream, &Watcher { thread })?;
    loop {
        let replay: Replay = match read_message(&mut stream) {
            // The host has closed it, or a snapshot has cut it off.
            Err(ProtocolError::Closed | ProtocolError::Io(_)) => return Ok(Ended::Cut),
            other => other?,
        };
        // What fails is unknown to the guest, or has gone on.
        if let State::Open(root) = &*state() {
            let _ = repeat(root, replay);
        }
        write_message(&mut stream, &Replayed)?;
    }
}

fn repeat(root: &File, replay: Replay) -> io::Result<()> {
    let folder = open_node(root, replay.directory)?;
    let name = CString::new(replay.name).map_err(|_| io::ErrorKind::InvalidInput)?;
    match replay.step {
        Step::Make(kind) => match make(&folder, &name, kind) {
            // The guest has come across it before us.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        },
        Step::Unlink => Ok(rustix::fs::unlinkat(&folder, &name, AtFlags::empty())?),
        Step::Rmdir => Ok(rustix::fs::unlinkat(&folder, &name, AtFlags::REMOVEDIR)?),
        Step::Modify => touch(&folder, &name, UTIME_OMIT),
        Step::Touch => touch(&folder, &name, UTIME_NOW),
        Step::Close => {
            let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            Ok(rustix::fs::openat(&folder, &name, flags, Mode::empty()).map(drop)?)
        }
    }
}

fn make(folder: &OwnedFd, name: &CStr, kind: u32) -> io::Result<()> {
    let kind = kind & libc::S_IFMT;
    if kind == libc::S_IFLNK {
        return Ok(rustix::fs::symlinkat(name, folder, name)?);
    }
    // SAFETY: the name ends with a NUL and is only read.
    let result = unsafe {
        if kind == libc::S_IFDIR {
            libc::mkdirat(folder.as_raw_fd(), name.as_ptr(), 0o700)
        } else {
            libc::mknodat(folder.as_raw_fd(), name.as_ptr(), kind | 0o600, 0)
        }
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets the kernel look at the entry anew, which drops what it had cached of it if it has changed, and
/// sets its times: that of modification alone is a change of content to those who watch, both are one
/// of attributes.
fn touch(folder: &OwnedFd, name: &CStr, accessed: i64) -> io::Result<()> {
    let look = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(folder, name, look, StatxFlags::BASIC_STATS)?;
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: accessed },
        last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
    };
    Ok(rustix::fs::utimensat(folder, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// The folder of a node, if the kernel has it in its cache.
fn open_node(root: &File, node: u64) -> io::Result<OwnedFd> {
    let mut handle = Handle {
        len: 12,
        kind: HANDLE_KIND,
        node_high: (node >> 32) as u32,
        node_low: node as u32,
        generation: 0,
    };
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the handle has the layout of `struct file_handle` with as many bytes as it says.
    let folder =
        unsafe { libc::open_by_handle_at(root.as_raw_fd(), (&raw mut handle).cast(), flags) };
    if folder < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(folder) })
}

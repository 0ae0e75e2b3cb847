//! Stopping a vCPU from another thread, and no kick is lost.
//!
//! A kick sets `immediate_exit` in the vCPU's run page and signals its thread: the kernel returns
//! `EINTR` at once if it looks at the flag later, and because of the signal if it is past that. The
//! flag stays set until a run has returned for it, so it also is the memory of a kick that came
//! between two runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

use cabana_hv::VcpuKicker;
use cabana_os::let_interrupt;

use crate::run_page::ImmediateExit;

/// Where a kick goes.
#[derive(Debug, Default)]
pub(crate) struct KickTarget {
    /// A kick that came before there was a thread.
    early: AtomicBool,
    bound: Mutex<Option<Bound>>,
}

#[derive(Debug)]
struct Bound {
    /// Valid for as long as it stands here: the vCPU takes it away before it unmaps the page.
    flag: ImmediateExit,
    thread: libc::pid_t,
}

impl KickTarget {
    /// From now on kicks go to the calling thread and to `flag`.
    pub(crate) fn bind(&self, flag: ImmediateExit) {
        install_handler();
        unblock_signal();
        // SAFETY: no arguments, cannot fail.
        let thread = unsafe { libc::gettid() };
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if self.early.swap(false, Ordering::Relaxed) {
            flag.kick();
        }
        *bound = Some(Bound { flag, thread });
    }

    /// Kicks go nowhere any more.
    pub(crate) fn unbind(&self) {
        *self.bound.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// See [`KickTarget`].
#[derive(Debug)]
pub(crate) struct KvmKicker {
    pub(crate) target: Arc<KickTarget>,
}

impl VcpuKicker for KvmKicker {
    fn kick(&self) {
        let bound = self.target.bound.lock().unwrap_or_else(PoisonError::into_inner);
        match &*bound {
            Some(bound) => {
                bound.flag.kick();
                // SAFETY: sends a signal that has a handler; a thread that is gone is only ESRCH.
                unsafe {
                    libc::syscall(libc::SYS_tgkill, libc::getpid(), bound.thread, signal());
                }
            }
            None => self.target.early.store(true, Ordering::Relaxed),
        }
    }
}

/// The signal that interrupts `KVM_RUN`.
fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Once in a process.
fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| let_interrupt(signal()));
}

/// The thread may have inherited a mask that blocks it.
fn unblock_signal() {
    // SAFETY: all-zero is a valid signal set, and only the calling thread's mask changes.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
}

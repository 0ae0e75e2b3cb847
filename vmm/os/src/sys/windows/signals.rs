//! What the console tells of, as the signals that Linux has for it.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};

use windows_sys::Win32::System::Console::{
    CTRL_BREAK_EVENT, CTRL_C_EVENT, CTRL_CLOSE_EVENT, SetConsoleCtrlHandler,
};
use windows_sys::core::BOOL;

pub use crate::sys::signal_numbers::*;

/// A bit for each signal that somebody catches.
static WANTED: AtomicU32 = AtomicU32::new(0);
/// Who catches them.
static CATCHERS: Mutex<Vec<(u32, mpsc::Sender<i32>)>> = Mutex::new(Vec::new());

/// Signals that are caught from now on, for good.
pub struct Signals(mpsc::Receiver<i32>);

impl Signals {
    /// Catches these, of which Windows has Ctrl-C, Ctrl-Break (as a request to end) and the console's end.
    pub fn new(wanted: &[i32]) -> io::Result<Self> {
        let wanted = wanted.iter().fold(0, |bits, signal| bits | 1 << signal);
        let (sender, receiver) = mpsc::channel();
        if WANTED.fetch_or(wanted, Ordering::SeqCst) == 0 {
            // SAFETY: a function that may be called at any time, on a thread of its own.
            if unsafe { SetConsoleCtrlHandler(Some(told), 1) } == 0 {
                return Err(io::Error::last_os_error());
            }
        }
        CATCHERS.lock().unwrap_or_else(PoisonError::into_inner).push((wanted, sender));
        Ok(Self(receiver))
    }

    /// Waits for the next.
    pub fn wait(&mut self) -> Option<i32> {
        self.0.recv().ok()
    }
}

/// Called by the system; 0 lets it do what it does otherwise.
unsafe extern "system" fn told(event: u32) -> BOOL {
    let signal = match event {
        CTRL_C_EVENT => INTERRUPT,
        CTRL_BREAK_EVENT => TERMINATE,
        CTRL_CLOSE_EVENT => HANGUP,
        _ => return 0,
    };
    let catchers = CATCHERS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut caught = 0;
    for (wanted, sender) in catchers.iter() {
        if wanted & 1 << signal != 0 && sender.send(signal).is_ok() {
            caught = 1;
        }
    }
    caught
}

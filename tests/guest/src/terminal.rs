//! A terminal that the test sits at.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::{Call, LIMIT, Running};

/// A pseudo terminal, and what has been seen on it.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    slave: OwnedFd,
    output: Receiver<Vec<u8>>,
    seen: Vec<u8>,
}

impl Terminal {
    /// A terminal of this size.
    pub fn new(rows: u16, columns: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a terminal");
        unlockpt(&master).expect("the terminal's other end");
        let slave = ioctl_tiocgptpeer(&master, flags).expect("the terminal's other end");
        let master = File::from(master);
        let mut reader = master.try_clone().expect("a second descriptor");
        let (send, output) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if send.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let terminal = Self { master, slave, output, seen: Vec::new() };
        terminal.resize(rows, columns);
        terminal
    }

    /// Starts a call with this as its controlling terminal.
    pub fn start(&self, call: Call) -> Running {
        let end = || Stdio::from(self.slave.try_clone().expect("a second descriptor"));
        call.through(["setsid", "--ctty", "--wait"]).streams(end).start()
    }

    /// Changes the size; the kernel tells the foreground by SIGWINCH.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).expect("a size");
    }

    /// Types.
    pub fn type_in(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("an open terminal");
    }

    /// Waits until this appears and forgets everything up to it.
    pub fn wait_for(&mut self, text: &str) -> String {
        let end = Instant::now() + LIMIT;
        loop {
            let found = self.seen.windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = found {
                let rest = self.seen.split_off(at + text.len());
                let before = std::mem::replace(&mut self.seen, rest);
                return String::from_utf8_lossy(&before).into_owned();
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(more) => self.seen.extend(more),
                Err(error) => {
                    panic!("no {text:?} ({error}) in {:?}", String::from_utf8_lossy(&self.seen))
                }
            }
        }
    }

    /// Whether keys are echoed and gathered to lines, as before a program takes the terminal over.
    pub fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.slave).expect("a terminal");
        modes.local_modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }
}

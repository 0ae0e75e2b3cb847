//! Hearing of what other processes do in folders: on Linux alone.

use std::ffi::CStr;
use std::io;

use crate::sys::tree::Handle;
use crate::sys::watch::EntryChange;
use crate::sys::{Event, UNWATCHED};

/// Folders that are watched: there are none.
#[derive(Debug)]
pub enum FolderWatch {}

impl FolderWatch {
    /// Says why there can be none.
    pub fn new() -> io::Result<Self> {
        Err(io::Error::new(io::ErrorKind::Unsupported, UNWATCHED))
    }

    /// Watches a folder; returns what [`read`](Self::read) calls it.
    pub fn add(&self, _folder: &Handle) -> io::Result<Box<[u8]>> {
        match *self {}
    }

    /// Waits until something has happened, or the event is signalled.
    pub fn wait(&self, _wake: &Event) -> io::Result<()> {
        match *self {}
    }

    /// Takes what has happened since: the folder, the entry's name, the change.
    pub fn read(&self, _each: impl FnMut(&[u8], &CStr, EntryChange)) -> io::Result<()> {
        match *self {}
    }
}

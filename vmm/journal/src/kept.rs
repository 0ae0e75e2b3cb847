//! What is kept: inodes in a folder of the journal, each with the number of the record that put it
//! there as its name.

use std::ffi::{CStr, CString};
use std::io;
use std::path::Path;

use cabana_os::tree::{self, Entry, Handle, InodeKind, InodeStat};

use crate::record::{Ident, Inode};

/// The folder.
#[derive(Debug)]
pub(crate) struct Kept {
    folder: Handle,
}

/// How an inode is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum As {
    /// The inode itself, by one more name.
    Itself,
    /// One like it.
    Copy,
}

impl Kept {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { folder: Handle::of_directory(path)? })
    }

    /// The name in the folder of what a record keeps.
    pub(crate) fn name(number: u64) -> CString {
        CString::new(number.to_string()).unwrap_or_default()
    }

    pub(crate) fn entry<'a>(&'a self, name: &'a CStr) -> Entry<'a> {
        Entry { directory: &self.folder, name }
    }

    /// Keeps an inode: by one more name where the host allows that, else, and for folders, as a copy
    /// with everything but a folder's entries.
    pub(crate) fn keep(&self, number: u64, handle: &Handle, sync: bool) -> io::Result<As> {
        let name = Self::name(number);
        let is_folder = InodeStat::of(handle)?.kind == InodeKind::Directory;
        // Other file systems, those without links, and files of others that may not be linked.
        if !is_folder && self.entry(&name).link(handle).is_ok() {
            return Ok(As::Itself);
        }
        self.copy(number, handle, sync)?;
        Ok(As::Copy)
    }

    /// Keeps a copy of an inode, which appears whole or not at all.
    pub(crate) fn copy(&self, number: u64, handle: &Handle, sync: bool) -> io::Result<()> {
        let (name, unfinished) = (Self::name(number), unfinished(number));
        let new = self.entry(&unfinished);
        new.remove()?;
        let copied = new.copy_of(handle).and_then(|file| {
            if sync && let Some(file) = file {
                file.sync_data()?;
            }
            new.replace(&self.entry(&name))
        });
        if copied.is_err() {
            let _ = new.remove();
        }
        copied
    }

    /// Keeps under a number, in place of what was, the inode that is kept under another.
    pub(crate) fn link(&self, number: u64, other: u64) -> io::Result<()> {
        let (name, unfinished) = (Self::name(number), unfinished(number));
        let new = self.entry(&unfinished);
        new.remove()?;
        new.link(&self.handle(other)?)?;
        new.replace(&self.entry(&name))
    }

    /// Keeps the first `len` bytes of a file, without its attributes; returns what they take.
    pub(crate) fn image(
        &self,
        number: u64,
        handle: &Handle,
        len: u64,
        sync: bool,
    ) -> io::Result<u64> {
        let (name, unfinished) = (Self::name(number), unfinished(number));
        let new = self.entry(&unfinished);
        new.remove()?;
        let copy = || -> io::Result<u64> {
            let file = new.create()?;
            tree::copy_content(&tree::open_to_read(handle)?, &file)?;
            file.set_len(len)?;
            if sync {
                file.sync_data()?;
            }
            new.replace(&self.entry(&name))?;
            Ok(InodeStat::of_file(&file)?.allocated)
        };
        copy().inspect_err(|_| {
            let _ = new.remove();
        })
    }

    /// The inode that is kept under a number.
    pub(crate) fn inode(&self, number: u64) -> io::Result<Inode> {
        Ok(Ident::of(&InodeStat::of(&self.handle(number)?)?).inode())
    }

    /// Removes what is kept under a number, if it is there.
    pub(crate) fn remove(&self, number: u64) -> io::Result<()> {
        self.entry(&Self::name(number)).remove()
    }

    /// A handle of what is kept under a number.
    pub(crate) fn handle(&self, number: u64) -> io::Result<Handle> {
        self.entry(&Self::name(number)).handle()
    }

    /// The numbers of all that is kept; what a process that was killed left unfinished goes.
    pub(crate) fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for name in tree::names(&self.folder)? {
            match name.to_str().ok().and_then(|name| name.parse().ok()) {
                Some(number) => numbers.push(number),
                None => self.entry(&name).remove()?,
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

fn unfinished(number: u64) -> CString {
    CString::new(format!("{number}.new")).unwrap_or_default()
}

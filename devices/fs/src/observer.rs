//! The one seam through which every change that the guest makes passes: what is read-only refuses it,
//! and what has a journal keeps what it destroys before it is made.
//!
//! Everything is named by nodes, whose handles hold inodes of the share, and by single components
//! beneath them: like the server, the journal has no path that could lead out of the share.

use std::sync::Arc;

use cabana_journal::{Mark, Recorder};

use crate::host::{Stat, Time};
use crate::names::Name;
use crate::nodes::Node;
use crate::wire::{self, Errno, Result};

/// A change that the guest asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change<'a> {
    /// The content of a file from an offset on, or its length: writing, truncating, allocating,
    /// copying into it. Each WRITE is one. The mark is that of the opening that does it, if one does.
    Content { node: &'a Node, from: u64, mark: Option<&'a Mark> },
    /// Permissions, times, extended attributes.
    Attributes { node: &'a Node },
    /// A new name, of a new inode. It fails where the name exists, but for CREATE without `O_EXCL`.
    Make { directory: &'a Node, name: Name<'a> },
    /// A new name for an inode that may have had none.
    Link { directory: &'a Node, name: Name<'a>, of: &'a Node },
    /// The name of a file (also of a link, a fifo, a socket) goes, and the file with its last one.
    Unlink { directory: &'a Node, name: Name<'a> },
    /// An empty directory goes.
    Rmdir { directory: &'a Node, name: Name<'a> },
    /// A name moves, over another one unless `flags` (`renameat2(2)`) says otherwise.
    Rename { from: &'a Node, name: Name<'a>, to: &'a Node, to_name: Name<'a>, flags: u32 },
}

/// What hears of the changes of one share, from any of the queues' threads, several at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observer {
    pub(crate) read_only: bool,
    pub(crate) journal: Option<Arc<Recorder>>,
}

impl Observer {
    /// Fails where the guest may change nothing.
    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.read_only { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// Makes a change, unless it is refused.
    pub(crate) fn change<T>(
        &self,
        change: &Change<'_>,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.check_writable()?;
        let Some(journal) = &self.journal else { return make() };
        let change = match *change {
            Change::Content { node, from, mark: Some(mark) } => {
                journal.before_content(&node.handle, from, mark)?;
                return make();
            }
            Change::Content { node, from, mark: None } => {
                let mark = Mark::default();
                journal.before_content(&node.handle, from, &mark)?;
                let result = make();
                journal.closed(&node.handle, &mark);
                return result;
            }
            Change::Attributes { node } => cabana_journal::Change::Attributes(&node.handle),
            Change::Make { directory, name } => cabana_journal::Change::Make(directory.entry(name)),
            Change::Link { directory, name, of } => {
                cabana_journal::Change::Link(directory.entry(name), &of.handle)
            }
            Change::Unlink { directory, name } => {
                cabana_journal::Change::Unlink(directory.entry(name))
            }
            Change::Rmdir { directory, name } => {
                cabana_journal::Change::Rmdir(directory.entry(name))
            }
            Change::Rename { from, name, to, to_name, flags } => {
                let (from, to) = (from.entry(name), to.entry(to_name));
                match flags & wire::RENAME_EXCHANGE {
                    0 => {
                        let replace = flags & wire::RENAME_NOREPLACE == 0;
                        cabana_journal::Change::Rename { from, to, replace }
                    }
                    _ => cabana_journal::Change::Exchange(from, to),
                }
            }
        };
        journal.change(&change, make)
    }

    /// An opening ends.
    pub(crate) fn closed(&self, node: &Node, mark: &Mark) {
        if let Some(journal) = &self.journal {
            journal.closed(&node.handle, mark);
        }
    }

    /// How many names the guest should see of an inode: not those that the journal gave it.
    pub(crate) fn links(&self, stat: &Stat) -> u32 {
        let Some(journal) = &self.journal else { return stat.links };
        let born = stat.born.map_or(0, Time::nanoseconds);
        stat.links.saturating_sub(journal.hidden_links(stat.device, stat.ino, born))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use cabana_journal::{Event, Home, Limits as JournalLimits, Request, log, rollback};
    use zerocopy::{FromBytes, IntoBytes};

    use super::*;
    use crate::share::Share;
    use crate::wire::{InHeader, OutHeader, opcode};
    use crate::{FileServer, Limits};

    fn ask(server: &FileServer, opcode: u32, nodeid: u64, body: &[u8]) -> Result<Vec<u8>> {
        let len = (size_of::<InHeader>() + body.len()) as u32;
        let header = InHeader { len, opcode, nodeid, ..InHeader::default() };
        let mut reply = [0; 4096];
        let len = server.handle_bytes(&[header.as_bytes(), body].concat(), &mut reply);
        let (header, body) = OutHeader::read_from_prefix(&reply[..len]).unwrap();
        if header.error == 0 { Ok(body.to_vec()) } else { Err(Errno(-header.error)) }
    }

    #[test]
    fn every_change_is_written_down_before_it_is_made_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("share");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "12345").unwrap();
        let home = Home::make(&dir.path().join("journals"), &path).unwrap();
        let server = FileServer::with_limits(Limits { nodes: 10, open: 10 });
        let recorder = Arc::new(Recorder::open(&home, JournalLimits::default()).unwrap());
        let share = Share { name: "s".into(), path: path.clone(), read_only: false };
        server.attach_with_journal(&share, Some(Arc::clone(&recorder))).unwrap();
        let init = wire::InitIn { major: 7, minor: 41, ..<_>::default() };
        ask(&server, opcode::INIT, 0, init.as_bytes()).unwrap();
        let entry = |parent, name: &str| {
            let entry = ask(&server, opcode::LOOKUP, parent, name.as_bytes()).unwrap();
            wire::EntryOut::read_from_prefix(&entry).unwrap().0
        };
        let share = entry(1, "s\0").nodeid;
        let file = entry(share, "file\0").nodeid;

        let open = wire::OpenIn { flags: wire::open::RDWR, open_flags: 0 };
        let open = ask(&server, opcode::OPEN, file, open.as_bytes()).unwrap();
        let fh = wire::OpenOut::read_from_prefix(&open).unwrap().0.fh;
        let write = wire::WriteIn { fh, size: 1, ..<_>::default() };
        ask(&server, opcode::WRITE, file, &[write.as_bytes(), b"x"].concat()).unwrap();
        let valid = wire::fattr::SIZE | wire::fattr::MODE;
        let shrink = wire::SetattrIn { valid, size: 2, mode: 0o600, ..<_>::default() };
        ask(&server, opcode::SETATTR, file, shrink.as_bytes()).unwrap();
        let empty = wire::SetattrIn { valid: wire::fattr::SIZE, ..<_>::default() };
        ask(&server, opcode::SETATTR, file, empty.as_bytes()).unwrap();
        let made = wire::MkdirIn { mode: 0o755, umask: 0 };
        ask(&server, opcode::MKDIR, share, &[made.as_bytes(), b"d\0"].concat()).unwrap();
        ask(&server, opcode::RMDIR, share, b"d\0").unwrap();
        let link = wire::LinkIn { oldnodeid: file };
        ask(&server, opcode::LINK, share, &[link.as_bytes(), b"hard\0"].concat()).unwrap();
        let to = wire::RenameIn { newdir: share };
        ask(&server, opcode::RENAME, share, &[to.as_bytes(), b"file\0f\0"].concat()).unwrap();
        ask(&server, opcode::UNLINK, share, b"f\0").unwrap();
        // The journal's name for the inode is no business of the guest's.
        assert_eq!(entry(share, "hard\0").attr.nlink, 1);
        let attr = ask(&server, opcode::GETATTR, file, &[0; 16]).unwrap();
        assert_eq!(wire::AttrOut::read_from_prefix(&attr).unwrap().0.attr.nlink, 1);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);

        let release = wire::ReleaseIn { fh, ..<_>::default() };
        ask(&server, opcode::RELEASE, file, release.as_bytes()).unwrap();
        server.detach("s").unwrap();
        drop(server);
        drop(recorder);
        let is_change = |event: &Event| {
            !matches!(event, Event::Done { .. } | Event::Settled { .. } | Event::Opened)
        };
        let records = log(&home).unwrap();
        let changes = records.iter().filter(|record| is_change(&record.event)).count();
        assert_eq!(changes, 9, "{records:?}");
        rollback(&home, &Request::default()).unwrap();
        assert_eq!(fs::read(path.join("file")).unwrap(), b"12345");
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
    }
}

//! Who hears of changes before they are made: the one seam through which every change that the
//! guest makes passes. What keeps the overwritten and the deleted stands behind it.
//!
//! Everything is named by nodes, whose handles hold inodes of the share, and by single components
//! beneath them: an observer, like the server, has no path that could lead out of the share.

use std::fmt::Debug;

use crate::names::Name;
use crate::nodes::Node;
use crate::wire::Result;

/// A change that the guest asks for.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "only an observer reads the fields")]
pub(crate) enum Change<'a> {
    /// The content or the length of a file: writing, truncating, allocating, copying into it. Each
    /// WRITE is one, so an observer should know quickly that it has seen the file before.
    Content { node: &'a Node },
    /// Permissions, times, extended attributes.
    Attributes { node: &'a Node },
    /// A new name: of a new inode, or of one more for an inode that may have had none. It fails
    /// where the name exists, but for CREATE without `O_EXCL`.
    Make { directory: &'a Node, name: Name<'a> },
    /// The name of a file (also of a link, a fifo, a socket) goes, and the file with its last one.
    Unlink { directory: &'a Node, name: Name<'a> },
    /// An empty directory goes.
    Rmdir { directory: &'a Node, name: Name<'a> },
    /// A name moves, over another one unless `flags` (`renameat2(2)`) says otherwise.
    Rename { from: &'a Node, name: Name<'a>, to: &'a Node, to_name: Name<'a>, flags: u32 },
}

/// Hears of the changes of one share, from any of the queues' threads, several at once.
pub(crate) trait Observer: Debug + Send + Sync {
    /// Before a change; an error refuses it, and the guest sees that error.
    fn before(&self, change: &Change<'_>) -> Result<()>;

    /// After a change that [`Observer::before`] let pass: whether the host made it.
    fn after(&self, change: &Change<'_>, made: bool);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::{Arc, Mutex};

    use zerocopy::{FromBytes, IntoBytes};

    use super::*;
    use crate::share::Share;
    use crate::wire::{self, Errno, InHeader, OutHeader, opcode};
    use crate::{FileServer, Limits};

    /// Notes every change, and refuses those of names that begin with `no`.
    #[derive(Debug, Default)]
    struct Notes(Mutex<Vec<String>>);

    impl Observer for Notes {
        fn before(&self, change: &Change<'_>) -> Result<()> {
            let text = |name: &Name| String::from_utf8(name.as_bytes().to_vec()).unwrap();
            let note = match change {
                Change::Content { node } => format!("content of {}", node.handle.stat()?.size),
                Change::Attributes { .. } => "attributes".to_owned(),
                Change::Make { name, .. } => format!("make {}", text(name)),
                Change::Unlink { name, .. } => format!("unlink {}", text(name)),
                Change::Rmdir { name, .. } => format!("rmdir {}", text(name)),
                Change::Rename { name, to_name, .. } => {
                    format!("rename {} {}", text(name), text(to_name))
                }
            };
            let refused = note.contains(" no");
            self.0.lock().unwrap().push(note);
            if refused { Err(Errno::EPERM) } else { Ok(()) }
        }

        fn after(&self, _: &Change<'_>, made: bool) {
            self.0.lock().unwrap().push(made.to_string());
        }
    }

    fn ask(server: &FileServer, opcode: u32, nodeid: u64, body: &[u8]) -> Result<Vec<u8>> {
        let len = (size_of::<InHeader>() + body.len()) as u32;
        let header = InHeader { len, opcode, nodeid, ..InHeader::default() };
        let mut reply = [0; 4096];
        let len = server.handle_bytes(&[header.as_bytes(), body].concat(), &mut reply);
        let (header, body) = OutHeader::read_from_prefix(&reply[..len]).unwrap();
        if header.error == 0 { Ok(body.to_vec()) } else { Err(Errno(-header.error)) }
    }

    #[test]
    fn every_change_is_heard_of_before_it_is_made_and_can_be_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "12345").unwrap();
        fs::write(dir.path().join("no"), "kept").unwrap();
        let server = FileServer::with_limits(Limits { nodes: 10, open: 10 });
        let notes = Arc::new(Notes::default());
        let share = Share { name: "s".into(), path: dir.path().into(), read_only: false };
        server.attach_observed(&share, Some(Arc::clone(&notes) as _)).unwrap();
        let init = wire::InitIn { major: 7, minor: 41, ..<_>::default() };
        ask(&server, opcode::INIT, 0, init.as_bytes()).unwrap();
        let node = |parent, name: &str| {
            let entry = ask(&server, opcode::LOOKUP, parent, name.as_bytes()).unwrap();
            wire::EntryOut::read_from_prefix(&entry).unwrap().0.nodeid
        };
        let share = node(1, "s\0");
        let file = node(share, "file\0");

        let open = wire::OpenIn { flags: wire::open::RDWR, open_flags: 0 };
        let open = ask(&server, opcode::OPEN, file, open.as_bytes()).unwrap();
        let fh = wire::OpenOut::read_from_prefix(&open).unwrap().0.fh;
        let write = wire::WriteIn { fh, size: 1, ..<_>::default() };
        ask(&server, opcode::WRITE, file, &[write.as_bytes(), b"x"].concat()).unwrap();
        let valid = wire::fattr::SIZE | wire::fattr::MODE;
        let shrink = wire::SetattrIn { valid, size: 2, mode: 0o600, ..<_>::default() };
        ask(&server, opcode::SETATTR, file, shrink.as_bytes()).unwrap();
        let truncate = wire::OpenIn { flags: wire::open::TRUNC, open_flags: 0 };
        // The guest's kernel knows nothing of the new length: it is sent back once.
        assert_eq!(ask(&server, opcode::OPEN, file, truncate.as_bytes()), Err(Errno::ESTALE));
        ask(&server, opcode::OPEN, file, truncate.as_bytes()).unwrap();
        let made = wire::MkdirIn { mode: 0o755, umask: 0 };
        ask(&server, opcode::MKDIR, share, &[made.as_bytes(), b"d\0"].concat()).unwrap();
        ask(&server, opcode::RMDIR, share, b"d\0").unwrap();
        assert_eq!(ask(&server, opcode::RMDIR, share, b"d\0"), Err(Errno::ENOENT));
        let to = wire::RenameIn { newdir: share };
        ask(&server, opcode::RENAME, share, &[to.as_bytes(), b"file\0f\0"].concat()).unwrap();
        assert_eq!(ask(&server, opcode::UNLINK, share, b"no\0"), Err(Errno::EPERM));

        let expected = "content of 5, true, attributes, true, content of 5, true, content of 2, \
            true, make d, true, rmdir d, true, rmdir d, false, rename file f, true, unlink no";
        assert_eq!(notes.0.lock().unwrap().join(", "), expected);
        assert_eq!(fs::read(dir.path().join("no")).unwrap(), b"kept");
    }
}

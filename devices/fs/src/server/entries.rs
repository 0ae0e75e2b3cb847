//! Making, moving and removing names.

use std::fs::File;
use std::sync::Arc;

use crate::coherence::NameKey;
use crate::handles::{Open, OpenFile};
use crate::host::{self, Access, Handle, Stat};
use crate::message::{self, Reply, Request};
use crate::names::{Name, TARGET_MAX, take_string};
use crate::nodes::Node;
use crate::observer::Change;
use crate::server::FileServer;
use crate::server::file::{access, open_node};
use crate::wire::{self, Errno, InHeader, Result, mode, open};

impl FileServer {
    pub(super) fn create(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<()> {
        let (input, directory) = self.read_create(header, request)?;
        let names = self.read_names(header, request, 1)?;
        let (name, _) = Name::take(&names)?;
        let access = access(input.flags);
        let made = directory.share.change(&make(&directory, name), || {
            let mode = host::permissions(input.mode);
            Ok(directory.handle.create(name.as_c_str(), mode, access)?)
        });
        match made {
            Ok((file, stat)) => {
                let handle = directory.handle.of_made(name.as_c_str(), &file, &stat)?;
                let node = self.nodes.enter(&directory.share, handle, &stat)?;
                let key = self.note_name(&node, directory.id, name);
                self.put_created(reply, node, key, &stat, file, access)
            }
            // The host was faster than the guest knows.
            Err(Errno::EEXIST) if input.flags & open::EXCL == 0 => {
                let entry = self.resolve(&directory, name)?;
                self.open_resolved(&entry, input.flags)
                    .and_then(|fh| self.put_opened(reply, &entry, fh))
                    .inspect_err(|_| self.nodes.forget(entry.nodeid, 1))
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn tmpfile(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<()> {
        let (input, directory) = self.read_create(header, request)?;
        let access = access(input.flags);
        if !access.write {
            return Err(Errno::EINVAL);
        }
        let (file, stat) =
            directory.handle.create_unnamed(host::permissions(input.mode), access)?;
        let node = self.nodes.enter(&directory.share, Handle::of_file(&file)?, &stat)?;
        self.put_created(reply, node, NameKey::default(), &stat, file, access)
    }

    fn read_create(
        &self,
        header: &InHeader,
        request: &mut impl Request,
    ) -> Result<(wire::CreateIn, Arc<Node>)> {
        let input: wire::CreateIn = message::read(request)?;
        if input.mode & mode::TYPE != mode::REGULAR {
            return Err(Errno::EINVAL);
        }
        let directory = self.writable_node(header.nodeid)?;
        self.handles.check_room()?;
        Ok((input, directory))
    }

    fn put_created(
        &self,
        reply: &mut impl Reply,
        node: Arc<Node>,
        name: NameKey,
        stat: &Stat,
        file: File,
        access: Access,
    ) -> Result<()> {
        let entry = self.entry(&node, name, stat);
        self.handles
            .insert(Open::File(OpenFile::new(node, file, 0, access)))
            .and_then(|fh| self.put_opened(reply, &entry, fh))
            .inspect_err(|_| self.nodes.forget(entry.nodeid, 1))
    }

    fn open_resolved(&self, entry: &wire::EntryOut, flags: u32) -> Result<u64> {
        let node = self.nodes.get(entry.nodeid)?;
        let (file, _) = open_node(&node, access(flags))?;
        if flags & open::TRUNC != 0 {
            let change = Change::Content { node: &node, from: 0, mark: None };
            node.share.change(&change, || Ok(host::set_len(&file, 0)?))?;
        }
        self.handles.insert(Open::File(OpenFile::new(node, file, 0, access(flags))))
    }

    /// Writes an entry and its open file, which is closed again if the guest does not get it.
    fn put_opened(&self, reply: &mut impl Reply, entry: &wire::EntryOut, fh: u64) -> Result<()> {
        let output = wire::OpenOut { fh, open_flags: 0, backing_id: 0 };
        message::write(reply, entry).and_then(|()| message::write(reply, &output)).inspect_err(
            |_| {
                let _ = self.handles.remove(fh, entry.nodeid);
            },
        )
    }

    pub(super) fn mknod(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<()> {
        let input: wire::MknodIn = message::read(request)?;
        let names = self.read_names(header, request, 1)?;
        let (name, _) = Name::take(&names)?;
        let directory = self.writable_node(header.nodeid)?;
        directory.share.change(&make(&directory, name), || {
            let (name, mode) = (name.as_c_str(), host::permissions(input.mode));
            match input.mode & mode::TYPE {
                mode::REGULAR => drop(directory.handle.create(name, mode, Access::READ)?),
                kind @ (mode::FIFO | mode::SOCKET) => {
                    directory.handle.make_special(name, kind, mode)?;
                }
                _ => return Err(Errno::EPERM),
            }
            Ok(())
        })?;
        self.put_made(reply, &directory, name, input.mode)
    }

    pub(super) fn mkdir(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<()> {
        let input: wire::MkdirIn = message::read(request)?;
        let names = self.read_names(header, request, 1)?;
        let (name, _) = Name::take(&names)?;
        let directory = self.writable_node(header.nodeid)?;
        directory.share.change(&make(&directory, name), || {
            let mode = host::permissions(input.mode);
            Ok(directory.handle.make_directory(name.as_c_str(), mode)?)
        })?;
        self.put_made(reply, &directory, name, mode::DIRECTORY | input.mode & !mode::TYPE)
    }

    pub(super) fn symlink(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<()> {
        let names = self.read_names(header, request, 1)?;
        let (name, rest) = Name::take(&names)?;
        let (target, _) = take_string(rest)?;
        match target.to_bytes().len() {
            0 => return Err(Errno::ENOENT),
            1..=TARGET_MAX => {}
            _ => return Err(Errno::ENAMETOOLONG),
        }
        let directory = self.writable_node(header.nodeid)?;
        directory.share.change(&make(&directory, name), || {
            Ok(directory.handle.make_symlink(name.as_c_str(), target)?)
        })?;
        self.put_made(reply, &directory, name, mode::SYMLINK | 0o777)
    }

    /// Tells the guest of what was just made, with the permissions that the guest asked for: it
    /// has applied its own umask, and this process's has no say.
    fn put_made(
        &self,
        reply: &mut impl Reply,
        directory: &Node,
        name: Name,
        wanted: u32,
    ) -> Result<()> {
        let handle = directory.handle.child(name.as_c_str())?;
        let mut stat = handle.stat()?;
        if stat.kind() != wanted & mode::TYPE {
            // The host has replaced it already.
            return Err(Errno::ESTALE);
        }
        if (stat.mode ^ wanted) & mode::PERMISSIONS != 0 && stat.kind() != mode::SYMLINK {
            handle.set_mode(host::permissions(wanted))?;
            stat = handle.stat()?;
        }
        let node = self.nodes.enter(&directory.share, handle, &stat)?;
        let key = self.note_name(&node, directory.id, name);
        self.put_entry(reply, &self.entry(&node, key, &stat))
    }

    pub(super) fn link(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<()> {
        let input: wire::LinkIn = message::read(request)?;
        let names = self.read_names(header, request, 1)?;
        let (name, _) = Name::take(&names)?;
        let directory = self.writable_node(header.nodeid)?;
        let target = self.writable_node(input.oldnodeid)?;
        check_same_share(&directory, &target)?;
        if target.kind == mode::DIRECTORY {
            return Err(Errno::EPERM);
        }
        let change = Change::Link { directory: &directory, name, of: &target };
        directory
            .share
            .change(&change, || Ok(directory.handle.link(name.as_c_str(), &target.handle)?))?;
        let entry = self.resolve(&directory, name)?;
        self.put_entry(reply, &entry)
    }

    pub(super) fn unlink(&self, header: &InHeader, request: &mut impl Request) -> Result<()> {
        let names = self.read_names(header, request, 1)?;
        let (name, _) = Name::take(&names)?;
        let directory = self.writable_node(header.nodeid)?;
        let change = Change::Unlink { directory: &directory, name };
        directory.share.change(&change, || Ok(directory.handle.unlink(name.as_c_str())?))
    }

    pub(super) fn rmdir(&self, header: &InHeader, request: &mut impl Request) -> Result<()> {
        let names = self.read_names(header, request, 1)?;
        let (name, _) = Name::take(&names)?;
        let directory = self.writable_node(header.nodeid)?;
        let change = Change::Rmdir { directory: &directory, name };
        directory
            .share
            .change(&change, || Ok(directory.handle.remove_directory(name.as_c_str())?))
    }

    pub(super) fn rename(&self, header: &InHeader, request: &mut impl Request) -> Result<()> {
        let input: wire::RenameIn = message::read(request)?;
        self.move_name(header, request, input.newdir, 0)
    }

    pub(super) fn rename2(&self, header: &InHeader, request: &mut impl Request) -> Result<()> {
        let input: wire::Rename2In = message::read(request)?;
        match input.flags {
            0 | wire::RENAME_NOREPLACE | wire::RENAME_EXCHANGE => {}
            _ => return Err(Errno::EINVAL),
        }
        self.move_name(header, request, input.newdir, input.flags)
    }

    fn move_name(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        to: u64,
        flags: u32,
    ) -> Result<()> {
        let names = self.read_names(header, request, 2)?;
        let (name, rest) = Name::take(&names)?;
        let (to_name, _) = Name::take(rest)?;
        let directory = self.writable_node(header.nodeid)?;
        let to = self.writable_node(to)?;
        check_same_share(&directory, &to)?;
        let change = Change::Rename { from: &directory, name, to: &to, to_name, flags };
        directory.share.change(&change, || {
            let (name, to_name) = (name.as_c_str(), to_name.as_c_str());
            Ok(directory.handle.rename(name, &to.handle, to_name, flags)?)
        })
    }

    pub(super) fn readlink(&self, header: &InHeader, reply: &mut impl Reply) -> Result<()> {
        let node = self.node(header.nodeid)?;
        if node.kind != mode::SYMLINK {
            return Err(Errno::EINVAL);
        }
        reply.put(&node.handle.read_link()?)
    }
}

fn make<'a>(directory: &'a Node, name: Name<'a>) -> Change<'a> {
    Change::Make { directory, name }
}

/// Shares are file systems of their own.
fn check_same_share(one: &Node, other: &Node) -> Result<()> {
    if one.share.id == other.share.id { Ok(()) } else { Err(Errno::EXDEV) }
}

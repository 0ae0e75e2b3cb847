//! A driver of the file server: raw requests over buffers, as a guest's kernel would send them.

// Each suite uses a part of it.
#![allow(dead_code, unreachable_pub)]

#[cfg(unix)]
pub mod mount;
pub mod posix;
pub mod yard;

use std::path::Path;

use cabana_fs::wire::{self, Errno, InHeader, OutHeader, init, opcode, open};
use cabana_fs::{FileServer, Limits, Share};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Room for any reply but that of a large READ.
pub const ROOM: usize = 66_000;

/// A guest with one mount.
pub struct Guest {
    pub server: FileServer,
    pub thread: u32,
}

pub type Result<T> = std::result::Result<T, Errno>;

impl Guest {
    /// Mounted, with `path` as the share `s`; returns the share's node too.
    pub fn with_share(path: &Path) -> (Self, u64) {
        let guest = Self::mounted(Limits { nodes: 10_000, open: 1000 });
        guest.attach("s", path, false);
        let share = guest.lookup(1, "s").unwrap().nodeid;
        (guest, share)
    }

    pub fn mounted(limits: Limits) -> Self {
        let guest = Self { server: FileServer::with_limits(limits), thread: 1 };
        guest.init().unwrap();
        guest
    }

    pub fn attach(&self, name: &str, path: &Path, read_only: bool) {
        let share = Share { name: name.into(), path: path.into(), read_only };
        self.server.attach(&share).unwrap();
    }

    pub fn init(&self) -> Result<wire::InitOut> {
        let flags = init::INIT_EXT | init::SETXATTR_EXT | init::DO_READDIRPLUS | init::ALLOW_IDMAP;
        let input =
            wire::InitIn { major: 7, minor: 41, max_readahead: 131_072, flags: flags as u32 };
        let more = ((flags >> 32) as u32).to_le_bytes();
        self.ask(opcode::INIT, 0, &[input.as_bytes(), &more, &[0; 44]]).map(|body| take(&body).0)
    }

    /// Sends a request as it stands and returns the reply as it stands.
    pub fn raw(&self, request: &[u8], room: usize) -> Vec<u8> {
        let mut reply = vec![0xaa; room];
        let len = self.server.handle_bytes(request, &mut reply);
        reply.truncate(len);
        reply
    }

    /// Sends a request and returns the reply's body.
    pub fn ask(&self, opcode: u32, nodeid: u64, parts: &[&[u8]]) -> Result<Vec<u8>> {
        self.ask_with_room(opcode, nodeid, parts, ROOM)
    }

    pub fn ask_with_room(
        &self,
        opcode: u32,
        nodeid: u64,
        parts: &[&[u8]],
        room: usize,
    ) -> Result<Vec<u8>> {
        let request = self.request(opcode, nodeid, parts);
        let reply = self.raw(&request, room);
        let (header, body): (OutHeader, _) = take(&reply);
        assert_eq!((header.len as usize, header.unique), (reply.len(), 77));
        if header.error == 0 { Ok(body.to_vec()) } else { Err(Errno(-header.error)) }
    }

    pub fn request(&self, opcode: u32, nodeid: u64, parts: &[&[u8]]) -> Vec<u8> {
        let body = parts.concat();
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode,
            unique: 77,
            nodeid,
            pid: self.thread,
            ..InHeader::default()
        };
        [header.as_bytes(), &body].concat()
    }

    pub fn lookup(&self, parent: u64, name: &str) -> Result<wire::EntryOut> {
        self.ask(opcode::LOOKUP, parent, &[&c(name)]).map(|body| take(&body).0)
    }

    pub fn forget(&self, node: u64, nlookup: u64) {
        let request = self.request(opcode::FORGET, node, &[wire::ForgetIn { nlookup }.as_bytes()]);
        assert!(self.raw(&request, ROOM).is_empty(), "FORGET has no reply");
    }

    pub fn getattr(&self, node: u64) -> Result<wire::Attr> {
        let body = self.ask(opcode::GETATTR, node, &[&[0; 16]])?;
        Ok(take::<wire::AttrOut>(&body).0.attr)
    }

    pub fn setattr(&self, node: u64, input: wire::SetattrIn) -> Result<wire::Attr> {
        let body = self.ask(opcode::SETATTR, node, &[input.as_bytes()])?;
        Ok(take::<wire::AttrOut>(&body).0.attr)
    }

    pub fn create(&self, parent: u64, name: &str, mode: u32) -> Result<(u64, u64)> {
        self.create_with(parent, name, mode, open::RDWR | open::EXCL)
    }

    pub fn create_with(
        &self,
        parent: u64,
        name: &str,
        mode: u32,
        flags: u32,
    ) -> Result<(u64, u64)> {
        let input = wire::CreateIn { flags, mode: wire::mode::REGULAR | mode, ..<_>::default() };
        let body = self.ask(opcode::CREATE, parent, &[input.as_bytes(), &c(name)])?;
        let (entry, rest): (wire::EntryOut, _) = take(&body);
        Ok((entry.nodeid, take::<wire::OpenOut>(rest).0.fh))
    }

    pub fn mkdir(&self, parent: u64, name: &str, mode: u32) -> Result<wire::EntryOut> {
        let input = wire::MkdirIn { mode, umask: 0 };
        self.ask(opcode::MKDIR, parent, &[input.as_bytes(), &c(name)]).map(|body| take(&body).0)
    }

    pub fn mknod(&self, parent: u64, name: &str, mode: u32) -> Result<wire::EntryOut> {
        let input = wire::MknodIn { mode, rdev: 0x103, ..<_>::default() };
        self.ask(opcode::MKNOD, parent, &[input.as_bytes(), &c(name)]).map(|body| take(&body).0)
    }

    pub fn symlink(&self, parent: u64, name: &str, target: &str) -> Result<wire::EntryOut> {
        self.ask(opcode::SYMLINK, parent, &[&c(name), &c(target)]).map(|body| take(&body).0)
    }

    pub fn link(&self, node: u64, parent: u64, name: &str) -> Result<wire::EntryOut> {
        let input = wire::LinkIn { oldnodeid: node };
        self.ask(opcode::LINK, parent, &[input.as_bytes(), &c(name)]).map(|body| take(&body).0)
    }

    pub fn unlink(&self, parent: u64, name: &str) -> Result<()> {
        self.ask(opcode::UNLINK, parent, &[&c(name)]).map(drop)
    }

    pub fn rmdir(&self, parent: u64, name: &str) -> Result<()> {
        self.ask(opcode::RMDIR, parent, &[&c(name)]).map(drop)
    }

    pub fn rename(&self, from: (u64, &str), to: (u64, &str), flags: u32) -> Result<()> {
        let input = wire::Rename2In { newdir: to.0, flags, padding: 0 };
        let parts: &[&[u8]] = &[input.as_bytes(), &c(from.1), &c(to.1)];
        self.ask(opcode::RENAME2, from.0, parts).map(drop)
    }

    /// Returns the handle and the flags of the reply.
    pub fn open(&self, node: u64, flags: u32) -> Result<(u64, u32)> {
        let input = wire::OpenIn { flags, open_flags: 0 };
        let body = self.ask(opcode::OPEN, node, &[input.as_bytes()])?;
        let output: wire::OpenOut = take(&body).0;
        Ok((output.fh, output.open_flags))
    }

    pub fn release(&self, node: u64, fh: u64) -> Result<()> {
        let input = wire::ReleaseIn { fh, ..<_>::default() };
        self.ask(opcode::RELEASE, node, &[input.as_bytes()]).map(drop)
    }

    pub fn read(&self, node: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<u8>> {
        let input = wire::ReadIn { fh, offset, size, ..<_>::default() };
        self.ask_with_room(opcode::READ, node, &[input.as_bytes()], (1 << 20) + 4096)
    }

    pub fn write(&self, node: u64, fh: u64, offset: u64, data: &[u8]) -> Result<u32> {
        self.write_with(node, fh, offset, data, 0)
    }

    pub fn write_with(
        &self,
        node: u64,
        fh: u64,
        offset: u64,
        data: &[u8],
        flags: u32,
    ) -> Result<u32> {
        let size = data.len() as u32;
        let input = wire::WriteIn { fh, offset, size, flags, ..<_>::default() };
        let body = self.ask(opcode::WRITE, node, &[input.as_bytes(), data])?;
        Ok(take::<wire::WriteOut>(&body).0.size)
    }

    /// The whole content of a node's file.
    pub fn content(&self, node: u64) -> Result<Vec<u8>> {
        let (fh, _) = self.open(node, open::RDONLY)?;
        let content = self.read(node, fh, 0, 1 << 20);
        self.release(node, fh)?;
        content
    }

    pub fn opendir(&self, node: u64) -> Result<u64> {
        let body = self.ask(opcode::OPENDIR, node, &[&[0; 8]])?;
        Ok(take::<wire::OpenOut>(&body).0.fh)
    }

    pub fn readdir(&self, node: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<Listed>> {
        let input = wire::ReadIn { fh, offset, size, ..<_>::default() };
        let body = self.ask(opcode::READDIR, node, &[input.as_bytes()])?;
        Ok(entries(&body, false))
    }

    pub fn readdirplus(&self, node: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<Listed>> {
        let input = wire::ReadIn { fh, offset, size, ..<_>::default() };
        let body = self.ask(opcode::READDIRPLUS, node, &[input.as_bytes()])?;
        Ok(entries(&body, true))
    }
}

/// An entry of a directory.
#[derive(Debug)]
pub struct Listed {
    pub entry: wire::EntryOut,
    pub dirent: wire::Dirent,
    pub name: String,
}

fn entries(mut body: &[u8], plus: bool) -> Vec<Listed> {
    let mut listed = Vec::new();
    while !body.is_empty() {
        let before = body.len();
        let entry = if plus {
            let (entry, rest) = take(body);
            body = rest;
            entry
        } else {
            wire::EntryOut::default()
        };
        let (dirent, rest): (wire::Dirent, _) = take(body);
        let (name, _) = rest.split_at(dirent.namelen as usize);
        let name = String::from_utf8_lossy(name).into_owned();
        let used = (before - rest.len() + dirent.namelen as usize).next_multiple_of(8);
        body = &body[used - (before - body.len())..];
        listed.push(Listed { entry, dirent, name });
    }
    listed
}

/// Lets the files' last change become old enough to be cached.
pub fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(300));
}

/// A string with its NUL.
pub fn c(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// The structure at the front of `bytes`, and what follows it.
pub fn take<T: FromBytes + Immutable>(bytes: &[u8]) -> (T, &[u8]) {
    let (first, rest) = bytes.split_at(size_of::<T>());
    (T::read_from_bytes(first).unwrap(), rest)
}

/// A structure's bytes.
pub fn bytes<T: IntoBytes + Immutable>(value: &T) -> &[u8] {
    value.as_bytes()
}

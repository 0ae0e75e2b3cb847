//! Each operation, against a real folder, through raw FUSE requests.

mod client;

use std::fs;
use std::path::Path;

use cabana_fs::wire::{self, Errno, fattr, mode, opcode, open};
use cabana_fs::{Limits, Replay, ShareError, Step};
use cabana_os::tree::Handle;
use client::yard::{look, set_mode};
use client::{Guest, bytes, c, settle, take};

fn setup() -> (tempfile::TempDir, Guest, u64) {
    let dir = tempfile::tempdir().unwrap();
    let (guest, share) = Guest::with_share(dir.path());
    (dir, guest, share)
}

fn mode_of(path: &Path) -> u32 {
    look(path).mode & 0o7777
}

#[test]
fn init_agrees_on_what_both_know() {
    let guest = Guest::mounted(Limits { nodes: 10, open: 10 });
    let output = guest.init().unwrap();
    assert_eq!((output.major, output.minor), (7, 41));
    assert_eq!((output.max_write, output.max_pages), (1 << 20, 256));
    let agreed = u64::from(output.flags) | u64::from(output.flags2) << 32;
    let offered = wire::init::INIT_EXT
        | wire::init::SETXATTR_EXT
        | wire::init::DO_READDIRPLUS
        | wire::init::ALLOW_IDMAP;
    assert_eq!(agreed, offered, "nothing that was not offered");
    let newer = wire::InitIn { major: 8, ..<_>::default() };
    let body = guest.ask(opcode::INIT, 0, &[bytes(&newer)]).unwrap();
    assert_eq!(take::<wire::InitOut>(&body).0.major, 7);
    let older = wire::InitIn { major: 7, minor: 12, ..<_>::default() };
    assert_eq!(guest.ask(opcode::INIT, 0, &[bytes(&older)]).unwrap_err(), Errno::EPROTO);
}

#[test]
fn a_file_is_made_written_read_and_removed() {
    let (dir, guest, share) = setup();
    let (node, fh) = guest.create(share, "file", 0o640).unwrap();
    assert_eq!(guest.write(node, fh, 0, b"hello world").unwrap(), 11);
    assert_eq!(guest.read(node, fh, 6, 100).unwrap(), b"world");
    assert_eq!(guest.read(node, fh, 11, 100).unwrap(), b"", "the end");
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"hello world");
    assert_eq!(guest.getattr(node).unwrap().size, 11);
    for fsync_flags in [0, wire::FSYNC_FDATASYNC] {
        let input = wire::FsyncIn { fh, fsync_flags, padding: 0 };
        guest.ask(opcode::FSYNC, node, &[bytes(&input)]).unwrap();
    }
    guest.release(node, fh).unwrap();
    assert_eq!(guest.read(node, fh, 0, 5).unwrap_err(), Errno::ESTALE);
    guest.unlink(share, "file").unwrap();
    assert!(!dir.path().join("file").exists());
    assert_eq!(guest.lookup(share, "file").unwrap_err(), Errno::ENOENT);
}

#[test]
fn a_file_that_is_open_outlives_its_name() {
    let (dir, guest, share) = setup();
    let (node, fh) = guest.create(share, "file", 0o640).unwrap();
    guest.write(node, fh, 0, b"hello world").unwrap();
    guest.unlink(share, "file").unwrap();
    assert!(!dir.path().join("file").exists());
    assert_eq!(guest.read(node, fh, 0, 5).unwrap(), b"hello", "still open");
    assert_eq!(guest.getattr(node).unwrap().nlink, 0);
    guest.release(node, fh).unwrap();
    assert_eq!(guest.read(node, fh, 0, 5).unwrap_err(), Errno::ESTALE);
    assert_eq!(guest.lookup(share, "file").unwrap_err(), Errno::ENOENT);
}

#[test]
fn create_opens_what_the_host_made_first_unless_it_must_be_new() {
    let (dir, guest, share) = setup();
    fs::write(dir.path().join("file"), "host's").unwrap();
    assert_eq!(guest.create(share, "file", 0o600).unwrap_err(), Errno::EEXIST);
    let (node, fh) = guest.create_with(share, "file", 0o600, open::RDWR).unwrap();
    assert_eq!(guest.read(node, fh, 0, 100).unwrap(), b"host's");
    guest.create_with(share, "file", 0o600, open::RDWR | open::TRUNC).unwrap();
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"");
}

#[test]
fn modes_survive_whatever_the_umask() {
    let (dir, guest, share) = setup();
    for (name, mode) in [("a", 0o777), ("b", 0o666), ("c", 0o000), ("d", 0o1755)] {
        let (node, _) = guest.create(share, name, mode).unwrap();
        assert_eq!(guest.getattr(node).unwrap().mode, mode::REGULAR | mode);
        let made = guest.mkdir(share, &format!("dir-{name}"), mode).unwrap();
        assert_eq!(made.attr.mode, mode::DIRECTORY | mode);
        assert_eq!(mode_of(&dir.path().join(format!("dir-{name}"))), mode);
        let made = guest.mknod(share, &format!("nod-{name}"), mode::REGULAR | mode).unwrap();
        assert_eq!(made.attr.mode, mode::REGULAR | mode);
    }
    let node = guest.lookup(share, "a").unwrap().nodeid;
    let input = wire::SetattrIn { valid: fattr::MODE, mode: 0o100_711, ..<_>::default() };
    assert_eq!(guest.setattr(node, input).unwrap().mode, 0o100_711);
    assert_eq!(mode_of(&dir.path().join("a")), 0o711);
}

#[test]
fn set_id_bits_cross_in_neither_direction() {
    let (dir, guest, share) = setup();
    let (node, fh) = guest.create(share, "file", 0o6755).unwrap();
    assert_eq!(mode_of(&dir.path().join("file")), 0o755);
    let input = wire::SetattrIn { valid: fattr::MODE, mode: 0o6711, ..<_>::default() };
    guest.setattr(node, input).unwrap();
    guest.mkdir(share, "dir", 0o2755).unwrap();
    assert_eq!(mode_of(&dir.path().join("dir")), 0o755);
    assert_eq!(mode_of(&dir.path().join("file")), 0o711);
    guest.release(node, fh).unwrap();

    let theirs = dir.path().join("theirs");
    fs::write(&theirs, "program").unwrap();
    set_mode(&theirs, 0o4755);
    let entry = guest.lookup(share, "theirs").unwrap();
    assert_eq!(entry.attr.mode, mode::REGULAR | 0o755);
    guest.open(entry.nodeid, open::RDONLY).unwrap();
    assert_eq!(mode_of(&theirs), 0o4755);
    guest.open(entry.nodeid, open::WRONLY).unwrap();
    assert_eq!(mode_of(&theirs), 0o755, "what the guest may write runs as nobody else");
}

#[test]
fn owners_are_mapped_and_stay() {
    let (dir, guest, share) = setup();
    let (node, _) = guest.create(share, "file", 0o644).unwrap();
    let attr = guest.getattr(node).unwrap();
    assert_eq!((attr.uid, attr.gid), (0, 0), "the host's user is the guest's root");
    let chown = |uid, gid| {
        let valid = fattr::UID | fattr::GID;
        guest.setattr(node, wire::SetattrIn { valid, uid, gid, ..<_>::default() })
    };
    chown(0, 0).unwrap();
    assert_eq!(chown(1000, 0).unwrap_err(), Errno::EPERM);
    assert_eq!(chown(0, 5).unwrap_err(), Errno::EPERM);
    let folder = Handle::of_directory(dir.path()).unwrap();
    if folder.child(c"file").unwrap().set_owner(12_345, 12_345).is_err() {
        eprintln!("not checked: another owner's file (this user cannot make one)");
        return;
    }
    let attr = guest.getattr(node).unwrap();
    assert_eq!((attr.uid, attr.gid), (65_534, 65_534));
    chown(65_534, 65_534).unwrap();
    assert_eq!(chown(0, 0).unwrap_err(), Errno::EPERM);
    assert_eq!(look(&dir.path().join("file")).uid, 12_345);
}

#[test]
fn size_and_times_are_set() {
    let (dir, guest, share) = setup();
    let (node, fh) = guest.create(share, "file", 0o644).unwrap();
    guest.write(node, fh, 0, b"0123456789").unwrap();
    let by_node = wire::SetattrIn { valid: fattr::SIZE, size: 4, ..<_>::default() };
    assert_eq!(guest.setattr(node, by_node).unwrap().size, 4);
    let by_handle =
        wire::SetattrIn { valid: fattr::SIZE | fattr::FH, fh, size: 8192, ..<_>::default() };
    assert_eq!(guest.setattr(node, by_handle).unwrap().size, 8192);
    assert_eq!(&guest.read(node, fh, 0, 6).unwrap(), b"0123\0\0");
    let times = wire::SetattrIn {
        valid: fattr::ATIME | fattr::MTIME,
        atime: 1_000_000_000,
        atimensec: 100,
        mtime: u64::MAX,
        mtimensec: 999_999_900,
        ..<_>::default()
    };
    let attr = guest.setattr(node, times).unwrap();
    assert_eq!((attr.atime, attr.atimensec), (1_000_000_000, 100));
    assert_eq!((attr.mtime as i64, attr.mtimensec), (-1, 999_999_900), "before 1970");
    let now = wire::SetattrIn { valid: fattr::MTIME_NOW, ..<_>::default() };
    assert!(guest.setattr(node, now).unwrap().mtime > 1_700_000_000);
    let body = guest.ask(opcode::STATX, node, &[&[0; 24]]).unwrap();
    let statx = take::<wire::StatxOut>(&body).0.stat;
    assert_eq!((statx.size, statx.mode), (8192, guest.getattr(node).unwrap().mode as u16));
    assert_eq!(fs::metadata(dir.path().join("file")).unwrap().len(), 8192);
}

#[test]
fn appending_goes_to_the_end_and_can_be_turned_off() {
    let (dir, guest, share) = setup();
    let flags = open::RDWR | open::APPEND;
    let (node, fh) = guest.create_with(share, "log", 0o644, flags).unwrap();
    guest.write_with(node, fh, 0, b"guest\n", open::APPEND).unwrap();
    let path = dir.path().join("log");
    let mut before = fs::read(&path).unwrap();
    before.extend_from_slice(b"host\n");
    fs::write(&path, &before).unwrap();
    guest.write_with(node, fh, 6, b"guest\n", open::APPEND).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"guest\nhost\nguest\n");
    guest.write_with(node, fh, 0, b"GUEST", 0).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"GUEST\nhost\nguest\n");
}

#[test]
fn links_hard_and_symbolic() {
    let (dir, guest, share) = setup();
    let (node, fh) = guest.create(share, "file", 0o644).unwrap();
    guest.write(node, fh, 0, b"x").unwrap();
    let linked = guest.link(node, share, "other").unwrap();
    assert_eq!((linked.nodeid, linked.attr.nlink), (node, 2));
    let symlink = guest.symlink(share, "link", "../../etc/passwd").unwrap();
    assert_eq!(symlink.attr.mode & mode::TYPE, mode::SYMLINK);
    assert_eq!((symlink.entry_valid, symlink.entry_valid_nsec), (0, 0));
    let target = guest.ask(opcode::READLINK, symlink.nodeid, &[]).unwrap();
    assert_eq!(target, b"../../etc/passwd");
    let again = guest.link(symlink.nodeid, share, "link2").unwrap();
    assert_eq!(again.nodeid, symlink.nodeid, "the link itself gets another name");
    assert!(dir.path().join("link2").is_symlink());
    assert_eq!(guest.symlink(share, "link", "x").unwrap_err(), Errno::EEXIST);
    assert_eq!(guest.symlink(share, "empty", "").unwrap_err(), Errno::ENOENT);
    let long = "x".repeat(4096);
    assert_eq!(guest.symlink(share, "long", &long).unwrap_err(), Errno::ENAMETOOLONG);
    guest.symlink(share, "long", &long[1..]).unwrap();
    let made = guest.mkdir(share, "dir", 0o755).unwrap();
    assert_eq!(guest.link(made.nodeid, share, "dir2").unwrap_err(), Errno::EPERM);
    assert_eq!(guest.ask(opcode::READLINK, node, &[]).unwrap_err(), Errno::EINVAL);
}

#[test]
fn names_move_replace_and_exchange() {
    let (dir, guest, share) = setup();
    fs::write(dir.path().join("a"), "a").unwrap();
    fs::write(dir.path().join("b"), "b").unwrap();
    let sub = guest.mkdir(share, "sub", 0o755).unwrap().nodeid;
    guest.rename((share, "a"), (sub, "c"), 0).unwrap();
    assert_eq!(fs::read(dir.path().join("sub/c")).unwrap(), b"a");
    let error = guest.rename((share, "b"), (sub, "c"), wire::RENAME_NOREPLACE).unwrap_err();
    assert_eq!(error, Errno::EEXIST);
    guest.rename((share, "b"), (sub, "c"), wire::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(dir.path().join("b")).unwrap(), b"a");
    guest.rename((share, "b"), (sub, "c"), 0).unwrap();
    assert_eq!(fs::read(dir.path().join("sub/c")).unwrap(), b"a");
    assert!(!dir.path().join("b").exists());
    assert_eq!(guest.rename((share, "b"), (sub, "c"), 4).unwrap_err(), Errno::EINVAL);
    let input = wire::RenameIn { newdir: share };
    guest.ask(opcode::RENAME, sub, &[bytes(&input), &c("c"), &c("d")]).unwrap();
    assert_eq!(fs::read(dir.path().join("d")).unwrap(), b"a");
}

#[test]
fn directories_are_made_and_removed() {
    let (dir, guest, share) = setup();
    let sub = guest.mkdir(share, "sub", 0o755).unwrap().nodeid;
    guest.create(sub, "file", 0o644).unwrap();
    assert_eq!(guest.mkdir(share, "sub", 0o755).unwrap_err(), Errno::EEXIST);
    assert_eq!(guest.rmdir(share, "sub").unwrap_err(), Errno(39), "not empty");
    assert_eq!(guest.unlink(share, "sub").unwrap_err(), Errno::EISDIR);
    assert_eq!(guest.rmdir(sub, "file").unwrap_err(), Errno::ENOTDIR);
    guest.unlink(sub, "file").unwrap();
    guest.rmdir(share, "sub").unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(guest.lookup(sub, "file").unwrap_err(), Errno::ESTALE, "resolve it anew");
}

#[test]
fn fifos_and_sockets_are_made_and_devices_are_not() {
    let (_dir, guest, share) = setup();
    for (name, kind) in [("fifo", mode::FIFO), ("socket", mode::SOCKET)] {
        let made = guest.mknod(share, name, kind | 0o622).unwrap();
        assert_eq!(made.attr.mode, kind | 0o622);
        assert_eq!(guest.open(made.nodeid, open::RDWR).unwrap_err(), Errno::EACCES);
    }
    for kind in [mode::CHARACTER, mode::BLOCK] {
        assert_eq!(guest.mknod(share, "device", kind | 0o666).unwrap_err(), Errno::EPERM);
    }
}

#[test]
fn a_directory_is_listed_whole_in_pieces_and_from_anywhere() {
    let (dir, guest, share) = setup();
    let names: Vec<String> =
        (0..2000).map(|index| format!("file-{index:0>width$}", width = 1 + index % 100)).collect();
    for name in &names {
        fs::write(dir.path().join(name), "").unwrap();
    }
    let mut expected: Vec<&str> = names.iter().map(String::as_str).chain([".", ".."]).collect();
    expected.sort_unstable();
    let fh = guest.opendir(share).unwrap();
    for (size, plus) in [(4096, false), (4096, true), (65_536, false), (65_536, true)] {
        let (mut offset, mut found, mut middle) = (0, Vec::new(), None);
        loop {
            let listed = if plus {
                guest.readdirplus(share, fh, offset, size).unwrap()
            } else {
                guest.readdir(share, fh, offset, size).unwrap()
            };
            let Some(last) = listed.last() else { break };
            offset = last.dirent.off;
            found.extend(listed.into_iter().map(|listed| {
                let dots = listed.name.starts_with('.');
                assert_eq!(listed.entry.nodeid == 0, dots || !plus, "{}", listed.name);
                if listed.entry.nodeid != 0 {
                    assert_eq!(listed.entry.attr.ino, listed.dirent.ino);
                    assert_eq!(listed.entry.attr.mode >> 12, listed.dirent.kind);
                    guest.forget(listed.entry.nodeid, 1);
                }
                listed.name
            }));
            middle = middle.or(Some((offset, found.len())));
        }
        let (offset, seen) = middle.unwrap();
        let again = guest.readdir(share, fh, offset, 4096).unwrap();
        assert_eq!(again[0].name, found[seen]);
        found.sort_unstable();
        assert_eq!(found, expected);
    }
    let parent = guest.readdir(share, fh, 0, 65_536).unwrap();
    let parent = parent.iter().find(|listed| listed.name == "..");
    if let Some(parent) = parent {
        assert_eq!(parent.dirent.ino, 1, "the host's parent is none of the guest's business");
    }
    assert_eq!(guest.server.usage().nodes, 1, "all were forgotten but the share");
    assert_eq!(guest.readdir(share, fh, 0, 8).unwrap_err(), Errno::EINVAL);
    guest.release(share, fh).unwrap();
}

#[test]
fn the_root_lists_the_shares_and_cannot_be_changed() {
    let (dir, guest, share) = setup();
    guest.attach("other", dir.path(), true);
    let root = guest.getattr(1).unwrap();
    assert_eq!((root.ino, root.mode, root.uid), (1, mode::DIRECTORY | 0o555, 0));
    let fh = guest.opendir(1).unwrap();
    let names = |listed: Vec<client::Listed>| -> Vec<String> {
        listed.into_iter().map(|listed| listed.name).collect()
    };
    let listed = guest.readdirplus(1, fh, 0, 4096).unwrap();
    assert_eq!(listed[2].entry.nodeid, share);
    assert_eq!(names(guest.readdir(1, fh, 0, 4096).unwrap()), [".", "..", "s", "other"]);
    assert_eq!(names(guest.readdir(1, fh, 1, 4096).unwrap()), ["..", "s", "other"]);
    assert_eq!(names(guest.readdir(1, fh, 3, 4096).unwrap()), ["other"]);
    assert!(guest.readdir(1, fh, u64::MAX, 4096).unwrap().is_empty());
    assert_eq!(guest.create(1, "file", 0o644).unwrap_err(), Errno::EROFS);
    assert_eq!(guest.mkdir(1, "dir", 0o755).unwrap_err(), Errno::EROFS);
    assert_eq!(guest.rmdir(1, "s").unwrap_err(), Errno::EROFS);
    assert_eq!(guest.rename((1, "s"), (1, "t"), 0).unwrap_err(), Errno::EROFS);
    assert_eq!(guest.rename((share, "s"), (1, "t"), 0).unwrap_err(), Errno::EROFS);
    let input = wire::SetattrIn { valid: fattr::MODE, mode: 0o777, ..<_>::default() };
    assert_eq!(guest.setattr(1, input).unwrap_err(), Errno::EROFS);
    guest.ask(opcode::STATFS, 1, &[]).unwrap();
    let body = guest.ask(opcode::STATFS, share, &[]).unwrap();
    assert!(take::<wire::StatfsOut>(&body).0.blocks > 0);
}

/// Files of sysfs say that they are a page long, as files in a cloud do whose provider fails.
#[test]
fn what_the_host_does_not_have_is_an_error_and_no_zeroes() {
    let folder = std::path::Path::new("/sys/kernel");
    let (name, short) = ("uevent_seqnum", fs::read(folder.join("uevent_seqnum")).unwrap());
    let len = fs::metadata(folder.join(name)).unwrap().len();
    assert!((short.len() as u64) < len, "{short:?}");
    let (guest, share) = Guest::with_share(folder);
    let node = guest.lookup(share, name).unwrap().nodeid;
    let (fh, _) = guest.open(node, open::RDONLY).unwrap();
    assert_eq!(guest.read(node, fh, 0, short.len() as u32).unwrap(), short);
    assert_eq!(guest.read(node, fh, 0, len as u32).unwrap_err(), Errno::EIO);
}

#[test]
fn a_read_only_share_is_read_only_in_every_way() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "content").unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    let (guest, writable) = Guest::with_share(dir.path());
    guest.attach("ro", dir.path(), true);
    let share = guest.lookup(1, "ro").unwrap().nodeid;
    let node = guest.lookup(share, "file").unwrap().nodeid;
    let twin = guest.lookup(writable, "file").unwrap().nodeid;
    assert_ne!(node, twin, "rights belong to the share, not to the inode");
    let before = look(&dir.path().join("file"));
    let mut errors = vec![
        guest.create(share, "new", 0o644).map(drop),
        guest.create_with(share, "file", 0o644, open::RDONLY).map(drop),
        guest.mkdir(share, "new", 0o755).map(drop),
        guest.mknod(share, "new", mode::REGULAR).map(drop),
        guest.mknod(share, "new", mode::FIFO).map(drop),
        guest.symlink(share, "new", "x").map(drop),
        guest.link(node, share, "new").map(drop),
        guest.link(node, writable, "new").map(drop),
        guest.link(twin, share, "new").map(drop),
        guest.unlink(share, "file"),
        guest.rmdir(share, "sub"),
        guest.rename((share, "file"), (share, "new"), 0),
        guest.rename((share, "file"), (writable, "new"), 0),
        guest.rename((writable, "file"), (share, "new"), 0),
        guest.open(node, open::WRONLY).map(drop),
        guest.open(node, open::RDWR).map(drop),
    ];
    for valid in [fattr::MODE, fattr::UID, fattr::SIZE, fattr::MTIME_NOW, 0] {
        errors.push(guest.setattr(node, wire::SetattrIn { valid, ..<_>::default() }).map(drop));
    }
    let input = wire::SetxattrIn { size: 1, flags: 0 };
    let parts: &[&[u8]] = &[bytes(&input), &[0; 8], &c("user.x"), b"v"];
    errors.push(guest.ask(opcode::SETXATTR, node, parts).map(drop));
    errors.push(guest.ask(opcode::REMOVEXATTR, node, &[&c("user.x")]).map(drop));
    let input = wire::CreateIn { flags: open::RDWR, mode: 0o100_600, ..<_>::default() };
    errors.push(guest.ask(opcode::TMPFILE, share, &[bytes(&input), &c("x")]).map(drop));
    for (index, result) in errors.into_iter().enumerate() {
        assert_eq!(result.unwrap_err(), Errno::EROFS, "attempt {index}");
    }
    // A handle for reading does not write, whatever is asked of it; nor does one of a twin that is
    // writable (EBADF).
    for (node, error) in [(node, Errno::EROFS), (twin, Errno(9))] {
        let (fh, _) = guest.open(node, open::RDONLY).unwrap();
        // Windows has another word for it.
        let told = guest.write(node, fh, 0, b"x").unwrap_err();
        assert!(told == error || told == Errno::EACCES);
        let input = wire::FallocateIn { fh, length: 100, ..<_>::default() };
        let told = guest.ask(opcode::FALLOCATE, node, &[bytes(&input)]).unwrap_err();
        assert!([error, Errno::EACCES, Errno::EOPNOTSUPP].contains(&told), "{told:?}");
    }
    let (fh, _) = guest.open(node, open::RDONLY).unwrap();
    assert_eq!(guest.read(node, fh, 0, 100).unwrap(), b"content");
    let after = look(&dir.path().join("file"));
    assert_eq!((before.mode, before.changed), (after.mode, after.changed));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn user_attributes_pass_and_no_others() {
    let (_dir, guest, share) = setup();
    let (node, _) = guest.create(share, "file", 0o644).unwrap();
    let set = |name: &str, value: &[u8], flags| {
        let input = wire::SetxattrIn { size: value.len() as u32, flags };
        guest.ask(opcode::SETXATTR, node, &[bytes(&input), &[0; 8], &c(name), value]).map(drop)
    };
    let get = |opcode, name: &[u8], size| {
        guest.ask(opcode, node, &[bytes(&wire::GetxattrIn { size, padding: 0 }), name])
    };
    set("user.one", b"first", 0).unwrap();
    set("user.two", b"", wire::XATTR_CREATE).unwrap();
    assert_eq!(set("user.one", b"x", wire::XATTR_CREATE).unwrap_err(), Errno::EEXIST);
    assert_eq!(set("user.no", b"x", wire::XATTR_REPLACE).unwrap_err(), Errno::ENODATA);
    let size = get(opcode::GETXATTR, &c("user.one"), 0).unwrap();
    assert_eq!(take::<wire::GetxattrOut>(&size).0.size, 5);
    assert_eq!(get(opcode::GETXATTR, &c("user.one"), 100).unwrap(), b"first");
    assert_eq!(get(opcode::GETXATTR, &c("user.one"), 4).unwrap_err(), Errno::ERANGE);
    assert_eq!(get(opcode::GETXATTR, &c("user.none"), 4).unwrap_err(), Errno::ENODATA);
    let list = get(opcode::LISTXATTR, &[], 100).unwrap();
    assert_eq!(list.len(), 18);
    assert_eq!(get(opcode::LISTXATTR, &[], 17).unwrap_err(), Errno::ERANGE);
    let size = get(opcode::LISTXATTR, &[], 0).unwrap();
    assert_eq!(take::<wire::GetxattrOut>(&size).0.size, 18);
    guest.ask(opcode::REMOVEXATTR, node, &[&c("user.one")]).unwrap();
    assert_eq!(get(opcode::LISTXATTR, &[], 100).unwrap(), b"user.two\0");
    for name in ["security.capability", "trusted.x", "system.posix_acl_access", "user", ""] {
        assert_eq!(set(name, b"x", 0).unwrap_err(), Errno::EOPNOTSUPP, "{name}");
        assert_eq!(get(opcode::GETXATTR, &c(name), 9).unwrap_err(), Errno::EOPNOTSUPP, "{name}");
    }
    // A link has none, which is an answer too: tar and cp ask.
    let link = guest.symlink(share, "link", "file").unwrap().nodeid;
    let input = wire::GetxattrIn { size: 100, padding: 0 };
    assert_eq!(guest.ask(opcode::LISTXATTR, link, &[bytes(&input)]).unwrap(), b"");
}

#[test]
fn holes_are_punched_found_and_copied() {
    let (dir, guest, share) = setup();
    let (node, fh) = guest.create(share, "file", 0o644).unwrap();
    let allocate = |mode, offset, length| {
        let input = wire::FallocateIn { fh, offset, length, mode, padding: 0 };
        guest.ask(opcode::FALLOCATE, node, &[bytes(&input)]).map(drop)
    };
    allocate(0, 0, 1 << 20).unwrap();
    assert_eq!(guest.getattr(node).unwrap().size, 1 << 20);
    guest.write(node, fh, 0, &vec![1; 131_072]).unwrap();
    allocate(wire::FALLOC_PUNCH_HOLE | wire::FALLOC_KEEP_SIZE, 0, 65_536).unwrap();
    assert_eq!(guest.read(node, fh, 65_535, 2).unwrap(), [0, 1]);
    assert_eq!(allocate(8, 0, 4096).unwrap_err(), Errno::EOPNOTSUPP, "collapse");
    let seek = |offset, whence| {
        let input = wire::LseekIn { fh, offset, whence, padding: 0 };
        let body = guest.ask(opcode::LSEEK, node, &[bytes(&input)])?;
        Ok(take::<wire::LseekOut>(&body).0.offset)
    };
    assert_eq!(seek(0, wire::SEEK_DATA), Ok(65_536));
    assert_eq!(seek(0, wire::SEEK_HOLE), Ok(0));
    assert_eq!(seek(1 << 20, wire::SEEK_DATA), Err(Errno(6)));
    assert_eq!(seek(0, 0), Err(Errno::EINVAL));

    let (to, to_fh) = guest.create(share, "copy", 0o644).unwrap();
    let input = wire::CopyFileRangeIn {
        fh_in: fh,
        off_in: 65_536,
        nodeid_out: to,
        fh_out: to_fh,
        off_out: 10,
        len: u64::MAX,
        flags: 0,
    };
    let body = guest.ask(opcode::COPY_FILE_RANGE, node, &[bytes(&input)]).unwrap();
    assert_eq!(take::<wire::WriteOut>(&body).0.size, (1 << 20) - 65_536);
    let copy = fs::read(dir.path().join("copy")).unwrap();
    assert_eq!((&copy[..11], copy.len()), (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..], 983_050));
}

#[test]
fn a_file_without_a_name_can_get_one() {
    let (dir, guest, share) = setup();
    let input = wire::CreateIn { flags: open::RDWR, mode: 0o100_666, ..<_>::default() };
    let body = guest.ask(opcode::TMPFILE, share, &[bytes(&input), &c("#1")]).unwrap();
    let (entry, rest): (wire::EntryOut, _) = take(&body);
    let fh = take::<wire::OpenOut>(rest).0.fh;
    assert_eq!((entry.attr.nlink, entry.attr.mode), (0, 0o100_666));
    guest.write(entry.nodeid, fh, 0, b"x").unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let linked = guest.link(entry.nodeid, share, "named").unwrap();
    assert_eq!((linked.nodeid, linked.attr.nlink), (entry.nodeid, 1));
    assert_eq!(fs::read(dir.path().join("named")).unwrap(), b"x");
}

#[test]
fn names_are_bytes() {
    let (dir, guest, share) = setup();
    for name in ["x".repeat(255), "ü".into(), "u\u{308}".into(), " \n\t\\".into(), "...".into()] {
        let (node, _) = guest.create(share, &name, 0o644).unwrap();
        assert!(dir.path().join(&name).exists(), "{name:?}");
        assert_eq!(guest.lookup(share, &name).unwrap().nodeid, node);
    }
    assert_eq!(guest.create(share, &"x".repeat(256), 0o644).unwrap_err(), Errno::ENAMETOOLONG);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
}

#[test]
fn the_host_is_seen_at_every_open() {
    let (dir, guest, share) = setup();
    let path = dir.path().join("file");
    fs::write(&path, "first").unwrap();
    settle();
    let entry = guest.lookup(share, "file").unwrap();
    assert_eq!(entry.entry_valid, 1, "a file at rest may be cached");
    assert_eq!(guest.open(entry.nodeid, open::RDONLY).unwrap().1, 0);
    assert_eq!(guest.open(entry.nodeid, open::RDONLY).unwrap().1, open::KEEP_CACHE);

    // Grown: the cached length would cut the read.
    fs::write(&path, "second, longer").unwrap();
    assert_eq!(guest.open(entry.nodeid, open::RDONLY).unwrap_err(), Errno::ESTALE);
    let again = guest.lookup(share, "file").unwrap();
    assert_eq!((again.nodeid, again.attr.size), (entry.nodeid, 14));
    assert_eq!(again.entry_valid, 0, "a file that has just changed may not be cached");
    assert_eq!(guest.open(entry.nodeid, open::RDONLY).unwrap().1, 0);

    // Replaced: the cached node would be the old file.
    settle();
    guest.lookup(share, "file").unwrap();
    fs::write(dir.path().join("new"), "third").unwrap();
    fs::rename(dir.path().join("new"), &path).unwrap();
    assert_eq!(guest.open(entry.nodeid, open::RDONLY).unwrap_err(), Errno::ESTALE);
    let replaced = guest.lookup(share, "file").unwrap();
    assert_ne!(replaced.nodeid, entry.nodeid);
    assert_eq!(guest.content(replaced.nodeid).unwrap(), b"third");

    // The old one can still be opened by who insists, as through /proc.
    assert_eq!(guest.open(entry.nodeid, open::RDONLY).unwrap_err(), Errno::ESTALE);
    assert_eq!(guest.content(entry.nodeid).unwrap(), b"second, longer");
}

#[test]
fn a_name_that_the_host_gave_away_does_not_open_the_file_by_its_other_name() {
    let (dir, guest, share) = setup();
    let (x, y) = (dir.path().join("x"), dir.path().join("y"));
    fs::write(&x, "old").unwrap();
    settle();
    let old = guest.lookup(share, "x").unwrap().nodeid;
    fs::rename(&x, &y).unwrap();
    fs::write(&x, "new").unwrap();
    settle();
    // The guest has just looked at the file, but by its new name, and may still use the one of before.
    assert_eq!(guest.lookup(share, "y").unwrap().nodeid, old);
    assert_eq!(guest.open(old, open::RDONLY).unwrap_err(), Errno::ESTALE);
    let new = guest.lookup(share, "x").unwrap().nodeid;
    assert_ne!(new, old);
    assert_eq!(guest.content(new).unwrap(), b"new");
    // By its own name it opens, once more resolved.
    assert_eq!(guest.open(old, open::RDONLY).unwrap_err(), Errno::ESTALE);
    assert_eq!(guest.lookup(share, "y").unwrap().nodeid, old);
    assert_eq!(guest.content(old).unwrap(), b"old");
}

#[test]
fn who_is_sent_back_opens_whatever_comes_in_between() {
    let (dir, guest, share) = setup();
    let path = dir.path().join("file");
    let replace = |content: &str| {
        fs::write(dir.path().join("new"), content).unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
    };
    replace("first");
    settle();
    let first = guest.lookup(share, "file").unwrap().nodeid;
    replace("second");
    assert_eq!(guest.open(first, open::RDONLY).unwrap_err(), Errno::ESTALE);
    let second = guest.lookup(share, "file").unwrap().nodeid;
    // Linux tries only once more: another error would be the program's.
    replace("third");
    assert_eq!(guest.content(second).unwrap(), b"second");
    // Sent back and finding nothing, a thread has no such right any more.
    let third = guest.lookup(share, "file").unwrap().nodeid;
    fs::remove_file(&path).unwrap();
    assert_eq!(guest.open(third, open::RDONLY).unwrap_err(), Errno::ESTALE);
    assert_eq!(guest.lookup(share, "file").unwrap_err(), Errno::ENOENT);
    assert_eq!(guest.open(third, open::RDONLY).unwrap_err(), Errno::ESTALE);
}

#[test]
fn a_detached_share_is_gone_and_holds_nothing() {
    let (dir, guest, share) = setup();
    let (node, fh) = guest.create(share, "file", 0o644).unwrap();
    guest.opendir(share).unwrap();
    // Not every host says what a process has open.
    let held = || {
        let fds = cfg!(target_os = "linux").then(|| fs::read_dir("/proc/self/fd").unwrap())?;
        let target = |fd: fs::DirEntry| fs::read_link(fd.path()).ok();
        let held = fds.filter_map(|fd| target(fd.unwrap())).filter(|to| to.starts_with(dir.path()));
        Some(held.count())
    };
    assert!(held().is_none_or(|held| held > 3));
    guest.server.detach("s").unwrap();
    assert_eq!((guest.server.usage(), held().unwrap_or(0)), (Limits { nodes: 0, open: 0 }, 0));
    assert_eq!(guest.read(node, fh, 0, 1).unwrap_err(), Errno::ESTALE);
    assert_eq!(guest.write(node, fh, 0, b"x").unwrap_err(), Errno::ESTALE);
    assert_eq!(guest.getattr(node).unwrap_err(), Errno::ESTALE);
    assert_eq!(guest.lookup(share, "file").unwrap_err(), Errno::ESTALE);
    assert_eq!(guest.lookup(1, "s").unwrap_err(), Errno::ENOENT);
    guest.release(node, fh).unwrap_err();
    guest.forget(node, 1);
    assert!(matches!(guest.server.detach("s"), Err(ShareError::NotShared(_))));
    guest.attach("s", dir.path(), false);
    let again = guest.lookup(1, "s").unwrap().nodeid;
    assert_eq!(guest.lookup(again, "file").unwrap().attr.size, 0);
}

#[test]
fn shares_are_file_systems_of_their_own() {
    let (_dir, guest, share) = setup();
    let other_dir = tempfile::tempdir().unwrap();
    guest.attach("other", other_dir.path(), false);
    let other = guest.lookup(1, "other").unwrap().nodeid;
    let (node, _) = guest.create(share, "file", 0o644).unwrap();
    assert_eq!(guest.rename((share, "file"), (other, "file"), 0).unwrap_err(), Errno::EXDEV);
    assert_eq!(guest.link(node, other, "file").unwrap_err(), Errno::EXDEV);
}

#[test]
fn an_unmount_lets_go_of_everything() {
    let (_dir, guest, share) = setup();
    guest.create(share, "file", 0o644).unwrap();
    guest.ask(opcode::DESTROY, 0, &[]).unwrap();
    assert_eq!(guest.server.usage(), Limits { nodes: 0, open: 0 });
    assert_eq!(guest.getattr(1).unwrap_err(), Errno::EIO, "until the next mount");
    guest.init().unwrap();
    assert_eq!(guest.getattr(share).unwrap_err(), Errno::ESTALE);
    guest.lookup(1, "s").unwrap();
}

#[test]
fn all_file_systems_are_synced_at_once() {
    let (_dir, guest, share) = setup();
    guest.create(share, "file", 0o644).unwrap();
    guest.ask(opcode::SYNCFS, 1, &[&[0; 8]]).unwrap();
}

/// Does something in another process, and waits for what the guest is to repeat of it.
fn replays(guest: &Guest, dir: &Path, script: &str) -> Vec<(Vec<u8>, Step)> {
    let status = std::process::Command::new("sh").args(["-ec", script]).current_dir(dir).status();
    assert!(status.unwrap().success());
    let wake = cabana_os::Event::new().unwrap();
    guest.server.await_changes(&wake).unwrap();
    let changes = guest.server.changes().unwrap();
    changes.into_iter().map(|replay| (replay.name, replay.step)).collect()
}

#[test]
fn what_others_do_on_the_host_is_repeated_without_being_done() {
    let (dir, mut guest, share) = setup();
    if let Err(error) = guest.server.watch() {
        return eprintln!("skipped: the host cannot watch folders: {error}");
    }
    for name in ["kept", "saved", "gone"] {
        fs::write(dir.path().join(name), "before").unwrap();
        guest.lookup(share, name).unwrap();
    }
    let node = |name| guest.lookup(share, name).unwrap().nodeid;
    let (kept, saved, gone) = (node("kept"), node("saved"), node("gone"));
    // The guest's own doing is no news.
    guest.create(share, "own", 0o644).unwrap();
    guest.unlink(share, "own").unwrap();

    let heard = replays(&guest, dir.path(), "echo x >> kept");
    assert_eq!(heard, [(b"kept".into(), Step::Modify), (b"kept".into(), Step::Close)]);
    let heard = replays(&guest, dir.path(), "mkdir d; mkfifo f; rm gone; chmod 700 kept");
    let expected = [
        (b"d".to_vec(), Step::Make(mode::DIRECTORY)),
        (b"d".into(), Step::Modify),
        (b"f".into(), Step::Make(mode::FIFO)),
        (b"f".into(), Step::Modify),
        (b"gone".into(), Step::Remove { folder: false, node: gone }),
        (b"kept".into(), Step::Touch),
    ];
    assert_eq!(heard, expected);
    let heard = replays(&guest, dir.path(), "echo y > new; mv new saved");
    let remove = (b"saved".to_vec(), Step::Remove { folder: false, node: saved });
    assert!(
        heard.contains(&remove) && heard.contains(&(b"saved".into(), Step::Make(mode::REGULAR)))
    );

    // The thread that repeats: everything is granted, nothing done.
    let directory = share;
    guest.server.set_replayer(9);
    guest.thread = 9;
    let step = Step::Make(mode::DIRECTORY);
    guest.server.set_replay(Some(Replay { directory, name: b"d".into(), step }));
    assert_eq!(guest.lookup(share, "d").unwrap_err(), Errno::ENOENT, "it is yet to be made");
    assert!(guest.lookup(share, "kept").is_ok());
    assert_eq!(guest.mkdir(share, "d", 0o755).unwrap().attr.mode & mode::TYPE, mode::DIRECTORY);
    let step = Step::Remove { folder: false, node: gone };
    guest.server.set_replay(Some(Replay { directory, name: b"gone".into(), step }));
    assert_eq!(guest.lookup(share, "gone").unwrap().nodeid, gone);
    guest.unlink(share, "gone").unwrap();
    guest.unlink(share, "kept").unwrap();
    guest.rmdir(share, "d").unwrap();
    let input = wire::SetattrIn { valid: fattr::SIZE | fattr::MODE, ..<_>::default() };
    assert_eq!(guest.setattr(kept, input).unwrap().size, 8);
    guest.server.set_replay(None);
    assert_eq!(fs::read(dir.path().join("kept")).unwrap(), b"beforex\n");
    assert!(dir.path().join("d").is_dir());
    // Anybody else is taken at their word.
    guest.thread = 1;
    guest.unlink(share, "kept").unwrap();
    assert!(!dir.path().join("kept").exists());
}

//! A hostile guest: whatever it sends, it reaches nothing outside its shares, and costs no more
//! than the limits say.

mod client;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cabana_fs::Limits;
use cabana_fs::wire::{self, Errno, OutHeader, mode, opcode, open};
use cabana_os::tree::{Handle, flags};
use client::yard::{Yard, symlink};
use client::{Guest, ROOM, bytes, c, settle, take};

#[test]
fn names_that_are_paths_are_refused_in_every_operation() {
    let yard = Yard::new();
    let (guest, share) = Guest::with_share(&yard.path("inside"));
    let sub = guest.mkdir(share, "sub", 0o755).unwrap().nodeid;
    let (file, _) = guest.create(share, "file", 0o644).unwrap();
    let outside = yard.path("outside").to_str().unwrap().to_owned();
    let below = format!("{outside}/secret");
    let names = [
        "..",
        ".",
        "",
        "/",
        "../beside",
        "../outside/secret",
        "sub/..",
        "./file",
        "sub/../../beside",
        &outside,
        &below,
        "file/",
    ];
    for name in names {
        for parent in [1, share, sub, file] {
            let mut results = vec![
                guest.lookup(parent, name).map(drop),
                guest.create(parent, name, 0o644).map(drop),
                guest.create_with(parent, name, 0o644, open::RDWR).map(drop),
                guest.mkdir(parent, name, 0o755).map(drop),
                guest.mknod(parent, name, mode::REGULAR | 0o644).map(drop),
                guest.mknod(parent, name, mode::FIFO | 0o644).map(drop),
                guest.symlink(parent, name, "target").map(drop),
                guest.link(file, parent, name).map(drop),
                guest.unlink(parent, name),
                guest.rmdir(parent, name),
                guest.rename((parent, name), (share, "new"), 0),
                guest.rename((share, "file"), (parent, name), 0),
                guest.rename((share, "file"), (parent, name), wire::RENAME_EXCHANGE),
            ];
            for (index, result) in results.drain(..).enumerate() {
                let error = result.expect_err(&format!("{name:?} in attempt {index}"));
                assert!([Errno::EINVAL, Errno::EROFS].contains(&error), "{name:?}: {error:?}");
            }
        }
    }
    // A name ends at its NUL, whatever follows.
    assert_eq!(guest.lookup(share, "file\0/../../beside").unwrap().nodeid, file);
    yard.check();
    assert_eq!(fs::read_dir(yard.path("inside")).unwrap().count(), 2);
}

#[test]
fn links_lead_nowhere() {
    let yard = Yard::new();
    let (guest, share) = Guest::with_share(&yard.path("inside"));
    symlink(yard.path("outside"), yard.path("inside/absolute")).unwrap();
    symlink("../outside/secret", yard.path("inside/relative")).unwrap();
    symlink("/proc/self/root", yard.path("inside/magic")).unwrap();
    guest.symlink(share, "own", "../beside").unwrap();
    for name in ["absolute", "relative", "magic", "own"] {
        let entry = guest.lookup(share, name).unwrap();
        assert_eq!(entry.attr.mode & mode::TYPE, mode::SYMLINK);
        let link = entry.nodeid;
        assert_eq!(guest.open(link, open::RDONLY).unwrap_err(), Errno::ELOOP);
        assert_eq!(guest.open(link, open::RDWR | open::TRUNC).unwrap_err(), Errno::ELOOP);
        assert_eq!(guest.opendir(link).unwrap_err(), Errno::ENOTDIR);
        assert_eq!(guest.lookup(link, "secret").unwrap_err(), Errno::ENOTDIR);
        assert_eq!(guest.create(link, "new", 0o644).unwrap_err(), Errno::ENOTDIR);
        assert_eq!(guest.unlink(link, "secret").unwrap_err(), Errno::ENOTDIR);
        let input = wire::CreateIn { flags: open::RDWR, mode: 0o100_600, ..<_>::default() };
        let made = guest.ask(opcode::TMPFILE, link, &[bytes(&input), &c("x")]);
        assert!(made.is_err(), "a file behind a link");
        let size = wire::SetattrIn { valid: wire::fattr::SIZE, ..<_>::default() };
        assert_eq!(guest.setattr(link, size).unwrap_err(), Errno::ELOOP);
        let chmod = wire::SetattrIn { valid: wire::fattr::MODE, mode: 0o777, ..<_>::default() };
        assert_eq!(guest.setattr(link, chmod).unwrap_err(), Errno::EOPNOTSUPP);
        let input = wire::SetxattrIn { size: 1, flags: 0 };
        let parts: &[&[u8]] = &[bytes(&input), &[0; 8], &c("user.x"), b"v"];
        assert_eq!(guest.ask(opcode::SETXATTR, link, parts).unwrap_err(), Errno::EOPNOTSUPP);
        // Opening by name what must not exist, or may: not through the link.
        assert_eq!(guest.create(share, name, 0o644).unwrap_err(), Errno::EEXIST);
        let error = guest.create_with(share, name, 0o644, open::RDWR | open::TRUNC).unwrap_err();
        assert_eq!(error, Errno::ELOOP);
        // The times are the link's own.
        let now = wire::SetattrIn { valid: wire::fattr::MTIME, mtime: 7, ..<_>::default() };
        assert_eq!(guest.setattr(link, now).unwrap().mtime, 7);
    }
    let times = fs::metadata(yard.path("beside")).unwrap().modified().unwrap();
    assert!(times.elapsed().unwrap() < Duration::from_secs(3600));
    yard.check();
}

/// On the host a directory is swapped for a link to one outside, back and forth, while the guest
/// looks up, opens, makes and removes beneath it.
#[test]
fn a_race_of_renames_leads_nowhere() {
    let yard = Yard::new();
    let (guest, share) = Guest::with_share(&yard.path("inside"));
    fs::create_dir(yard.path("inside/swapped")).unwrap();
    fs::write(yard.path("inside/swapped/secret"), "ours").unwrap();
    symlink(yard.path("outside"), yard.path("inside/link")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let swaps = Arc::new(AtomicU64::new(0));
    let swapped = Arc::clone(&swaps);
    let inside = yard.path("inside");
    let swapper = std::thread::spawn(move || {
        let dir = Handle::of_directory(&inside).unwrap();
        while !stopped.load(Ordering::Relaxed) {
            dir.rename(c"swapped", &dir, c"link", flags::RENAME_EXCHANGE).unwrap();
            swapped.fetch_add(1, Ordering::Relaxed);
        }
    });
    let began = Instant::now();
    let (mut directories, mut links, mut made) = (0u64, 0u64, 0u64);
    // On a busy machine the two take long turns.
    while began.elapsed() < Duration::from_secs(2)
        || directories.min(links).min(made) <= 100
        || swaps.load(Ordering::Relaxed) <= 1000
    {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{directories} {links} {made} {swaps:?}"
        );
        let entry = guest.lookup(share, "swapped").unwrap();
        match entry.attr.mode & mode::TYPE {
            mode::DIRECTORY => directories += 1,
            mode::SYMLINK => links += 1,
            other => panic!("a mode of {other:o}"),
        }
        if let Ok(secret) = guest.lookup(entry.nodeid, "secret") {
            assert_eq!(secret.attr.size, 4, "a file of the share");
            assert_eq!(guest.content(secret.nodeid).unwrap(), b"ours");
            guest.forget(secret.nodeid, 1);
        }
        if let Ok((node, fh)) = guest.create(entry.nodeid, "new", 0o644) {
            made += 1;
            guest.release(node, fh).unwrap();
            guest.forget(node, 1);
            guest.unlink(entry.nodeid, "new").unwrap();
        }
        let _ = guest.mkdir(entry.nodeid, "sub", 0o755);
        let _ = guest.rename((entry.nodeid, "sub"), (entry.nodeid, "sub2"), 0);
        let _ = guest.rmdir(entry.nodeid, "sub2");
        let _ = guest.unlink(entry.nodeid, "sub");
        guest.forget(entry.nodeid, 1);
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    yard.check();
}

/// A directory that the guest knows is moved out of the share: what the guest had is not taken
/// away, as for a process on the host, but nothing above or beside it is reached.
#[test]
fn a_directory_that_the_host_moves_out_leads_no_further() {
    let yard = Yard::new();
    let (guest, share) = Guest::with_share(&yard.path("inside"));
    let sub = guest.mkdir(share, "sub", 0o755).unwrap().nodeid;
    fs::rename(yard.path("inside/sub"), yard.path("outside/moved")).unwrap();
    for name in ["..", "../secret", "secret"] {
        assert!(guest.lookup(sub, name).is_err());
    }
    let fh = guest.opendir(sub).unwrap();
    for listed in guest.readdirplus(sub, fh, 0, 4096).unwrap() {
        assert_eq!(listed.entry.nodeid, 0, "{}", listed.name);
    }
    fs::remove_dir(yard.path("outside/moved")).unwrap();
    yard.check();
}

#[cfg(unix)]
#[test]
fn devices_fifos_and_sockets_are_never_opened() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::process::Command;
    let yard = Yard::new();
    let inside = yard.path("inside");
    let (guest, share) = Guest::with_share(&inside);
    guest.mknod(share, "fifo", mode::FIFO | 0o666).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(inside.join("socket")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut names = vec!["fifo", "socket"];
    let device = Command::new("mknod").arg(inside.join("null")).args(["c", "1", "3"]).output();
    if device.is_ok_and(|made| made.status.success()) {
        fs::set_permissions(inside.join("null"), fs::Permissions::from_mode(0o666)).unwrap();
        names.push("null");
    } else {
        eprintln!("not checked: a device, which this user cannot make");
    }
    for name in names {
        let entry = guest.lookup(share, name).unwrap();
        assert_eq!(entry.attr.rdev, 0);
        let started = Instant::now();
        for flags in [open::RDONLY, open::WRONLY, open::RDWR, open::RDONLY | open::TRUNC] {
            assert_eq!(guest.open(entry.nodeid, flags).unwrap_err(), Errno::EACCES, "{name}");
            let error = guest.create_with(share, name, 0o644, flags).unwrap_err();
            assert_eq!(error, Errno::EACCES, "{name}");
        }
        let size = wire::SetattrIn { valid: wire::fattr::SIZE, ..<_>::default() };
        assert_eq!(guest.setattr(entry.nodeid, size).unwrap_err(), Errno::EACCES);
        assert_eq!(guest.opendir(entry.nodeid).unwrap_err(), Errno::ENOTDIR);
        assert!(started.elapsed() < Duration::from_secs(1), "{name} does not block");
    }
    assert!(listener.accept().is_err());
    for (kind, made) in [(mode::CHARACTER, "c"), (mode::BLOCK, "b"), (mode::DIRECTORY, "d")] {
        assert_eq!(guest.mknod(share, made, kind | 0o666).unwrap_err(), Errno::EPERM);
        assert!(!inside.join(made).exists());
    }
    for entry in fs::read_dir(&inside).unwrap() {
        let kind = entry.unwrap().file_type().unwrap();
        assert!(kind.is_fifo() || kind.is_socket() || kind.is_char_device());
    }
}

#[test]
fn numbers_that_are_not_the_guests_find_nothing() {
    let yard = Yard::new();
    let (guest, share) = Guest::with_share(&yard.path("inside"));
    let (node, fh) = guest.create(share, "file", 0o644).unwrap();
    let (other, other_fh) = guest.create(share, "other", 0o644).unwrap();
    let dir_fh = guest.opendir(share).unwrap();
    for id in [0, 2_000, u64::MAX, node | 1 << 63, !node, fh << 32] {
        assert_eq!(guest.getattr(id).unwrap_err(), Errno::ESTALE);
        assert_eq!(guest.lookup(id, "x").unwrap_err(), Errno::ESTALE);
        assert_eq!(guest.open(id, open::RDONLY).unwrap_err(), Errno::ESTALE);
        assert_eq!(guest.link(id, share, "new").unwrap_err(), Errno::ESTALE);
        assert_eq!(guest.rename((share, "file"), (id, "x"), 0).unwrap_err(), Errno::ESTALE);
    }
    for fh in [0, other_fh, dir_fh, u64::MAX, 99] {
        assert_eq!(guest.read(node, fh, 0, 9).unwrap_err(), Errno::ESTALE);
        assert_eq!(guest.write(node, fh, 0, b"x").unwrap_err(), Errno::ESTALE);
        assert_eq!(guest.release(node, fh).unwrap_err(), Errno::ESTALE);
        assert_eq!(guest.readdir(node, fh, 0, 4096).unwrap_err(), Errno::ESTALE);
    }
    assert_eq!(guest.read(share, dir_fh, 0, 9).unwrap_err(), Errno::EISDIR);
    assert_eq!(guest.readdir(node, fh, 0, 4096).unwrap_err(), Errno::ENOTDIR);
    for offset in [1, 12_345, i64::MAX as u64, u64::MAX] {
        let _ = guest.readdir(share, dir_fh, offset, 4096);
        let _ = guest.readdirplus(share, dir_fh, offset, u32::MAX);
    }
    assert!(guest.readdir(share, dir_fh, 0, 4096).unwrap().len() == 4, "it still works");
    // More forgotten than ever known, twice, and by the batch.
    guest.forget(other, u64::MAX);
    guest.forget(other, u64::MAX);
    guest.forget(1, u64::MAX);
    guest.forget(u64::MAX, 1);
    assert_eq!(guest.getattr(other).unwrap_err(), Errno::ESTALE);
    assert_eq!(guest.write(other, other_fh, 0, b"x").unwrap(), 1, "open until it is released");
    let batch = wire::BatchForgetIn { count: u32::MAX, dummy: 0 };
    let one = wire::ForgetOne { nodeid: node, nlookup: u64::MAX };
    let request = guest.request(opcode::BATCH_FORGET, 0, &[bytes(&batch), bytes(&one), &[1; 8]]);
    assert!(guest.raw(&request, ROOM).is_empty());
    assert_eq!(guest.getattr(node).unwrap_err(), Errno::ESTALE);
    guest.getattr(1).unwrap();
    guest.getattr(share).unwrap();
}

#[test]
fn huge_sizes_and_offsets_are_errors_or_cut() {
    let yard = Yard::new();
    let (guest, share) = Guest::with_share(&yard.path("inside"));
    let (node, fh) = guest.create(share, "file", 0o644).unwrap();
    guest.write(node, fh, 0, &vec![7; 1 << 20]).unwrap();
    guest.write(node, fh, 1 << 20, &[8; 100]).unwrap();
    assert_eq!(guest.read(node, fh, 0, u32::MAX).unwrap().len(), 1 << 20);
    let read = wire::ReadIn { fh, size: u32::MAX, ..<_>::default() };
    let cut = guest.ask_with_room(opcode::READ, node, &[bytes(&read)], 16 + 10).unwrap();
    assert_eq!(cut, [7; 10]);
    for offset in [1 << 63, u64::MAX, u64::MAX - 1] {
        assert_eq!(guest.read(node, fh, offset, 10).unwrap_err(), Errno::EINVAL);
        assert_eq!(guest.write(node, fh, offset, b"x").unwrap_err(), Errno::EINVAL);
    }
    // A WRITE that promises more than it brings, or more than was agreed.
    for size in [2, (1 << 20) + 1, u32::MAX] {
        let input = wire::WriteIn { fh, size, ..<_>::default() };
        let result = guest.ask(opcode::WRITE, node, &[bytes(&input), b"x"]);
        assert_eq!(result.unwrap_err(), Errno::EINVAL);
    }
    let huge = vec![0; (1 << 20) + 1];
    assert_eq!(guest.write(node, fh, 0, &huge).unwrap_err(), Errno::EINVAL);
    let size = wire::SetattrIn { valid: wire::fattr::SIZE, size: u64::MAX, ..<_>::default() };
    assert_eq!(guest.setattr(node, size).unwrap_err(), Errno::EFBIG);
    for (offset, length) in [(u64::MAX, 1), (0, u64::MAX), (1 << 62, 1 << 62), (0, 0)] {
        let input = wire::FallocateIn { fh, offset, length, ..<_>::default() };
        assert!(guest.ask(opcode::FALLOCATE, node, &[bytes(&input)]).is_err());
    }
    let input = wire::SetxattrIn { size: u32::MAX, flags: 0 };
    let parts: &[&[u8]] = &[bytes(&input), &[0; 8], &c("user.x"), b"v"];
    assert_eq!(guest.ask(opcode::SETXATTR, node, parts).unwrap_err(), Errno::EINVAL);
    let parts: &[&[u8]] = &[bytes(&input), &[0; 8], &c("user.x"), &vec![1; 100_000]];
    assert_eq!(guest.ask(opcode::SETXATTR, node, parts).unwrap_err(), Errno::EINVAL);
    let input = wire::GetxattrIn { size: u32::MAX, padding: 0 };
    let result = guest.ask(opcode::GETXATTR, node, &[bytes(&input), &c("user.x")]);
    // Not every host has them.
    assert!([Errno::ENODATA, Errno::EOPNOTSUPP].contains(&result.unwrap_err()));
    assert_eq!(fs::metadata(yard.path("inside/file")).unwrap().len(), (1 << 20) + 100);
}

#[test]
fn what_is_not_a_whole_request_is_an_error() {
    let yard = Yard::new();
    let (guest, share) = Guest::with_share(&yard.path("inside"));
    let whole = guest.request(opcode::LOOKUP, share, &[&c("file")]);
    for len in 0..whole.len() {
        let reply = guest.raw(&whole[..len], ROOM);
        let (header, body): (OutHeader, _) = take(&reply);
        assert_eq!((header.error, body.len()), (-Errno::EINVAL.0, 0), "{len} bytes");
    }
    for len in [0, 1, 39, 40, whole.len() as u32 + 1, u32::MAX] {
        let mut request = whole.clone();
        request[..4].copy_from_slice(&len.to_le_bytes());
        let (header, _): (OutHeader, _) = take(&guest.raw(&request, ROOM));
        assert_eq!(header.error, -Errno::EINVAL.0, "a length of {len}");
    }
    // Every operation without its argument, and with all lengths of reply.
    let known = (0..64).filter(|op| ![opcode::DESTROY, opcode::INIT].contains(op));
    for opcode in known {
        for room in [0, 1, 15, 16, 17, 100, 143, 144, 159] {
            let reply = guest.raw(&guest.request(opcode, share, &[]), room);
            assert!(reply.is_empty() || reply.len() >= 16);
            let reply = guest.raw(&guest.request(opcode, share, &[&[0; 200]]), room);
            assert!(reply.is_empty() || reply.len() >= 16);
        }
    }
    for opcode in [0, 7, 19, 47_000, u32::MAX, 4096, 1_048_576, 436_207_616] {
        assert_eq!(guest.ask(opcode, share, &[&[0; 64]]).unwrap_err(), Errno::ENOSYS);
    }
    // A refused reply costs nothing.
    let before = guest.server.usage();
    let input = wire::CreateIn { flags: open::RDWR, mode: 0o100_644, ..<_>::default() };
    for room in [16, 100, 16 + 128, 16 + 128 + 15] {
        let name = c(&format!("file-{room}"));
        let parts: &[&[u8]] = &[bytes(&input), &name];
        let error = guest.ask_with_room(opcode::CREATE, share, parts, room).unwrap_err();
        assert_eq!(error, Errno::EINVAL);
    }
    assert_eq!(
        guest.ask_with_room(opcode::OPENDIR, share, &[&[0; 8]], 20).unwrap_err(),
        Errno::EINVAL
    );
    assert_eq!(guest.server.usage(), before);
}

#[test]
fn nothing_is_served_before_init() {
    let yard = Yard::new();
    let guest = Guest { server: cabana_fs::FileServer::new(), thread: 1 };
    guest.attach("s", &yard.path("inside"), false);
    for opcode in (0..64).filter(|op| *op != opcode::INIT) {
        let reply = guest.raw(&guest.request(opcode, 1, &[&c("s"), &[0; 100]]), ROOM);
        if !reply.is_empty() {
            let (header, _): (OutHeader, _) = take(&reply);
            assert_eq!((header.error, header.len), (-Errno::EIO.0, 16), "operation {opcode}");
        }
    }
    let short = wire::InitIn { major: 7, minor: 41, flags: 1 << 30, ..<_>::default() };
    assert_eq!(guest.ask(opcode::INIT, 0, &[bytes(&short)]).unwrap_err(), Errno::EINVAL);
    assert_eq!(guest.ask(opcode::INIT, 0, &[&[7, 0]]).unwrap_err(), Errno::EINVAL);
    assert_eq!(guest.getattr(1).unwrap_err(), Errno::EIO);
    guest.init().unwrap();
    guest.lookup(1, "s").unwrap();
}

#[test]
fn descriptors_are_bounded_and_come_back() {
    let yard = Yard::new();
    let inside = yard.path("inside");
    for index in 0..100 {
        fs::write(inside.join(format!("{index}")), "").unwrap();
    }
    let guest = Guest::mounted(Limits { nodes: 50, open: 20 });
    guest.attach("s", &inside, false);
    let share = guest.lookup(1, "s").unwrap().nodeid;
    settle();
    let mut nodes = Vec::new();
    for index in 0..49 {
        let entry = guest.lookup(share, &format!("{index}")).unwrap();
        // Once it is crowded the guest is not to remember what it does not use.
        assert_eq!(entry.entry_valid, u64::from(index < 36), "file {index}");
        nodes.push(entry.nodeid);
    }
    assert_eq!(guest.lookup(share, "60").unwrap_err(), Errno::ENFILE);
    let refused = guest.create(share, "new", 0o644);
    assert_eq!(refused.unwrap_err(), Errno::ENFILE);
    // A listing goes on, without the attributes.
    let fh = guest.opendir(share).unwrap();
    let listed = guest.readdirplus(share, fh, 0, 65_536).unwrap();
    assert!(listed.len() > 50 && listed.iter().all(|listed| listed.entry.nodeid == 0));
    for _ in 1..20 {
        guest.open(nodes[0], open::RDONLY).unwrap();
    }
    assert_eq!(guest.open(nodes[0], open::RDONLY).unwrap_err(), Errno::ENFILE);
    assert_eq!(guest.opendir(share).unwrap_err(), Errno::ENFILE);
    assert_eq!(guest.server.usage(), Limits { nodes: 50, open: 20 });
    guest.release(share, fh).unwrap();
    guest.open(nodes[0], open::RDONLY).unwrap();
    guest.forget(nodes[1], u64::MAX);
    guest.lookup(share, "60").unwrap();
}

/// Several queues at once, on the same names, while a share comes and goes beneath them.
#[test]
fn queues_in_parallel_agree() {
    let yard = Yard::new();
    let inside = yard.path("inside");
    let guest = Guest::mounted(Limits { nodes: 1000, open: 1000 });
    guest.attach("s", &inside, false);
    guest.attach("gone", &yard.path("outside"), true);
    let share = guest.lookup(1, "s").unwrap().nodeid;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let guest = &guest;
                scope.spawn(move || {
                    for round in 0..500 {
                        let own = format!("own-{worker}");
                        let (node, fh) = guest.create(share, &own, 0o644).unwrap();
                        let data = format!("{worker} {round}");
                        guest.write(node, fh, 0, data.as_bytes()).unwrap();
                        guest.rename((share, &own), (share, "common"), 0).unwrap();
                        if let Ok(common) = guest.lookup(share, "common") {
                            guest.forget(common.nodeid, 1);
                        }
                        assert_eq!(guest.read(node, fh, 0, 99).unwrap(), data.as_bytes());
                        let listing = guest.opendir(share).unwrap();
                        for listed in guest.readdirplus(share, listing, 0, 4096).unwrap() {
                            if listed.entry.nodeid != 0 {
                                guest.forget(listed.entry.nodeid, 1);
                            }
                        }
                        guest.release(share, listing).unwrap();
                        guest.release(node, fh).unwrap();
                        guest.forget(node, 1);
                        // Whatever of the other share is there at this moment.
                        let Ok(gone) = guest.lookup(1, "gone") else { continue };
                        let _ = guest.lookup(gone.nodeid, "secret").map(|entry| {
                            let opened = guest.open(entry.nodeid, open::RDONLY);
                            let _ = opened.map(|(fh, _)| guest.release(entry.nodeid, fh));
                            guest.forget(entry.nodeid, 1);
                        });
                        guest.forget(gone.nodeid, 1);
                    }
                })
            })
            .collect();
        let host = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                guest.server.detach("gone").unwrap();
                guest.attach("gone", &yard.path("outside"), true);
            }
        });
        for worker in workers {
            worker.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        host.join().unwrap();
    });
    assert_eq!(guest.server.usage(), Limits { nodes: 1, open: 0 }, "nothing is left over");
    yard.check();
}

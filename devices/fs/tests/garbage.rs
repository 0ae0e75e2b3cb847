//! Much that no kernel would send: nothing panics, nothing outside a share changes, and the limits
//! hold.

mod client;

use std::fs;
use std::path::Path;

use cabana_fs::wire::{InHeader, OutHeader, opcode};
use cabana_fs::{Limits, Replay, Step};
use cabana_virtio::testing::Noise;
use client::yard::{Yard, set_mode, symlink, tree};
use client::{Guest, bytes, take};

/// Operations, with the bytes of their argument and the names that follow. Not FSYNC, for the sake
/// of the disk.
const SHAPES: [(u32, usize, usize); 34] = [
    (opcode::LOOKUP, 0, 1),
    (opcode::FORGET, 8, 0),
    (opcode::GETATTR, 16, 0),
    (opcode::SETATTR, 88, 0),
    (opcode::READLINK, 0, 0),
    (opcode::SYMLINK, 0, 2),
    (opcode::MKNOD, 16, 1),
    (opcode::MKDIR, 8, 1),
    (opcode::UNLINK, 0, 1),
    (opcode::RMDIR, 0, 1),
    (opcode::RENAME, 8, 2),
    (opcode::LINK, 8, 1),
    (opcode::OPEN, 8, 0),
    (opcode::READ, 40, 0),
    (opcode::WRITE, 40, 0),
    (opcode::WRITE, 40, 1),
    (opcode::STATFS, 0, 0),
    (opcode::RELEASE, 24, 0),
    (opcode::SETXATTR, 16, 2),
    (opcode::GETXATTR, 8, 1),
    (opcode::LISTXATTR, 8, 0),
    (opcode::REMOVEXATTR, 0, 1),
    (opcode::OPENDIR, 8, 0),
    (opcode::READDIR, 40, 0),
    (opcode::RELEASEDIR, 24, 0),
    (opcode::CREATE, 16, 1),
    (opcode::BATCH_FORGET, 24, 0),
    (opcode::FALLOCATE, 32, 0),
    (opcode::READDIRPLUS, 40, 0),
    (opcode::RENAME2, 16, 2),
    (opcode::LSEEK, 24, 0),
    (opcode::COPY_FILE_RANGE, 56, 0),
    (opcode::TMPFILE, 16, 1),
    (opcode::STATX, 24, 0),
];

const STEPS: [Step; 4] = [
    Step::Make(0o100_000),
    Step::Remove { folder: false, node: 5 },
    Step::Remove { folder: true, node: 0 },
    Step::Modify,
];

/// What a hostile guest knows of its mount.
#[derive(Default)]
struct Known {
    nodes: Vec<u64>,
    handles: Vec<(u64, u64)>,
}

impl Known {
    /// Mounts, and looks around.
    fn of(guest: &Guest, noise: &mut Noise) -> Self {
        guest.init().unwrap();
        let mut known = Self { nodes: vec![1], handles: Vec::new() };
        for share in ["s", "ro"] {
            let share = guest.lookup(1, share).unwrap().nodeid;
            known.nodes.push(share);
            known.handles.push((share, guest.opendir(share).unwrap()));
            for name in ["a", "b", "c", "d", "link", "secret", "sub"] {
                let Ok(entry) = guest.lookup(share, name) else { continue };
                known.nodes.push(entry.nodeid);
                if let Ok((fh, _)) = guest.open(entry.nodeid, pick(noise, &[0, 1, 2])) {
                    known.handles.push((entry.nodeid, fh));
                }
            }
        }
        known
    }

    /// A request whose numbers and names are often right, often nearly, sometimes noise.
    fn request(&self, noise: &mut Noise) -> Vec<u8> {
        const NAMES: [&[u8]; 16] = [
            b"a\0",
            b"b\0",
            b"c\0",
            b"d\0",
            b"link\0",
            b"user.x\0",
            b"user.y\0",
            b"..\0",
            b".\0",
            b"../beside\0",
            b"/etc\0",
            b"a/b\0",
            b"\0",
            b"no-end",
            b"security.capability\0",
            b"s\0",
        ];
        const WORDS: [u64; 12] =
            [0, 0, 0, 1, 2, 5, 512, 4096, 1 << 20, 2 | 0o100_644 << 32, u64::MAX, 1 << 63];
        let (node, fh) = pick(noise, &self.handles);
        let (opcode, size, names) = pick(noise, &SHAPES);
        let size = size + pick(noise, &[0, 0, 0, 0, 0, 0, 4, 8]);
        let mut body = Vec::new();
        for word in 0..size.div_ceil(8) {
            let value = match noise.below(12) {
                0..6 if word == 0 => fh,
                0 => pick(noise, &self.nodes),
                1 => pick(noise, &self.handles).1,
                2 => noise.next(),
                _ => pick(noise, &WORDS),
            };
            body.extend_from_slice(&value.to_le_bytes());
        }
        body.truncate(size);
        for _ in 0..pick(noise, &[names, names, names, names, 0, 1, 2]) {
            body.extend_from_slice(pick(noise, &NAMES));
        }
        let lies = noise.below(20) == 0;
        let nodeid = match noise.below(4) {
            0..2 => node,
            2 => pick(noise, &self.nodes),
            _ => noise.below(2) * noise.next(),
        };
        let header = InHeader {
            len: if lies { noise.next() as u32 } else { (40 + body.len()) as u32 },
            opcode: if lies { noise.below(60) as u32 } else { opcode },
            unique: noise.next(),
            nodeid,
            pid: noise.below(3) as u32,
            ..InHeader::default()
        };
        let mut request = [bytes(&header), &body].concat();
        if noise.below(50) == 0 {
            request.truncate(noise.below(request.len() as u64) as usize);
        }
        request
    }
}

#[test]
fn garbage_does_no_harm() {
    let yard = Yard::new();
    let guest = Guest::mounted(Limits { nodes: 64, open: 32 });
    guest.attach("s", &yard.path("inside"), false);
    guest.attach("ro", &yard.path("outside"), true);
    let before = tree(&yard.path("outside"));
    // One of the threads that ask may repeat what happens on the host.
    guest.server.set_replayer(2);
    let mut noise = Noise::new(0x5eed);
    let mut known = Known::default();
    let mut done = [0u32; 64];
    let mut reply = vec![0; 8192];
    for round in 0..100_000 {
        if round % 500 == 0 {
            let step = pick(&mut noise, &STEPS);
            let replay =
                Replay { directory: pick(&mut noise, &[2, 3, 4]), name: b"a".into(), step };
            guest.server.set_replay(Some(replay));
        }
        if round % 40 == 0 {
            let _ = symlink(yard.path("outside"), yard.path("inside/link"));
            // Anything may have the name by now, even a fifo; and the guest may shut itself out.
            open_up(&yard.path("inside"));
            let _ = fs::rename(yard.path("inside/a"), yard.path("inside/was-a"));
            let _ = fs::File::create_new(yard.path("inside/a"))
                .and_then(|mut file| std::io::Write::write_all(&mut file, b"content"));
            known = Known::of(&guest, &mut noise);
        }
        let request = known.request(&mut noise);
        let room = pick(&mut noise, &[0, 16, 100, 8192, 8192, 8192]);
        let len = guest.server.handle_bytes(&request, &mut reply[..room]);
        assert!(len <= room);
        if len > 0 {
            let (header, _): (OutHeader, _) = take(&reply);
            assert_eq!(header.len as usize, len);
            assert!((-1000..=0).contains(&header.error));
            if header.error == 0 {
                done[usize::from(request[4])] += 1;
            }
        }
        let used = guest.server.usage();
        assert!(used.nodes <= 64 && used.open <= 32);
    }
    eprintln!("done per operation: {done:?}");
    let kinds = done.iter().filter(|count| **count > 0).count();
    assert!(kinds > 20 && done.iter().sum::<u32>() > 5_000, "garbage that gets past the door");
    yard.check();
    assert_eq!(tree(&yard.path("outside")), before, "read-only, and outside");
    open_up(&yard.path("inside"));
}

/// Gives the directories from `path` down back to their owner, so that they can be removed.
fn open_up(path: &Path) {
    set_mode(path, 0o755);
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            open_up(&entry.path());
        }
    }
}

fn pick<T: Copy>(noise: &mut Noise, from: &[T]) -> T {
    from[noise.below(from.len() as u64) as usize]
}

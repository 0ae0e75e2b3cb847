//! Any bytes, cut into requests: a byte says how many the next request takes, up to 255, and its
//! length field is set right unless the byte is odd. The server begins mounted, with a share that
//! has a file, a folder, a link that leads out, and a secret beside it.

#![no_main]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::OnceLock;

use cabana_fs::{FileServer, Limits, Share};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits { nodes: 32, open: 16 };
const SECRET: &[u8] = b"the secret that nobody may see";

/// A request: its operation, its node, its body.
fn request(opcode: u8, node: u8, body: &[u8]) -> Vec<u8> {
    let mut request = vec![0; 40];
    request[0] = 40 + body.len() as u8;
    request[4] = opcode;
    request[16] = node;
    request.extend_from_slice(body);
    request
}

/// A mount that has looked around: INIT of version 7.41; LOOKUP of the share (node 2), the file (3),
/// the folder (4) and the link (5); OPEN of the file for reading and writing (handle 1) and OPENDIR
/// of the share (handle 2).
fn begin() -> [Vec<u8>; 7] {
    [
        request(26, 0, &[7, 0, 0, 0, 41, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        request(1, 1, b"s\0"),
        request(1, 2, b"a\0"),
        request(1, 2, b"d\0"),
        request(1, 2, b"l\0"),
        request(14, 3, &[2, 0, 0, 0, 0, 0, 0, 0]),
        request(27, 2, &[0; 8]),
    ]
}

fn yard() -> &'static PathBuf {
    static YARD: OnceLock<PathBuf> = OnceLock::new();
    YARD.get_or_init(|| tempfile::tempdir_in("/dev/shm").expect("a folder").keep())
}

fn clean() -> PathBuf {
    let share = yard().join("share");
    let _ = fs::remove_dir_all(&share);
    fs::create_dir_all(share.join("d")).expect("a folder");
    fs::write(share.join("a"), "content").expect("a file");
    symlink(yard().join("secret"), share.join("l")).expect("a link");
    fs::write(yard().join("secret"), SECRET).expect("a file");
    share
}

fuzz_target!(|input: &[u8]| {
    let server = FileServer::with_limits(LIMITS);
    let share = Share { name: "s".into(), path: clean(), read_only: false };
    server.attach(&share).expect("a folder to share");
    server.set_replayer(7);
    let mut reply = vec![0; 8192];
    for request in begin() {
        let len = server.handle_bytes(&request, &mut reply);
        assert_eq!(reply[..len][4..8], [0; 4], "it begins well");
    }
    let mut rest = input;
    while let Some((&len, bytes)) = rest.split_first() {
        let (request, next) = bytes.split_at(bytes.len().min(usize::from(len)));
        rest = next;
        let mut request = request.to_vec();
        if len % 2 == 0 && request.len() >= 4 {
            let whole = (request.len() as u32).to_le_bytes();
            request[..4].copy_from_slice(&whole);
        }
        // Not FSYNC, FSYNCDIR and SYNCFS, for the sake of the disk.
        if matches!(request.get(4), Some(20 | 30 | 50)) {
            continue;
        }
        let len = server.handle_bytes(&request, &mut reply);
        assert!(len <= reply.len());
        let told = &reply[..len];
        assert!(!told.windows(SECRET.len()).any(|part| part == SECRET), "it is out");
        let used = server.usage();
        assert!(used.nodes <= LIMITS.nodes && used.open <= LIMITS.open);
    }
    assert_eq!(fs::read(yard().join("secret")).expect("it is there"), SECRET);
    assert_eq!(fs::read_dir(yard()).expect("a folder").count(), 2, "nothing beside the share");
});

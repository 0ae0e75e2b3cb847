//! Close-to-open, tortured: the host rewrites a file in place, cuts it, grows it, renames another over it
//! and removes it, while a process reads and maps it through the share, under this machine's own kernel
//! with all its caches. What that process opens when the host rests must be what the host left, to
//! the byte and to the length.

#![cfg(unix)]
// A mapping is a piece of memory that Rust knows by address only.
#![allow(unsafe_code)]

mod client;

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use client::mount::run_for;

/// Set for the process that reads: where the two leave word for one another.
const CONTROL: &str = "CABANA_TORTURE_CONTROL";

/// Words of the control file: odd while the host changes something; what it left; the reader looks just
/// now; the end.
const SEQUENCE: u64 = 0;
const VERSION: u64 = 8;
const BUSY: u64 = 16;
const STOP: u64 = 24;

struct Control(File);

impl Control {
    fn open(path: &Path) -> Self {
        Self(File::options().read(true).write(true).open(path).unwrap())
    }

    fn get(&self, word: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, word).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn set(&self, word: u64, value: u64) {
        self.0.write_all_at(&value.to_le_bytes(), word).unwrap();
    }
}

fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^= mixed >> 29;
    mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 7
}

/// What the file is in a version; nothing in some.
fn content(version: u64) -> Option<Vec<u8>> {
    let random = mix(version);
    if random.is_multiple_of(11) {
        return None;
    }
    let len = (random / 11 % 100_000) as usize;
    let words = (0..len.div_ceil(8) as u64).flat_map(|at| mix(version ^ at << 20).to_le_bytes());
    let mut bytes: Vec<u8> = words.collect();
    bytes.truncate(len);
    Some(bytes)
}

/// Brings the file to a version, in one of the ways in which programs do it.
fn write(path: &Path, version: u64) {
    let Some(bytes) = content(version) else {
        let _ = fs::remove_file(path);
        return;
    };
    let in_place = || {
        File::options().write(true).create(true).truncate(false).open(path).expect("the file opens")
    };
    match mix(version ^ 0xabcd) % 5 {
        0 => fs::write(path, &bytes).unwrap(),
        1 => {
            let new = path.with_extension("new");
            fs::write(&new, &bytes).unwrap();
            fs::rename(new, path).unwrap();
        }
        2 => {
            let _ = fs::remove_file(path);
            fs::write(path, &bytes).unwrap();
        }
        3 => {
            // Over what is there, page by page, and cut last.
            let file = in_place();
            for (at, page) in bytes.chunks(4096).enumerate() {
                file.write_all_at(page, at as u64 * 4096).unwrap();
            }
            file.set_len(bytes.len() as u64).unwrap();
        }
        _ => {
            // Cut first, and grown by a hole that is filled.
            let file = in_place();
            file.set_len(10).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
            file.write_all_at(&bytes, 0).unwrap();
        }
    }
}

/// Reads the file through the share until it is told to stop. Runs in the share.
#[test]
fn reader() {
    let Some(control) = std::env::var_os(CONTROL) else {
        println!("skipped: it is the other tests' process");
        return;
    };
    let control = Control::open(Path::new(&control));
    let (mut in_passing, mut at_rest, mut maps) = (0u64, 0u64, Vec::new());
    while control.get(STOP) == 0 {
        // In passing: whatever the host does just now.
        let before = (control.get(SEQUENCE), control.get(VERSION));
        let read = read(Path::new("file"));
        if before.0.is_multiple_of(2) && control.get(SEQUENCE) == before.0 {
            in_passing += 1;
            compare("read", read.as_deref(), before.1);
        }
        // At rest: the host waits until the file is read and mapped.
        control.set(BUSY, 1);
        if control.get(SEQUENCE).is_multiple_of(2) {
            at_rest += 1;
            let version = control.get(VERSION);
            compare("read again", self::read(Path::new("file")).as_deref(), version);
            if let Ok(file) = File::open("file") {
                let len = content(version).map_or(0, |bytes| bytes.len());
                assert_eq!(file.metadata().unwrap().len(), len as u64, "length of {version}");
                if len > 0 {
                    let map = Map::of(&file, len);
                    compare("mapped", Some(map.bytes()), version);
                    // Kept for a while: its pages stay with the kernel.
                    maps.push(map);
                }
            }
            maps.drain(..maps.len().saturating_sub(4));
        }
        control.set(BUSY, 0);
    }
    println!("{in_passing} reads in passing, {at_rest} at rest");
    assert!(in_passing > 20 && at_rest > 20, "{in_passing} and {at_rest} reads prove nothing");
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(mut file) => {
            file.read_to_end(&mut bytes).unwrap();
            Some(bytes)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("open: {error}"),
    }
}

fn compare(how: &str, read: Option<&[u8]>, version: u64) {
    let should = content(version);
    if read == should.as_deref() {
        return;
    }
    let (is, was) = (read.map(<[u8]>::len), should.as_ref().map(Vec::len));
    let first = read.zip(should.as_deref());
    let first =
        first.and_then(|(is, was)| is.iter().zip(was).position(|(one, other)| one != other));
    panic!("{how} of version {version}: {is:?} bytes, not {was:?}; they differ from {first:?} on");
}

/// A shared mapping of a file. What it maps is only looked at while the host rests.
struct Map {
    start: *mut std::ffi::c_void,
    len: usize,
}

impl Map {
    fn of(file: &File, len: usize) -> Self {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        // SAFETY: a new mapping, wherever the kernel wants it.
        let start =
            unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0) };
        Self { start: start.expect("it maps"), len }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped until the drop; the host, which could change it, rests.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.len) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: nobody looks at it any more.
        let _ = unsafe { rustix::mm::munmap(self.start, self.len) };
    }
}

fn torture(time: Duration) {
    let dir = tempfile::tempdir().unwrap();
    let (folder, control) = (dir.path().join("share"), dir.path().join("control"));
    fs::create_dir(&folder).unwrap();
    fs::write(&control, [0; 32]).unwrap();
    let path: PathBuf = folder.join("file");
    write(&path, 0);
    let host = {
        let control = Control::open(&control);
        std::thread::spawn(move || {
            let end = Instant::now() + time;
            for version in 1.. {
                control.set(SEQUENCE, version * 2 - 1);
                while control.get(BUSY) != 0 && Instant::now() < end {
                    std::thread::yield_now();
                }
                if Instant::now() >= end {
                    control.set(STOP, 1);
                    return version;
                }
                write(&path, version);
                control.set(VERSION, version);
                control.set(SEQUENCE, version * 2);
                // Sometimes long enough for what is cached to stay.
                let pause = if mix(!version).is_multiple_of(16) { 400_000 } else { 3000 };
                std::thread::sleep(Duration::from_micros(mix(version) % pause));
            }
            unreachable!("there are enough numbers");
        })
    };
    let script = format!(
        "{CONTROL}={} exec {} --exact reader --nocapture",
        control.display(),
        std::env::current_exe().unwrap().display()
    );
    let output = run_for(&folder, &script, time.as_secs() as u32 + 60);
    let versions = host.join().unwrap();
    let Some(output) = output else { return };
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{versions} versions\n{out}\n{err}");
    println!("{versions} versions: {out}");
}

#[test]
fn no_open_is_stale() {
    torture(Duration::from_secs(4));
}

#[test]
#[ignore = "takes ten minutes: runs with --long"]
fn no_open_is_stale_for_ten_minutes() {
    torture(Duration::from_secs(600));
}

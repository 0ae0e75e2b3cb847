//! The server under this machine's own kernel, through /dev/fuse in place of the virtio queues, in a
//! mount namespace that vanishes with its shell. It needs root.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cabana_fs::{FileServer, Limits, Share};

/// The largest request: 1 MiB of data with headers.
const ROOM: usize = (1 << 20) + 4096;
/// What `mount(8)` and the scripts say when there is nothing to test with.
const SKIPPED: i32 = 77;

/// Runs a script in a share of `folder`, its working directory; `$HOST` is the folder itself.
/// `None`, with the reason said, if this machine does not let us mount.
pub fn run(folder: &Path, script: &str) -> Option<Output> {
    run_for(folder, script, 60)
}

/// As [`run`], for at most so many seconds.
pub fn run_for(folder: &Path, script: &str, seconds: u32) -> Option<Output> {
    let device = match fs::File::options().read(true).write(true).open("/dev/fuse") {
        Ok(device) => Arc::new(device),
        Err(error) => {
            eprintln!("skipped: cannot open /dev/fuse: {error}");
            return None;
        }
    };
    rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::empty()).unwrap();
    let server = Arc::new(FileServer::with_limits(Limits { nodes: 10_000, open: 1000 }));
    let share = Share { name: "s".into(), path: folder.into(), read_only: false };
    server.attach(&share).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let queues: Vec<_> = (0..2)
        .map(|_| {
            let (device, server, stop) =
                (Arc::clone(&device), Arc::clone(&server), Arc::clone(&stop));
            std::thread::spawn(move || serve(&device, &server, &stop))
        })
        .collect();
    let mount = tempfile::tempdir().unwrap();
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd()
    );
    let output = Command::new("timeout")
        .arg(seconds.to_string())
        .args(["unshare", "--mount", "sh", "-ec"])
        .arg(format!(
            "mount -i -t fuse -o {options} cabana {at} || exit {SKIPPED}; cd {at}/s\n{script}",
            at = mount.path().display()
        ))
        .env("HOST", folder)
        .env("HOME", folder)
        .output()
        .unwrap();
    stop.store(true, Ordering::Relaxed);
    for queue in queues {
        queue.join().unwrap();
    }
    if output.status.code() == Some(SKIPPED) {
        eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(output)
}

fn serve(mut device: &fs::File, server: &FileServer, stop: &AtomicBool) {
    let (mut request, mut reply) = (vec![0; ROOM], vec![0; ROOM]);
    loop {
        match device.read(&mut request) {
            Ok(len) => {
                let len = server.handle_bytes(&request[..len], &mut reply);
                if len > 0 {
                    // A request that was given up in the meantime takes no reply.
                    let _ = device.write(&reply[..len]);
                }
            }
            // ENODEV: unmounted. EPERM: not mounted yet, or never.
            Err(error) if error.raw_os_error() == Some(19) => return,
            Err(_) if stop.load(Ordering::Relaxed) => return,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

//! What crosses between processes, and how they end together. This program plays three of them: the test starts a parent,
//! the parent a child.

use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use cabana_os::process::{end_now, end_together, own_handle, own_program};
use cabana_os::{AsHandle, Channel, FromHandle, LocalStream, OwnedHandle, Packets};

/// Says whose part this process plays.
const PART: &str = "CABANA_TEST_PART";
/// Longer than a test takes.
const FOREVER: Duration = Duration::from_secs(600);

/// Starts this program for a part; only the test of that name runs.
fn play(test: &str, part: &str) -> Command {
    let mut command = Command::new(own_program().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(PART, part);
    command
}

/// Starts a child at the other end of a channel.
fn start_child(test: &str, part: &str) -> (Channel, std::process::Child) {
    let (ours, theirs) = Channel::pair().unwrap();
    let child = play(test, part).stdin(OwnedHandle::from(theirs)).spawn().unwrap();
    ours.set_peer(&child).unwrap();
    end_together(&child).unwrap();
    (ours, child)
}

/// A child's end.
fn channel() -> Channel {
    Channel::from_handle(io::stdin().as_handle().try_clone_to_owned().unwrap()).unwrap()
}

#[test]
fn handles_work_in_the_process_that_gets_them() {
    if env::var_os(PART).is_some() {
        let channel = channel();
        let (message, handles) = channel.receive().unwrap().unwrap();
        assert_eq!(message, b"work");
        let Ok([file, stream, packets]) = <[OwnedHandle; 3]>::try_from(handles) else {
            panic!("not three handles");
        };
        let mut stream = LocalStream::from_handle(stream).unwrap();
        let packets = Packets::from_handle(packets).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        stream.write_all(said.to_uppercase().as_bytes()).unwrap();
        drop(stream);
        packets.send(b"pac", b"ket").unwrap();
        let mut text = String::new();
        File::from(file).read_to_string(&mut text).unwrap();
        channel.send(text.as_bytes(), &[]).unwrap();
        // Packets under way need somebody who waits for them.
        assert!(channel.receive().unwrap().is_none());
        return;
    }
    let (channel, mut child) = start_child("handles_work_in_the_process_that_gets_them", "child");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, "of a file").unwrap();
    let file = File::open(&path).unwrap();
    let (mut stream, theirs) = LocalStream::pair().unwrap();
    let (packets, other) = Packets::handles().unwrap();
    let handles = [file.as_handle(), theirs.as_handle(), other.as_handle()];
    channel.send(b"work", &handles).unwrap();
    drop((theirs, other));
    stream.write_all(b"loud").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert_eq!(said, "LOUD");
    let (packets, mut room) = (Packets::from_handle(packets).unwrap(), [0; 100]);
    let count = loop {
        match packets.try_receive(&mut room).unwrap() {
            Some(count) => break count,
            None => thread::yield_now(),
        }
    };
    assert_eq!(&room[..count], b"packet");
    assert_eq!(channel.receive().unwrap().unwrap().0, b"of a file");
    channel.shut();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_child_ends_with_its_parent_however_that_ends() {
    let test = "a_child_ends_with_its_parent_however_that_ends";
    match env::var(PART).as_deref() {
        Err(_) => {}
        Ok("parent") => {
            let (channel, child) = start_child(test, "child");
            // The channel stays open: somebody else has an end of it.
            channel.send(b"-", &[own_handle().unwrap().as_handle(), channel.as_handle()]).unwrap();
            assert_eq!(channel.receive().unwrap().unwrap().0, b"here");
            std::mem::forget(child);
            end_now(3);
        }
        Ok(_) => {
            let channel = channel();
            let (_, handles) = channel.receive().unwrap().unwrap();
            // On Windows the job ends it.
            if !cfg!(windows) {
                let (watched, parent) = (channel.try_clone().unwrap(), handles);
                thread::spawn(move || {
                    watched.wait_gone(Some(parent[0].as_handle()));
                    end_now(0);
                });
            }
            channel.send(b"here", &[]).unwrap();
            thread::sleep(FOREVER);
        }
    }
    let mut parent = play(test, "parent").stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    // The child has this pipe, too.
    parent.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(parent.wait().unwrap().code(), Some(3), "{said}");
}

#[test]
fn a_child_learns_that_its_parent_is_gone() {
    if env::var_os(PART).is_some() {
        let channel = channel();
        let (_, handles) = channel.receive().unwrap().unwrap();
        channel.wait_gone(handles.first().map(AsHandle::as_handle));
        end_now(7);
    }
    let (channel, mut child) = start_child("a_child_learns_that_its_parent_is_gone", "child");
    channel.send(b"-", &[own_handle().unwrap().as_handle()]).unwrap();
    thread::sleep(Duration::from_millis(50));
    assert!(child.try_wait().unwrap().is_none());
    drop(channel);
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

/// The child that stays behind holds what it is given, and nothing else of the process's.
#[cfg(target_os = "linux")]
#[test]
fn what_is_closed_behind_is_open_to_the_processs_end_and_not_for_long_after() {
    const TEST: &str = "what_is_closed_behind_is_open_to_the_processs_end_and_not_for_long_after";
    use std::os::fd::AsFd;
    use std::time::Instant;

    if env::var_os(PART).is_some() {
        let standing = io::stderr().as_fd().try_clone_to_owned().unwrap();
        cabana_os::process::close_behind(standing.as_fd()).unwrap();
        drop(standing);
        // Of the three streams it has none, only the copy of the last one.
        let mut said = String::new();
        io::stdin().read_to_string(&mut said).unwrap();
        println!("{said}");
        end_now(7);
    }
    let mut child = play(TEST, "leaver")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut stderr = child.stderr.take().unwrap();
    stdin.write_all(b"go on").unwrap();
    drop(stdin);
    let mut said = String::new();
    stdout.read_to_string(&mut said).unwrap();
    assert!(said.contains("go on"), "{said}");
    assert_eq!(child.wait().unwrap().code(), Some(7));
    let start = Instant::now();
    stderr.read_to_string(&mut said).unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

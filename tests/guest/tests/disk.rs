//! The guest's writable root: it persists on a disk of the user's, and otherwise it does not.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cabana_test_guest::{Call, Host, host};

fn with_disk(host: &Host, disk: &Path, script: &str) -> Call {
    let disk = disk.to_str().expect("a path in UTF-8");
    host.cabana(["run", "--disk", disk, "--", "sh", "-ec", script])
}

#[test]
fn changes_on_a_disk_survive_a_restart() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("work.disk");
    let script = "echo kept >/root/file; echo 'mine' >/etc/motd; rm /usr/bin/file; \
                  mkdir /opt/x; ln -s /root/file /opt/x/link; chmod 700 /opt/x";
    with_disk(host, &disk, script).end().succeeded();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let script = "cat /opt/x/link /etc/motd; test ! -e /usr/bin/file; stat -c %a /opt/x";
    assert_eq!(with_disk(host, &disk, script).end().succeeded(), "kept\nmine\n700\n");
}

#[test]
fn changes_without_a_disk_vanish() {
    let Some(host) = host() else { return };
    let script = "test ! -e /root/file; echo x >/root/file; cat /root/file";
    for _ in 0..2 {
        assert_eq!(host.cabana(["run", "--", "sh", "-ec", script]).end().succeeded(), "x\n");
    }
}

#[test]
fn a_disk_serves_one_machine_at_a_time() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("work.disk");
    let mut first = with_disk(host, &disk, "echo ready; read line").open_input().start();
    first.wait_for("ready");
    let second = with_disk(host, &disk, "true").end();
    second.failed_with(125, &["work.disk", "in use by another process"]);
    first.type_in("\n");
    first.end().succeeded();
    with_disk(host, &disk, "true").end().succeeded();
}

#[test]
fn a_disk_takes_what_it_holds_and_gives_it_back() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("work.disk");
    let mib = || fs::metadata(&disk).unwrap().blocks() / 2048;
    with_disk(host, &disk, "head -c 40M /dev/urandom >/root/large").end().succeeded();
    let full = mib();
    assert!((40..80).contains(&full), "{full} MiB");
    with_disk(host, &disk, "rm /root/large; sync").end().succeeded();
    let empty = mib();
    assert!(empty + 35 < full, "{full} MiB with the file, {empty} without");
}

#[test]
fn a_disk_of_something_else_is_refused() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("no.disk");
    fs::write(&disk, "three").unwrap();
    with_disk(host, &disk, "true").end().failed_with(125, &["no.disk", "5 bytes"]);
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    with_disk(host, &disk, "true").end().failed_with(125, &["/dev/vda", "ext4"]);
    with_disk(host, folder.path(), "true").end().failed_with(125, &["not a file"]);
    let nowhere = folder.path().join("no/such/folder/work.disk");
    with_disk(host, &nowhere, "true").end().failed_with(125, &["no/such/folder", "No such file"]);
}

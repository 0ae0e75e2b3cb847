//! The server with the rules for names of hosts that are not Linux, on a folder of this one.

mod client;

use std::collections::BTreeSet;
use std::fs;

use cabana_fs::wire::Errno;
use cabana_fs::{FileServer, Limits, NameRules};
use client::Guest;

fn guest(folder: &tempfile::TempDir, rules: NameRules) -> (Guest, u64) {
    let server = FileServer::with_rules(Limits { nodes: 100, open: 100 }, rules);
    let guest = Guest { server, thread: 1 };
    guest.init().unwrap();
    // A share's own name is the user's, and no file's.
    guest.attach("a:b", folder.path(), false);
    let share = guest.lookup(1, "a:b").unwrap().nodeid;
    (guest, share)
}

fn on_host(folder: &tempfile::TempDir) -> BTreeSet<String> {
    let entries = fs::read_dir(folder.path()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn listed(guest: &Guest, share: u64) -> BTreeSet<String> {
    let fh = guest.opendir(share).unwrap();
    let listed = guest.readdirplus(share, fh, 0, 8192).unwrap();
    listed
        .into_iter()
        .map(|one| one.name)
        .filter(|name| !name.trim_matches('.').is_empty())
        .collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[test]
fn the_guest_sees_its_names_and_windows_would_take_those_on_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let (guest, share) = guest(&folder, NameRules::WINDOWS);
    guest.create(share, "12:30", 0o644).unwrap();
    guest.mkdir(share, "aux.d", 0o755).unwrap();
    guest.symlink(share, "what?", "a:target").unwrap();
    assert_eq!(on_host(&folder), set(["12\u{f03a}30", "au\u{f078}.d", "what\u{f03f}"]));
    assert_eq!(fs::read_link(folder.path().join("what\u{f03f}")).unwrap().as_os_str(), "a:target");
    assert_eq!(listed(&guest, share), set(["12:30", "aux.d", "what?"]));

    let node = guest.lookup(share, "12:30").unwrap().nodeid;
    guest.link(node, share, "dot.").unwrap();
    guest.rename((share, "12:30"), (share, "<new>"), 0).unwrap();
    assert_eq!(guest.lookup(share, "<new>").unwrap().nodeid, node);
    assert_eq!(guest.lookup(share, "dot.").unwrap().nodeid, node);
    guest.unlink(share, "what?").unwrap();
    guest.rmdir(share, "aux.d").unwrap();
    assert_eq!(on_host(&folder), set(["\u{f03c}new\u{f03e}", "dot\u{f02e}"]));
}

#[test]
fn what_the_host_made_is_shown_and_found_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    // The second would be spelt without a private character, so that it is nobody's spelling.
    for name in ["Plain Name.txt", "pri\u{f041}vate", "12\u{f03a}30"] {
        fs::write(folder.path().join(name), name).unwrap();
    }
    let (guest, share) = guest(&folder, NameRules::WINDOWS);
    assert_eq!(listed(&guest, share), set(["Plain Name.txt", "pri\u{f041}vate", "12:30"]));
    for name in listed(&guest, share) {
        guest.lookup(share, &name).unwrap();
    }
    // A second name for what is there already.
    assert_eq!(guest.lookup(share, "12\u{f03a}30").unwrap_err(), Errno::EILSEQ);
    assert_eq!(guest.create(share, "x\u{f03a}", 0o644).unwrap_err(), Errno::EILSEQ);
    assert_eq!(guest.lookup(share, "priAvate").unwrap_err(), Errno::ENOENT);
}

#[test]
fn no_spelling_leads_out_of_a_share() {
    let folder = tempfile::tempdir().unwrap();
    // Dots and slashes in private characters, as a hostile host file system could have them.
    for name in ["\u{f02e}", "\u{f02e}\u{f02e}", "a\u{f02f}b", "\u{f02e}\u{f02e}\u{f02f}x"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    let (guest, share) = guest(&folder, NameRules::WINDOWS);
    let fh = guest.opendir(share).unwrap();
    let names = guest.readdir(share, fh, 0, 8192).unwrap();
    assert_eq!(names.iter().filter(|one| matches!(one.name.as_str(), "." | "..")).count(), 2);
    assert!(names.iter().all(|one| !one.name.contains('/')));
    for name in [".", "..", "a/b", "../x"] {
        assert_eq!(guest.lookup(share, name).unwrap_err(), Errno::EINVAL, "{name:?}");
    }
}

#[test]
fn hosts_whose_names_are_text_get_no_other_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let rename = |guest: &Guest, share| guest.rename((share, "a"), (share, "\u{e9}"), 0);
    for rules in [NameRules::WINDOWS, NameRules::MACOS] {
        let (guest, share) = guest(&folder, rules);
        let lookup = guest.ask(cabana_fs::wire::opcode::LOOKUP, share, &[b"\xff\0"]);
        assert_eq!(lookup.unwrap_err(), Errno::EILSEQ);
        guest.create(share, "a", 0o644).unwrap();
        rename(&guest, share).unwrap();
        fs::remove_file(folder.path().join("\u{e9}")).unwrap();
    }
}

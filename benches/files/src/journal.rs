//! What a share's journal costs: the same requests to the file server, without a journal and with one, in
//! one run, in turn, on the same file system. The clock counts, since some of the cost is waiting for the
//! disk.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cabana_fs::wire::{self, OutHeader, opcode};
use cabana_fs::{FileServer, Limits, Share};
use cabana_journal::{Home, Limits as JournalLimits, Recorder};
use zerocopy::{FromBytes, IntoBytes};

use crate::driver::message;

/// Files of each kind in one run.
const FILES: usize = 300;
/// What a file holds.
const LEN: usize = 16 << 10;

/// One kind of operation, without and with a journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// What is done.
    pub(crate) name: &'static str,
    /// The least time of each, without.
    pub(crate) without: Duration,
    /// And with.
    pub(crate) with: Duration,
}

/// A guest of one share, which speaks to the server without a device in between.
struct Guest {
    server: FileServer,
    share: u64,
    reply: Vec<u8>,
}

impl Guest {
    fn new(folder: &Path, journal: Option<Arc<Recorder>>) -> Self {
        let server = FileServer::with_limits(Limits { nodes: 100_000, open: 1000 });
        let share = Share { name: "s".into(), path: folder.into(), read_only: false };
        server.attach_with_journal(&share, journal).expect("the folder can be shared");
        let mut guest = Self { server, share: 1, reply: vec![0; 4096] };
        let init = wire::InitIn { major: 7, minor: 41, ..<_>::default() };
        guest.ask(opcode::INIT, 0, &[init.as_bytes()]);
        guest.share = guest.lookup("s");
        guest
    }

    /// Sends a request, which must succeed; the reply's body.
    fn ask(&mut self, opcode: u32, nodeid: u64, parts: &[&[u8]]) -> &[u8] {
        let request = message(opcode, nodeid, parts);
        let len = self.server.handle_bytes(&request, &mut self.reply);
        let (header, _) = OutHeader::read_from_prefix(&self.reply).expect("a reply");
        assert_eq!(header.error, 0, "request {opcode}");
        &self.reply[size_of::<OutHeader>()..len]
    }

    fn lookup(&mut self, name: &str) -> u64 {
        let share = self.share;
        let body = self.ask(opcode::LOOKUP, share, &[name.as_bytes(), b"\0"]);
        wire::EntryOut::read_from_prefix(body).expect("an entry").0.nodeid
    }

    fn open(&mut self, node: u64) -> u64 {
        let input = wire::OpenIn { flags: wire::open::RDWR, open_flags: 0 };
        let body = self.ask(opcode::OPEN, node, &[input.as_bytes()]);
        wire::OpenOut::read_from_prefix(body).expect("a handle").0.fh
    }

    fn write(&mut self, node: u64, fh: u64, offset: u64, data: &[u8]) {
        let input = wire::WriteIn { fh, offset, size: data.len() as u32, ..<_>::default() };
        self.ask(opcode::WRITE, node, &[input.as_bytes(), data]);
    }

    fn release(&mut self, node: u64, fh: u64) {
        let input = wire::ReleaseIn { fh, ..<_>::default() };
        self.ask(opcode::RELEASE, node, &[input.as_bytes()]);
    }

    /// Makes a file of [`LEN`] bytes.
    fn make(&mut self, name: &str) {
        let mode = wire::mode::REGULAR | 0o644;
        let input = wire::CreateIn { flags: wire::open::RDWR, mode, ..<_>::default() };
        let share = self.share;
        let body = self.ask(opcode::CREATE, share, &[input.as_bytes(), name.as_bytes(), b"\0"]);
        let (entry, rest) = wire::EntryOut::read_from_prefix(body).expect("an entry");
        let (open, _) = wire::OpenOut::read_from_prefix(rest).expect("a handle");
        self.write(entry.nodeid, open.fh, 0, &[7; LEN]);
        self.release(entry.nodeid, open.fh);
    }

    fn change(&mut self, name: &str, offset: u64) {
        let node = self.lookup(name);
        let fh = self.open(node);
        self.write(node, fh, offset, &[8; 4096]);
        self.release(node, fh);
    }

    fn unlink(&mut self, name: &str) {
        let share = self.share;
        self.ask(opcode::UNLINK, share, &[name.as_bytes(), b"\0"]);
    }

    fn rename(&mut self, from: &str, to: &str) {
        let share = self.share;
        let input = wire::RenameIn { newdir: share };
        let names = [from.as_bytes(), b"\0", to.as_bytes(), b"\0"].concat();
        self.ask(opcode::RENAME, share, &[input.as_bytes(), &names]);
    }
}

type Step = fn(&mut Guest, usize);

/// Kinds of operations, in an order in which each finds what it needs. `old` files were there before.
const STEPS: [(&str, Step); 7] = [
    ("create, write 16 KiB, close", |guest, at| guest.make(&format!("new{at}"))),
    ("append 4 KiB to an old file", |guest, at| guest.change(&format!("old{at}"), LEN as u64)),
    ("overwrite 4 KiB of an old file, first time", |guest, at| {
        guest.change(&format!("old{at}"), 0);
    }),
    ("the same, second time", |guest, at| guest.change(&format!("old{at}"), 0)),
    ("rename a new file over an old one", |guest, at| {
        guest.rename(&format!("new{at}"), &format!("old{at}"));
    }),
    ("rename", |guest, at| guest.rename(&format!("old{at}"), &format!("moved{at}"))),
    ("delete", |guest, at| guest.unlink(&format!("moved{at}"))),
];

/// Measures in a folder that is empty and ours.
pub(crate) fn measure(folder: &Path, runs: usize) -> std::io::Result<Vec<Cost>> {
    let cost = |(name, _)| Cost { name, without: Duration::MAX, with: Duration::MAX };
    let mut costs: Vec<Cost> = STEPS.map(cost).into();
    for run in 0..runs {
        for journalled in [false, true] {
            let times = one_run(&folder.join(format!("{run}-{journalled}")), journalled)?;
            for (cost, time) in costs.iter_mut().zip(times) {
                let least = if journalled { &mut cost.with } else { &mut cost.without };
                *least = time.min(*least);
            }
        }
    }
    Ok(costs)
}

/// Times of each kind, for one operation.
fn one_run(folder: &Path, journalled: bool) -> std::io::Result<Vec<Duration>> {
    let share = folder.join("share");
    fs::create_dir_all(&share)?;
    for at in 0..FILES {
        fs::write(share.join(format!("old{at}")), vec![1; LEN])?;
    }
    let journal = || {
        let home = Home::make(&folder.join("journals"), &share).map_err(std::io::Error::other)?;
        let recorder = Recorder::open(&home, JournalLimits::default());
        Ok::<_, std::io::Error>(Arc::new(recorder.map_err(std::io::Error::other)?))
    };
    let journal = journalled.then(journal).transpose()?;
    let mut guest = Guest::new(&share, journal);
    let timed = |(_, step): (&str, Step)| {
        let start = Instant::now();
        (0..FILES).for_each(|at| step(&mut guest, at));
        start.elapsed() / FILES as u32
    };
    Ok(STEPS.into_iter().map(timed).collect())
}

/// The table.
pub(crate) fn markdown(costs: &[Cost]) -> String {
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let row = |cost: &Cost| {
        let (without, with) = (us(cost.without), us(cost.with));
        format!("| {} | {without:.1} | {with:.1} | {:.1} |\n", cost.name, with / without)
    };
    let head = "| operation | without, µs | with a journal, µs | ratio |\n|---|---|---|---|\n";
    costs.iter().map(row).fold(head.to_owned(), |table, row| table + &row)
}

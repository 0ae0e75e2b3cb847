//! What machines of a snapshot touch first: recorded by the first two of them ([`Recorder`]), brought in beforehand for
//! the others. The first one's record has neighbours in it, which the host brings in with what is touched; the second one's has
//! none, since there they come one by one. Nothing here can fail a machine.

use std::sync::Arc;

use cabana_machine::{Pages, Platform, Touched};
use cabana_memory::{GuestAddress, GuestRam};
use cabana_os::{PresentPages, present_pages};
use cabana_pmem::Image;
use cabana_snapshot::{Run, Snapshot};

use crate::backend::Processor;

/// Names in the file. Pages of RAM are numbered through all its pieces.
const RAM: &str = "ram";
const IMAGE: &str = "image";

const PAGE: usize = 4096;
/// Pages of this size serve the guest with one fault in place of many.
const LARGE: u64 = 2 << 20;
/// Bytes that are touched in such a page for it to be used: that costs as much as four small ones.
const WORTH_ENLARGING: usize = 8 * PAGE;
/// What is no further apart is read from the disk together.
const READ_GAP: u64 = 16 * PAGE as u64;

/// The memory of a machine that has not run yet.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    pub(crate) ram: GuestRam,
    pub(crate) image: Arc<Image>,
    /// Where the image is in the guest.
    pub(crate) image_at: u64,
}

impl Memory {
    /// What a machine of the snapshot with this memory should have before it runs, and who records it if that is
    /// not known. What is not in memory of what is known begins to be read.
    pub(crate) fn prepare(self, snapshot: Snapshot) -> (Touched, Option<Recorder>) {
        let Some(recorded) = cabana_snapshot::Touched::read(&snapshot) else {
            Processor::advise_pages(&self.ram, 0);
            return (Touched::default(), Some(Recorder { snapshot, memory: self, exact: false }));
        };
        let touched = self.placed(&recorded);
        for (guest, len) in together(&touched.ram) {
            let _ = self.ram.will_need(GuestAddress(guest), len);
        }
        for (guest, len) in together(&touched.devices) {
            self.image.will_need((guest - self.image_at) as usize, len);
        }
        if recorded.exact {
            let touched = self.enlarged(touched);
            self.keep_small();
            return (touched, None);
        }
        self.keep_small();
        // What was written to was touched for sure.
        for pages in touched.ram.iter().filter(|pages| !pages.written) {
            let _ = self.ram.bring_in_singly(GuestAddress(pages.guest), pages.len);
        }
        for pages in &touched.devices {
            self.image.bring_in_singly((pages.guest - self.image_at) as usize, pages.len);
        }
        (Touched::default(), Some(Recorder { snapshot, memory: self, exact: true }))
    }

    /// A byte that is written touches no more than its page, until what is touched first is recorded or brought in.
    fn keep_small(&self) {
        for piece in self.ram.slots() {
            let _ = self.ram.advise_small(piece.guest, piece.len);
        }
    }

    /// Puts what is only read into large pages where that is worth it, and possible.
    fn enlarged(&self, Touched { ram, devices }: Touched) -> Touched {
        let in_ram = |guest| self.ram.enlarge(GuestAddress(guest), LARGE as usize);
        let in_image =
            |guest: u64| self.image.enlarge((guest - self.image_at) as usize, LARGE as usize);
        Touched { ram: large(&split(ram), in_ram), devices: large(&split(devices), in_image) }
    }

    /// Where in the guest the recorded pages are.
    fn placed(&self, recorded: &cabana_snapshot::Touched) -> Touched {
        let mut touched = Touched::default();
        let all = recorded.runs(RAM, self.ram.size() / PAGE as u64);
        let mut begin = 0;
        for piece in self.ram.slots() {
            let end = begin + (piece.len / PAGE) as u64;
            for run in all {
                let (from, to) = (run.first.max(begin), (run.first + run.count).min(end));
                if from < to {
                    let guest = piece.guest.0 + (from - begin) * PAGE as u64;
                    touched.ram.push(pages(guest, to - from, run.written));
                }
            }
            begin = end;
        }
        for run in recorded.runs(IMAGE, (self.image.len() / PAGE) as u64) {
            let guest = self.image_at + run.first * PAGE as u64;
            touched.devices.push(pages(guest, run.count, false));
        }
        touched
    }
}

/// The same with large pages, where `enlarge` can make them, in place of what is only read in them.
fn large(all: &[Pages], enlarge: impl Fn(u64) -> bool) -> Vec<Pages> {
    let block = |pages: &Pages| pages.guest / LARGE;
    let mut result = Vec::new();
    for run in all.chunk_by(|one, next| block(one) == block(next)) {
        let touched: usize = run.iter().map(|pages| pages.len).sum();
        let read_only = run.iter().all(|pages| !pages.written);
        let start = block(&run[0]) * LARGE;
        if read_only && touched >= WORTH_ENLARGING && enlarge(start) {
            result.push(pages(start, LARGE / PAGE as u64, false));
        } else {
            result.extend(run);
        }
    }
    result
}

fn pages(guest: u64, count: u64, written: bool) -> Pages {
    Pages { guest, len: count as usize * PAGE, written }
}

/// What is worth one request to the disk each.
fn together(pages: &[Pages]) -> impl Iterator<Item = (u64, usize)> + '_ {
    let near = |one: &Pages, next: &Pages| next.guest - (one.guest + one.len as u64) <= READ_GAP;
    pages.chunk_by(near).filter_map(|run| {
        let (first, last) = (run.first()?, run.last()?);
        Some((first.guest, (last.guest - first.guest) as usize + last.len))
    })
}

/// The same, with no run in two large pages.
fn split(all: Vec<Pages>) -> Vec<Pages> {
    let mut result = Vec::new();
    for mut rest in all {
        loop {
            let next = (rest.guest / LARGE + 1) * LARGE;
            let here = rest.len.min((next - rest.guest) as usize);
            result.push(Pages { len: here, ..rest });
            if here == rest.len {
                break;
            }
            rest = Pages { guest: next, len: rest.len - here, ..rest };
        }
    }
    result
}

/// Records what a machine touches.
#[derive(Debug)]
pub(crate) struct Recorder {
    snapshot: Snapshot,
    memory: Memory,
    exact: bool,
}

impl Recorder {
    /// Records what has been touched so far.
    pub(crate) fn record(self) {
        let Self { snapshot, memory, exact } = self;
        let (ram, image) = (&memory.ram, &memory.image);
        let mut touched = cabana_snapshot::Touched::new(exact);
        let mut runs = Vec::new();
        let mut begin = 0;
        for piece in ram.slots() {
            runs.extend(present(piece.host, piece.len, begin));
            begin += (piece.len / PAGE) as u64;
        }
        touched.add(RAM, runs);
        touched.add(IMAGE, present(image.host(), image.len(), 0));
        if exact {
            Processor::advise_pages(ram, 0);
            ram.bring_in_together();
            image.bring_in_together();
            // Now, since it takes longest for the first time.
            memory.enlarged(memory.placed(&touched));
        }
        // A folder that cannot be written to has none.
        let _ = touched.write(&snapshot);
    }
}

/// The pages that are there, the first of all of this number.
fn present(host: *mut u8, len: usize, number: u64) -> Vec<Run> {
    let start = host as usize;
    let found = present_pages(start..start + len).unwrap_or_default();
    let run = |pages: PresentPages| Run {
        first: number + ((pages.range.start - start) / PAGE) as u64,
        count: (pages.range.len() / PAGE) as u64,
        written: pages.own,
    };
    found.into_iter().map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: u64 = PAGE as u64;

    #[test]
    fn what_is_only_read_goes_into_large_pages_where_it_is_much() {
        let all = vec![
            // Across two large pages, of which the second one is written to.
            pages(LARGE - 20 * P, 30, false),
            pages(LARGE + 40 * P, 1, true),
            // Little.
            pages(2 * LARGE, 3, false),
            pages(3 * LARGE + 5 * P, 4, false),
            pages(3 * LARGE + 50 * P, 4, false),
        ];
        let few = split(all);
        let enlarged = large(&few, |_| true);
        let expected = [
            pages(0, 512, false),
            pages(LARGE, 10, false),
            pages(LARGE + 40 * P, 1, true),
            pages(2 * LARGE, 3, false),
            pages(3 * LARGE, 512, false),
        ];
        assert_eq!(enlarged, expected);
        assert_eq!(large(&few, |_| false), few);
        assert_eq!(
            split(vec![pages(5 * P, 1200, true)]).iter().map(|run| run.len).sum::<usize>(),
            1200 * PAGE
        );
    }

    #[test]
    fn what_is_near_is_read_together() {
        let all = [pages(0, 2, false), pages(10 * P, 1, true), pages(99 * P, 1, false)];
        let read: Vec<_> = together(&all).collect();
        assert_eq!(read, [(0, 11 * PAGE), (99 * P, PAGE)]);
        assert_eq!(together(&[]).count(), 0);
    }
}

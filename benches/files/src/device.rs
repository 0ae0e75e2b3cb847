//! The virtio-fs device alone, with no hypervisor in the way, beside the bare system calls in a loop:
//! both in turn in one run, the same files, the same sizes. What counts is the processor time of the
//! thread that does it, which a busy machine does not change; only for two queues it is the clock.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use cabana_fs::wire::{self, opcode};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::time::{ClockId, clock_gettime};
use zerocopy::IntoBytes;

use crate::driver::{Prepared, Rig, message};

/// Files that are looked up.
const FILES: usize = 4000;
/// The file that is read and written, which the host has cached.
const DATA: usize = 16 << 20;
const PAGE: usize = 4096;
/// One large transfer.
const LARGE: usize = 1 << 20;

/// One comparison.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    /// What is done.
    pub(crate) name: &'static str,
    /// What the bare loop does.
    pub(crate) bare: &'static str,
    /// Nanoseconds of the bare loop, for each.
    pub(crate) bare_ns: f64,
    /// Nanoseconds of the device, for each.
    pub(crate) device_ns: f64,
    /// What the ratio is to be: at most, or, for two queues, at least. `None`: it is for comparison.
    pub(crate) target: Option<f64>,
}

impl Figure {
    /// How many times the bare loop the device takes; for two queues, how much more they do than one.
    pub(crate) fn ratio(&self) -> f64 {
        if self.is_gain() { self.bare_ns / self.device_ns } else { self.device_ns / self.bare_ns }
    }

    /// Is more better?
    pub(crate) fn is_gain(&self) -> bool {
        self.bare == "one queue"
    }

    /// The target, and whether it is reached.
    fn judged(&self) -> String {
        let Some(target) = self.target else { return "–".to_owned() };
        let (sign, reached) = if self.is_gain() {
            ('≥', self.ratio() >= target)
        } else {
            ('≤', self.ratio() <= target)
        };
        format!("{sign} {target} {}", if reached { '✓' } else { '✗' })
    }
}

/// The least of several runs of each, taken in turn: what else the machine does only adds.
struct Least {
    bare: Duration,
    device: Duration,
}

impl Least {
    fn of(
        runs: usize,
        mut bare: impl FnMut() -> Duration,
        mut device: impl FnMut() -> Duration,
    ) -> Self {
        let mut least = Self { bare: Duration::MAX, device: Duration::MAX };
        for _ in 0..runs {
            least.bare = least.bare.min(bare());
            least.device = least.device.min(device());
        }
        least
    }

    fn figure(
        &self,
        name: &'static str,
        bare: &'static str,
        count: usize,
        target: impl Into<Option<f64>>,
    ) -> Figure {
        let each = |time: Duration| time.as_secs_f64() * 1e9 / count as f64;
        let target = target.into();
        Figure { name, bare, bare_ns: each(self.bare), device_ns: each(self.device), target }
    }
}

/// Processor time of this thread for some work.
fn timed(work: impl FnOnce()) -> Duration {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let start = now();
    work();
    now().saturating_sub(start)
}

/// Measures in a folder that is empty and ours.
pub(crate) fn measure(folder: &Path, runs: usize) -> std::io::Result<Vec<Figure>> {
    let names: Vec<String> = (0..FILES).map(|at| format!("file{at:05}")).collect();
    fs::create_dir(folder.join("many"))?;
    for name in &names {
        fs::write(folder.join("many").join(name), "content")?;
    }
    let noise: Vec<u8> = (0..DATA).map(|at| (at % 251) as u8).collect();
    fs::write(folder.join("data"), noise)?;
    let mut figures = known(folder, &names, runs)?;
    figures.push(first(folder, &names, runs)?);
    figures.extend(data(folder, runs)?);
    figures.push(two_queues(folder, runs));
    Ok(figures)
}

/// Beside two bare loops: one that has its system calls within it, and one that calls functions for them, as programs do
/// that have a C library. The processor's guess where a function returns to is lost in the kernel.
fn known(folder: &Path, names: &[String], runs: usize) -> std::io::Result<Vec<Figure>> {
    let many = folder.join("many");
    let directory = File::open(&many)?;
    let bare: Vec<(CString, File)> = names
        .iter()
        .take(500)
        .map(|name| Ok((CString::new(name.as_str())?, File::open(many.join(name))?)))
        .collect::<std::io::Result<_>>()?;
    let mut rig = Rig::new(folder, 1);
    let parent = rig.lookup(rig.share(), "many");
    let mut list = Vec::new();
    for name in names.iter().take(500) {
        let node = rig.lookup(parent, name);
        list.push(lookup(&mut rig, parent, name));
        let input = [0; 16];
        let request = message(opcode::GETATTR, node, &[&input]);
        list.push(rig.prepare(&[&request], &[], &[size_of::<wire::AttrOut>()]));
    }
    let rounds = 40;
    let mut rig_cost = || rig.cost(&[(1, &list)], rounds * list.len());
    let inline = Least::of(
        runs,
        || {
            timed(|| {
                for _ in 0..rounds {
                    for (name, file) in &bare {
                        statx(&directory, name);
                        rustix::fs::fstat(file).expect("fstat");
                    }
                }
            })
        },
        &mut rig_cost,
    );
    let by_functions = Least::of(
        runs,
        || {
            timed(|| {
                for _ in 0..rounds {
                    for (name, file) in &bare {
                        statx_function(&directory, name);
                        fstat_function(file);
                    }
                }
            })
        },
        &mut rig_cost,
    );
    let (name, count) = ("lookup and getattr, known name", rounds * bare.len());
    Ok(vec![
        inline.figure(name, "statx, fstat", count, 1.8),
        by_functions.figure(name, "they, in functions", count, None),
    ])
}

#[inline]
fn statx(directory: &File, name: &CStr) {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    rustix::fs::statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, wanted).expect("statx");
}

#[inline(never)]
fn statx_function(directory: &File, name: &CStr) {
    statx(directory, name);
}

#[inline(never)]
fn fstat_function(file: &File) {
    rustix::fs::fstat(file).expect("fstat");
}

fn lookup(rig: &mut Rig, parent: u64, name: &str) -> Prepared {
    let request = message(opcode::LOOKUP, parent, &[name.as_bytes(), b"\0"]);
    rig.prepare(&[&request], &[], &[size_of::<wire::EntryOut>()])
}

fn first(folder: &Path, names: &[String], runs: usize) -> std::io::Result<Figure> {
    let directory = File::open(folder.join("many"))?;
    let bare: Vec<CString> =
        names.iter().map(|name| CString::new(name.as_str())).collect::<Result<_, _>>()?;
    let mut rig = Rig::new(folder, 1);
    let parent = rig.lookup(rig.share(), "many");
    let list: Vec<_> = names.iter().map(|name| lookup(&mut rig, parent, name)).collect();
    let mark = rig.mark();
    let least = Least::of(
        runs,
        || {
            timed(|| {
                for name in &bare {
                    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                    let name = name.as_c_str();
                    let file = rustix::fs::openat2(&directory, name, flags, Mode::empty(), resolve)
                        .expect("openat2");
                    rustix::fs::fstat(&file).expect("fstat");
                }
            })
        },
        || {
            let time = rig.cost(&[(1, &list)], list.len());
            // The guest forgets them again, as the loop closes what it opened.
            let nodes: Vec<u8> = list
                .iter()
                .flat_map(|entry| rig.body(*entry, 8))
                .collect::<Vec<u8>>()
                .chunks_exact(8)
                .flat_map(|node| [node, &1u64.to_le_bytes()].concat())
                .collect();
            let forgets: Vec<Prepared> = nodes
                .chunks(16 * 100)
                .map(|some| {
                    let count = (some.len() / 16) as u32;
                    let input = wire::BatchForgetIn { count, dummy: 0 };
                    let request = message(opcode::BATCH_FORGET, 0, &[input.as_bytes(), some]);
                    rig.prepare(&[&request], &[], &[])
                })
                .collect();
            let time = time + rig.cost(&[(0, &forgets)], forgets.len());
            rig.release(mark);
            time
        },
    );
    Ok(least.figure("first lookup, and forgetting", "openat2, fstat, close", names.len(), 1.6))
}

fn data(folder: &Path, runs: usize) -> std::io::Result<Vec<Figure>> {
    let file = File::options().read(true).write(true).open(folder.join("data"))?;
    let mut rig = Rig::new(folder, 1);
    let node = rig.lookup(rig.share(), "data");
    let fh = rig.open(node);
    let mark = rig.mark();

    // 4 KiB from all over the file.
    let count = DATA / PAGE;
    let offsets: Vec<u64> = (0..count).map(|at| ((at * 1237) % count * PAGE) as u64).collect();
    let buffers = rig.pages(256);
    let mut buffer = vec![0; 256 * PAGE];
    let small: Vec<Prepared> = offsets
        .iter()
        .zip(buffers.iter().cycle())
        .map(|(&offset, &page)| {
            let input = wire::ReadIn { fh, offset, size: PAGE as u32, ..<_>::default() };
            let request = message(opcode::READ, node, &[input.as_bytes()]);
            rig.prepare_into(&request, &[page])
        })
        .collect();
    let rounds = 4;
    let least = Least::of(
        runs,
        || {
            timed(|| {
                for _ in 0..rounds {
                    for (at, &offset) in offsets.iter().enumerate() {
                        let at = at % 256 * PAGE;
                        file.read_exact_at(&mut buffer[at..at + PAGE], offset).expect("pread");
                    }
                }
            })
        },
        || rig.cost(&[(1, &small)], rounds * count),
    );
    let mut figures = vec![least.figure("read 4 KiB, cached", "pread", rounds * count, 1.6)];
    rig.release(mark);

    // 1 MiB after 1 MiB, from and to scattered pages.
    let pages = rig.pages(4 * LARGE / PAGE);
    let mut buffer = vec![1; 4 * LARGE];
    let count = DATA / LARGE;
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    for (at, part) in (0..count).zip(pages.chunks(LARGE / PAGE).cycle()) {
        let offset = (at * LARGE) as u64;
        let input = wire::ReadIn { fh, offset, size: LARGE as u32, ..<_>::default() };
        let request = message(opcode::READ, node, &[input.as_bytes()]);
        reads.push(rig.prepare_into(&request, part));
        let input = wire::WriteIn { fh, offset, size: LARGE as u32, ..<_>::default() };
        let mut request = message(opcode::WRITE, node, &[input.as_bytes()]);
        let whole = (request.len() + LARGE) as u32;
        request[..4].copy_from_slice(&whole.to_le_bytes());
        writes.push(rig.prepare(&[&request], part, &[size_of::<wire::WriteOut>()]));
    }
    let rounds = 8;
    let offsets = || (0..rounds * count).map(|at| (at % count, at % 4 * LARGE));
    let least = Least::of(
        runs,
        || {
            timed(|| {
                for (at, to) in offsets() {
                    let offset = (at * LARGE) as u64;
                    file.read_exact_at(&mut buffer[to..to + LARGE], offset).expect("pread");
                }
            })
        },
        || rig.cost(&[(1, &reads)], rounds * count),
    );
    figures.push(least.figure("read 1 MiB after 1 MiB", "pread", rounds * count, 1.4));
    let least = Least::of(
        runs,
        || {
            timed(|| {
                for (at, from) in offsets() {
                    let offset = (at * LARGE) as u64;
                    file.write_all_at(&buffer[from..from + LARGE], offset).expect("pwrite");
                }
            })
        },
        || rig.cost(&[(1, &writes)], rounds * count),
    );
    figures.push(least.figure("write 1 MiB after 1 MiB", "pwrite", rounds * count, 1.4));
    Ok(figures)
}

fn two_queues(folder: &Path, runs: usize) -> Figure {
    let mut rig = Rig::new(folder, 2);
    let parent = rig.lookup(rig.share(), "many");
    let names: Vec<String> = (0..500).map(|at| format!("file{at:05}")).collect();
    let nodes: Vec<u64> = names.iter().map(|name| rig.lookup(parent, name)).collect();
    // Each queue's requests lie together, as a guest's processors have memory of their own.
    let [one, two] = &[0, 1].map(|queue| {
        let mut list = Vec::new();
        for (name, &node) in names.iter().zip(&nodes).skip(queue).step_by(2) {
            list.push(lookup(&mut rig, parent, name));
            let request = message(opcode::GETATTR, node, &[&[0; 16]]);
            list.push(rig.prepare(&[&request], &[], &[size_of::<wire::AttrOut>()]));
        }
        list
    });
    let count = 40 * one.len();
    let mut least = Least { bare: Duration::MAX, device: Duration::MAX };
    for _ in 0..runs {
        least.bare = least.bare.min(rig.run(&[(1, one)], 2 * count));
        least.device = least.device.min(rig.run(&[(1, one), (2, two)], count));
    }
    least.figure("two queues on two cores", "one queue", 2 * count, 1.7)
}

/// As Markdown, whose columns are also straight on a terminal.
pub(crate) fn markdown(figures: &[Figure]) -> String {
    let mut text = format!(
        "| {:32} | {:22} | {:>9} | {:>9} | {:>5} | target   |\n|{}|{}|{}|{}|{}|{}|\n",
        "the device alone, one core",
        "beside",
        "bare, ns",
        "device, ns",
        "ratio",
        "-".repeat(34),
        "-".repeat(24),
        "-".repeat(11),
        "-".repeat(12),
        "-".repeat(7),
        "-".repeat(10),
    );
    for figure in figures {
        text += &format!(
            "| {:32} | {:22} | {:>9.0} | {:>10.0} | {:>5.2} | {:8} |\n",
            figure.name,
            figure.bare,
            figure.bare_ns,
            figure.device_ns,
            figure.ratio(),
            figure.judged()
        );
    }
    text
}

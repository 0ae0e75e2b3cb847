//! A shared folder in a guest, beside QEMU's microvm with virtiofsd: the same kernel, the same root image, the
//! same folder, the same commands. What they take is what the guest's clock says, and is told when it is known, so that
//! a long run that is cut short has figures too.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::Error;
use crate::peer::Qemu;
use crate::process::{self, now};
use crate::report::Summary;
use crate::stage;

/// Files of one folder of the tree.
const FOLDER: usize = 100;
/// MiB that are written and read one after another.
const LARGE_MIB: usize = 256;
/// RAM of the guests, in MiB.
const MEMORY_MIB: u64 = 1024;

/// What is done in `/mnt`, where the folder is. Each line says what, and how many microseconds it took. The clock is bash's
/// own: another program's start would be part of what is measured.
const SCRIPT: &str = r#"
cd /mnt
export HOME=/mnt GIT_CONFIG_NOSYSTEM=1
took() {
    local name=$1 before after; shift
    before=${EPOCHREALTIME/./}; "$@"; after=${EPOCHREALTIME/./}
    echo "$name $((after - before))" >> times
}
fresh() { echo 3 > /proc/sys/vm/drop_caches; }
# Programs are in memory then, and the index knows the inodes.
tar --version > warm; rm warm; python3 -c 'import mmap'; git -C tree status > warm; rm warm; dd if=/dev/null of=warm 2> warm; rm warm
fresh; took status-fresh git -C tree status --porcelain
took status-again git -C tree status --porcelain
mkdir new
fresh; took untar tar xf files.tar -C new
fresh; took remove rm -rf new
"#;

/// The same with one large file.
const LARGE_SCRIPT: &str = r#"
fresh; took write dd if=/dev/zero of=large bs=1M count=LARGE status=none
fresh; took read dd if=large of=/dev/null bs=1M status=none
fresh; took mapped python3 -c '
import mmap
mapped = mmap.mmap(open("large").fileno(), 0, prot=mmap.PROT_READ)
sum(mapped[at] for at in range(0, len(mapped), 4096))'
rm large
"#;

/// What is measured: its name in the script and in the table, and how many times as fast as virtiofsd it is to be.
const SMALL_FIGURES: [(&str, &str, f64); 4] = [
    ("status-fresh", "`git status`, nothing cached", 2.0),
    ("status-again", "`git status` again", 2.0),
    ("untar", "`tar xf` of small files", 2.0),
    ("remove", "`rm -rf`", 2.0),
];

/// The same of [`LARGE_SCRIPT`].
const LARGE_FIGURES: [(&str, &str, f64); 3] = [
    ("write", "256 MiB written, 1 MiB after 1 MiB", 1.0),
    ("read", "256 MiB read, 1 MiB after 1 MiB", 1.0),
    ("mapped", "256 MiB mapped, a byte of each page", 1.0),
];

/// How often to look for what the script has said.
const LOOK: Duration = Duration::from_millis(500);

/// Reads a file whenever something has happened to it, and says what is in it now.
const WATCHER: &str = "
import ctypes, os
libc = ctypes.CDLL(None)
watch = libc.inotify_init1(0)
libc.inotify_add_watch(watch, b'/mnt', 0x10a)
last = open('/mnt/saved').read()
print('ready', flush=True)
while True:
    os.read(watch, 65536)
    text = open('/mnt/saved').read()
    if text.endswith('\\n') and text != last:
        print(text, end='', flush=True)
        last = text
";

/// Saves of that file, and those that are not counted.
const SAVES: usize = 20;
const COLD_SAVES: usize = 3;

/// What is measured and with what.
#[derive(Debug)]
pub struct Guest {
    /// The `cabana` program.
    pub cabana: PathBuf,
    /// QEMU's program.
    pub qemu: PathBuf,
    /// Its server.
    pub virtiofsd: PathBuf,
    /// The kernel that both boot.
    pub kernel: PathBuf,
    /// The root image that both have.
    pub image: PathBuf,
    /// Files of the tree, in hundreds.
    pub hundreds: usize,
    /// Whether the small files are all, and no large one is written and read.
    pub small: bool,
    /// A folder for files, on a file system in memory.
    pub work: PathBuf,
    /// Move into a root in memory first; see [`stage::enter`].
    pub stage: bool,
    /// Runs of each: the script warms itself.
    pub runs: usize,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Figures {
    beside: Vec<Figure>,
    /// From a save on the host until a watcher in the guest has read it, in milliseconds.
    notice: Summary,
}

/// One figure of both.
#[derive(Clone, Debug)]
struct Figure {
    name: &'static str,
    cabana: Summary,
    virtiofsd: Summary,
    target: f64,
}

impl Guest {
    /// Measures, with `progress` told what comes.
    pub fn measure(&self, progress: &dyn Fn(&str)) -> Result<Figures, Error> {
        progress(&format!("making a tree of {} files", self.hundreds * FOLDER));
        let folder = self.work.join("folder");
        make(&folder, self.hundreds, self.small)?;
        if self.stage {
            progress("copying everything into memory");
            let programs: [&Path; 4] =
                [&self.cabana, &self.qemu, &self.virtiofsd, Path::new("/bin/sh")];
            stage::enter(&self.work.join("root"), &programs)?;
        }
        let mut all: [Vec<Vec<f64>>; 2] = Default::default();
        for turn in 1..=self.runs {
            for (side, kept) in all.iter_mut().enumerate() {
                let name = ["Cabana", "QEMU and virtiofsd"][side];
                progress(&format!("turn {turn} of {}: {name}", self.runs));
                let run = [Self::cabana, Self::microvm][side];
                aloud(&folder.join("times"), progress, || run(self, &folder))?;
                kept.push(self.times(&folder)?);
            }
        }
        let of = |side: usize, figure: usize| {
            let runs: Vec<f64> =
                all[side].iter().filter_map(|run| run.get(figure).copied()).collect();
            Summary::of(&runs).ok_or_else(|| Error::Content {
                path: folder.join("times"),
                why: "no run says it".to_owned(),
            })
        };
        let figure = |(at, (_, name, target))| {
            Ok(Figure { name, cabana: of(0, at)?, virtiofsd: of(1, at)?, target })
        };
        let beside = self.figures().enumerate().map(figure).collect::<Result<_, Error>>()?;
        progress("saves on the host and a watcher in the guest");
        Ok(Figures { beside, notice: self.notice(&folder)? })
    }

    /// What the script measures, in its order.
    fn figures(&self) -> impl Iterator<Item = (&'static str, &'static str, f64)> {
        let large: &[_] = if self.small { &[] } else { &LARGE_FIGURES };
        SMALL_FIGURES.iter().chain(large).copied()
    }

    /// What the script has said, in the order of the figures, in milliseconds.
    fn times(&self, folder: &Path) -> Result<Vec<f64>, Error> {
        let path = folder.join("times");
        let text = fs::read_to_string(&path).map_err(Error::file(&path))?;
        fs::remove_file(&path).map_err(Error::file(&path))?;
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|micros| micros.parse::<f64>().ok()).map(|micros| micros / 1e3)
        };
        let found: Option<Vec<f64>> = self.figures().map(|(name, ..)| of(name)).collect();
        found.ok_or_else(|| Error::Content {
            path,
            why: format!("something is missing in {text:?}"),
        })
    }

    /// Another process than the machine's saves the file: the machine's own doing is the guest's.
    fn notice(&self, folder: &Path) -> Result<Summary, Error> {
        let saved = folder.join("saved");
        fs::write(&saved, "before\n").map_err(Error::file(&saved))?;
        let started = |command: &mut Command| {
            let program = command.get_program().to_string_lossy().into_owned();
            let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
            child.map_err(|source| Error::Start { program, source })
        };
        let mut command = Command::new(&self.cabana);
        command.args(["run", "--share"]).arg(format!("{}:/mnt", folder.display()));
        let mut machine = started(command.args(["--", "python3", "-c", WATCHER]))?;
        let script = "while read line; do echo $line > saved; done";
        let mut editor = started(Command::new("/bin/sh").args(["-c", script]).current_dir(folder))?;
        let said = machine.stdout.take().into_iter().flat_map(|pipe| BufReader::new(pipe).lines());
        let mut said = said.map_while(Result::ok);
        let nothing = || Error::Content { path: saved.clone(), why: "nobody heard of it".into() };
        let mut hear =
            |wanted: &str| said.find(|line| line == wanted).map(|_| now()).ok_or_else(nothing);
        hear("ready")?;
        let mut took = Vec::new();
        for number in 0..COLD_SAVES + SAVES {
            let text = format!("version {number}");
            let start = now();
            let editor = editor.stdin.as_mut().ok_or_else(nothing)?;
            writeln!(editor, "{text}").map_err(Error::file(&saved))?;
            took.push(hear(&text)?.saturating_sub(start).as_secs_f64() * 1e3);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        for mut child in [machine, editor] {
            let _ = child.kill();
            let _ = child.wait();
        }
        Summary::of(&took[COLD_SAVES..]).ok_or_else(nothing)
    }

    fn cabana(&self, folder: &Path) -> Result<(), Error> {
        let mut command = Command::new(&self.cabana);
        command.args(["run", "--memory", &format!("{MEMORY_MIB}M"), "--share"]);
        command.arg(format!("{}:/mnt", folder.display())).args(["--", "bash", "/mnt/script"]);
        process::run(&mut command, 0).map(drop)
    }

    fn microvm(&self, folder: &Path) -> Result<(), Error> {
        let socket = self.work.join("socket");
        let mut server = Command::new(&self.virtiofsd);
        server.arg(format!("--socket-path={}", socket.display()));
        // Without a pool of threads it is faster, on one processor above all.
        server
            .arg("--thread-pool-size=0")
            .arg("-o")
            .arg(format!("source={},sandbox=chroot,cache=auto", folder.display()));
        let server = process::start(&mut server)?;
        while !socket.exists() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let init = "mount -t proc proc /proc && mount -t virtiofs cabana /mnt && bash /mnt/script; \
                    umount /mnt";
        let qemu = Qemu { program: self.qemu.clone(), memory_mib: MEMORY_MIB };
        let mut command = qemu.of_image(&self.kernel, &self.image, init);
        command
            .args(["-machine", "memory-backend=ram", "-object"])
            .arg(format!("memory-backend-memfd,id=ram,size={MEMORY_MIB}M,share=on"))
            .arg("-chardev")
            .arg(format!("socket,id=fs,path={}", socket.display()))
            .args(["-device", "vhost-user-fs-device,chardev=fs,tag=cabana"]);
        process::run(&mut command, 0)?;
        drop(server);
        let _ = fs::remove_file(&socket);
        Ok(())
    }
}

/// The folder: a repository whose files are all committed, the same files in an archive, and the script.
fn make(folder: &Path, hundreds: usize, small: bool) -> Result<(), Error> {
    let tree = folder.join("tree");
    for at in 0..hundreds {
        let below = tree.join(format!("folder-{at:03}"));
        fs::create_dir_all(&below).map_err(Error::file(&below))?;
        for number in 0..FOLDER {
            let file = below.join(format!("file-{number:04}.txt"));
            let line = format!("file {number} of folder {at}\n");
            fs::write(&file, line.repeat(1 + (at + number) % 40)).map_err(Error::file(&file))?;
        }
    }
    let large = LARGE_SCRIPT.replace("LARGE", &LARGE_MIB.to_string());
    let script = SCRIPT.to_owned() + if small { "" } else { &large };
    let commands = "tar cf files.tar tree; cd tree; git init -q; git add .; \
                    git -c user.name=a -c user.email=a@example.org commit -qm all";
    process::run(Command::new("sh").args(["-ec", commands]).current_dir(folder), 0)?;
    let path = folder.join("script");
    fs::write(&path, script).map_err(Error::file(&path))
}

/// Does something, and meanwhile tells each line that the script adds to a file: what was done, in microseconds.
fn aloud<T>(path: &Path, progress: &dyn Fn(&str), what: impl FnOnce() -> T + Send) -> T
where
    T: Send,
{
    thread::scope(|scope| {
        let (ended, end) = mpsc::channel::<()>();
        let worker = scope.spawn(move || {
            let _ended = ended;
            what()
        });
        let mut told = 0;
        loop {
            let last = end.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout);
            let text = fs::read_to_string(path).unwrap_or_default();
            let whole = text.rfind('\n').map_or(0, |at| at + 1);
            for line in text.get(told..whole).into_iter().flat_map(str::lines) {
                progress(&format!("microseconds: {line}"));
            }
            told = whole.max(told);
            if last {
                return worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
        }
    })
}

/// A table for people.
pub fn markdown(figures: &Figures, hundreds: usize) -> String {
    let mut table = format!(
        "| in a guest, {} files | Cabana, ms | QEMU and virtiofsd, ms | times as fast | target |\n\
         |---|---|---|---|---|\n",
        hundreds * FOLDER
    );
    let of = |summary: &Summary| {
        format!("{:.1} / {:.1} / {:.1}", summary.min, summary.median, summary.max)
    };
    for Figure { name, cabana, virtiofsd, target } in &figures.beside {
        let ratio = virtiofsd.median / cabana.median;
        let mark = if ratio >= *target { '✓' } else { '✗' };
        table += &format!(
            "| {name} | {} | {} | {ratio:.2} | ≥ {target} {mark} |\n",
            of(cabana),
            of(virtiofsd)
        );
    }
    table += &format!(
        "| a save on the host, until a watcher in the guest has read it | {} | – | | |\n",
        of(&figures.notice)
    );
    table
}

//! A command in a machine of its own, by Cabana and by two other products for sandboxes, microsandbox and boxlite, both of
//! which have libkrun inside.
//!
//! Cabana starts its default image, the others a busybox and nothing else, which is less work. Cabana's and microsandbox's
//! time begins with their process; boxlite is a library, and its time begins in a process that has loaded it.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use cabana_store::Store;
use tempfile::TempDir;

use crate::Error;
use crate::process;
use crate::report::Summary;

/// What the command says.
const WORD: &str = "here";
/// What is busybox in the others' root file system.
const NAMES: [&str; 3] = ["sh", "echo", "env"];
/// Makes boxlite's image and starts its machines.
const BOXLITE: &str = include_str!("products/boxlite.py");

/// What is measured.
#[derive(Clone, Debug)]
pub struct Products {
    /// The `cabana` program.
    pub cabana: PathBuf,
    /// The folder of microsandbox's wheel.
    pub microsandbox: PathBuf,
    /// The folder of boxlite's wheel.
    pub boxlite: PathBuf,
    /// A static busybox.
    pub busybox: PathBuf,
}

/// From the start to the command's first output, in milliseconds.
#[derive(Clone, Debug)]
pub struct Figures {
    cabana: Summary,
    microsandbox: Summary,
    boxlite: Summary,
}

impl Products {
    /// Measures each, one after the other, with copies of all that they need in the folder for temporary files: in
    /// the lab that is memory, and other files wait for the host.
    pub fn measure(&self, runs: usize, tell: &dyn Fn(&str)) -> Result<Figures, Error> {
        let folder = TempDir::new().map_err(Error::file(std::env::temp_dir()))?;
        let folder = folder.path();
        tell("cabana");
        let cabana = self.cabana(&inside(folder, "cabana")?, runs)?;
        tell("microsandbox");
        let microsandbox = self.microsandbox(&inside(folder, "microsandbox")?, runs)?;
        tell("boxlite");
        let boxlite = self.boxlite(&inside(folder, "boxlite")?, runs)?;
        Ok(Figures { cabana, microsandbox, boxlite })
    }

    fn cabana(&self, folder: &Path, runs: usize) -> Result<Summary, Error> {
        let store = Store::open()
            .map_err(|error| Error::Content { path: "the store".into(), why: error.to_string() })?;
        for kind in ["kernel", "agent", "image"] {
            copy(&store.path().join(kind), folder)?;
        }
        let program = folder.join("program");
        fs::copy(&self.cabana, &program).map_err(Error::file(&self.cabana))?;
        let mut run = Command::new(&program);
        run.args(["run", "--", "echo", WORD]).env("CABANA_HOME", folder);
        first_outputs(&mut run, runs)
    }

    fn microsandbox(&self, folder: &Path, runs: usize) -> Result<Summary, Error> {
        copy(&self.microsandbox.join("microsandbox/_bundled"), folder)?;
        let root = self.root(folder)?;
        let mut run = Command::new(folder.join("_bundled/bin/msb"));
        run.args(["run", "--no-tty", "--no-stdin"]).arg(root);
        run.args(["--", "/bin/echo", WORD]).env("HOME", folder).current_dir(folder);
        first_outputs(&mut run, runs)
    }

    fn boxlite(&self, folder: &Path, runs: usize) -> Result<Summary, Error> {
        copy(&self.boxlite.join("boxlite"), folder)?;
        let root = self.root(folder)?;
        let starts = (runs + 1).to_string();
        let mut run = Command::new("python3");
        run.args(["-c", BOXLITE]).arg(root).args([&starts, WORD]);
        run.env("HOME", folder).env("PYTHONPATH", folder).current_dir(folder);
        let said = process::run(&mut run, 0)?.stdout;
        let all: Vec<f64> = said.lines().filter_map(|line| line.parse().ok()).collect();
        summary(&all, &said)
    }

    /// The root file system of a peer.
    fn root(&self, folder: &Path) -> Result<PathBuf, Error> {
        let root = folder.join("root");
        for name in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var"] {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(Error::file(&path))?;
        }
        let busybox = root.join("bin/busybox");
        fs::copy(&self.busybox, &busybox).map_err(Error::file(&self.busybox))?;
        for name in NAMES {
            let path = root.join("bin").join(name);
            symlink("busybox", &path).map_err(Error::file(&path))?;
        }
        for (name, line) in
            [("passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("group", "root:x:0:\n")]
        {
            let path = root.join("etc").join(name);
            fs::write(&path, line).map_err(Error::file(&path))?;
        }
        Ok(root)
    }
}

/// Starts a command again and again.
fn first_outputs(command: &mut Command, runs: usize) -> Result<Summary, Error> {
    let mut all = Vec::new();
    for _ in 0..=runs {
        let ended = process::run(command, 0)?;
        if ended.stdout.trim() != WORD {
            return Err(nothing(&ended.stdout));
        }
        let first = ended.first_output.unwrap_or(ended.end);
        all.push(first.saturating_sub(ended.start).as_secs_f64() * 1e3);
    }
    summary(&all, WORD)
}

/// The first start of each does not count: files come from the disk, images are unpacked.
fn summary(all: &[f64], said: &str) -> Result<Summary, Error> {
    all.get(1..).and_then(Summary::of).ok_or_else(|| nothing(said))
}

fn nothing(said: &str) -> Error {
    Error::Content { path: "a machine".into(), why: format!("it said `{}`", said.trim()) }
}

fn inside(folder: &Path, name: &str) -> Result<PathBuf, Error> {
    let folder = folder.join(name);
    fs::create_dir(&folder).map_err(Error::file(&folder))?;
    Ok(folder)
}

/// Copies a folder into another one; holes stay holes.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    process::run(Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to), 0).map(drop)
}

impl Figures {
    /// A table for people.
    pub fn markdown(&self) -> String {
        let mut table = "| a command in a machine of its own, to its first output | least / median / greatest, ms | times Cabana's |\n\
                         |---|---|---|\n"
            .to_owned();
        let peers = [
            ("`cabana run`", &self.cabana),
            ("microsandbox: `msb run`", &self.microsandbox),
            ("boxlite, as a library", &self.boxlite),
        ];
        for (who, Summary { min, median, max, .. }) in peers {
            let times = median / self.cabana.median;
            let _ = writeln!(table, "| {who} | {min:.0} / {median:.0} / {max:.0} | {times:.1} |");
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_compares_medians() {
        let of = |values: &[f64]| Summary::of(values).unwrap();
        let figures = Figures {
            cabana: of(&[90.0, 100.0, 140.0]),
            microsandbox: of(&[900.0]),
            boxlite: of(&[1250.0]),
        };
        let table = figures.markdown();
        assert!(table.contains("| `cabana run` | 90 / 100 / 140 | 1.0 |"), "{table}");
        assert!(table.contains("| 900 / 900 / 900 | 9.0 |"), "{table}");
        assert!(table.contains("| 1250 / 1250 / 1250 | 12.5 |"), "{table}");
    }

    #[test]
    fn the_first_start_does_not_count_and_another_output_is_an_error() {
        let say = |words: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", words]);
            command
        };
        assert_eq!(first_outputs(&mut say("echo here"), 2).unwrap().runs, 2);
        let error = first_outputs(&mut say("echo there"), 2).unwrap_err();
        assert!(error.to_string().contains("there"), "{error}");
        assert!(first_outputs(&mut say("exit 3"), 2).is_err());
        assert!(summary(&[1.0], "nothing").is_err());
    }
}

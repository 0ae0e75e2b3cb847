//! Bringing the share back, step by step. Each step is written down like a change of the guest's, so a
//! rollback can itself be undone; the plan stands in the journal until all is done, so one that was
//! interrupted is completed by the next.

use std::fs::{self, File};
use std::io;

use cabana_os::tree::{self, Attributes, Entry, Handle, InodeKind, InodeStat};
use serde::{Deserialize, Serialize};

use crate::JournalError;
use crate::home::Home;
use crate::kept::Kept;
use crate::log::Log;
use crate::past::Tree;
use crate::plan::{Changed, Plan, Request, Step};
use crate::record::{Before, Content, Event, Ident, Place, Record};
use crate::recorder::SESSION;
use crate::state::{resolve_last, voided};

/// What a rollback has done.
#[derive(Debug)]
pub struct Outcome {
    /// What was not as it was then, and what of it was refused.
    pub changed: Vec<Changed>,
    /// Steps that the host refused, each a sentence; what they were about is still kept.
    pub failed: Vec<String>,
    /// The record to roll back to, to undo this; `None` if nothing was done.
    pub undo: Option<u64>,
    /// Another rollback had been interrupted and was completed first.
    pub completed: bool,
}

/// A plan as it stands in the journal.
#[derive(Serialize, Deserialize)]
struct Pending {
    /// The record that announces it.
    begun: u64,
    steps: Vec<Step>,
}

/// Brings a journal's share back. Nothing may use the journal meanwhile.
pub fn rollback(home: &Home, request: &Request) -> Result<Outcome, JournalError> {
    let mut work = Work::open(home)?;
    let mut failed = Vec::new();
    let completed = work.complete(&mut failed)?;
    let refused = || JournalError::host("roll back", &home.share);
    crate::check_goes_back_to(&work.records, request.to)?;
    let plan = Plan::make(&work.root, &work.kept, &work.records, request).map_err(refused())?;
    let mut undo = None;
    if !plan.steps.is_empty() {
        let begun = work.write(Event::RollbackBegun { to: request.to }).map_err(refused())?;
        undo = Some(begun);
        let pending = Pending { begun, steps: plan.steps };
        write_plan(home, &pending).map_err(refused())?;
        work.run(&pending, &mut failed)?;
    }
    Ok(Outcome { changed: plan.changed, failed, undo, completed })
}

/// A journal and its share, held by this process.
struct Work<'a> {
    home: &'a Home,
    root: Handle,
    kept: Kept,
    log: Log,
    records: Vec<Record>,
    _lock: File,
}

impl<'a> Work<'a> {
    fn open(home: &'a Home) -> Result<Self, JournalError> {
        let lock = home.lock()?;
        let root =
            Handle::of_directory(&home.share).map_err(JournalError::host("open", &home.share))?;
        let kept = Kept::open(&home.kept).map_err(JournalError::host("open", &home.kept))?;
        let (mut log, records) = Log::open(&home.log())?;
        let numbers = kept.numbers().map_err(JournalError::host("read", &home.kept))?;
        log.skip_to(numbers.last().map_or(0, |last| last + 1));
        let mut work = Self { home, root, kept, log, records, _lock: lock };
        if let Some(event) = resolve_last(&work.records, &work.root) {
            work.write(event).map_err(JournalError::host("write", home.log()))?;
        }
        Ok(work)
    }

    fn write(&mut self, event: Event) -> io::Result<u64> {
        let seq = self.log.append(SESSION, event.clone())?;
        self.records.push(Record { seq, time: 0, session: SESSION, event });
        Ok(seq)
    }

    /// Completes a rollback that was interrupted; false if there is none.
    fn complete(&mut self, failed: &mut Vec<String>) -> Result<bool, JournalError> {
        let path = self.home.plan();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(JournalError::host("read", path)(error)),
        };
        let why = "it is no plan of a rollback";
        let pending =
            postcard::from_bytes(&bytes).map_err(|_| JournalError::Damaged { path, at: 0, why })?;
        self.run(&pending, failed)?;
        Ok(true)
    }

    /// Makes all steps of a plan that are not made yet, and ends it.
    fn run(&mut self, pending: &Pending, failed: &mut Vec<String>) -> Result<(), JournalError> {
        let void = voided(&self.records);
        let made: Vec<Event> = self
            .records
            .iter()
            .filter(|record| record.seq > pending.begun && !void.contains(&record.seq))
            .map(|record| record.event.clone())
            .collect();
        for step in &pending.steps {
            if made.iter().any(|event| step.is_announced_by(event)) {
                continue;
            }
            if let Err(error) = self.step(step, pending.begun) {
                failed.push(format!("{}: {error}", step.place()));
            }
        }
        let refused = || JournalError::host("end the rollback in", &self.home.folder);
        self.log.append(SESSION, Event::RollbackEnded).map_err(refused())?;
        let event = Event::RollbackEnded;
        let seq = self.log.next() - 1;
        self.records.push(Record { seq, time: 0, session: SESSION, event });
        self.log.sync().map_err(refused())?;
        fs::remove_file(self.home.plan()).map_err(refused())
    }

    fn step(&mut self, step: &Step, begun: u64) -> io::Result<()> {
        match step {
            Step::Take { path, inode } => self.take(path, inode),
            Step::Move { from, to, inode } => self.move_to(from, to, inode),
            Step::Make { path, kept, len, attributes } => {
                self.make(path, *kept, *len, &attributes.clone().into())
            }
            Step::Content { at, kept, len, attributes } => {
                self.content(at, *kept, *len, &attributes.clone().into(), begun)
            }
            Step::Attributes { at, attributes } => self.attributes(at, &attributes.clone().into()),
        }
    }

    fn take(&mut self, path: &[u8], inode: &Ident) -> io::Result<()> {
        let place = Place::Share(path.to_vec());
        let stat = Tree::look(&self.root, &place)?;
        let Some(stat) = stat.filter(|stat| Ident::of(stat).inode() == inode.inode()) else {
            return Ok(());
        };
        let number = self.log.next();
        // As it is now: an earlier step may have changed what was in it.
        let inode = Ident::of(&stat);
        let event = Event::Move { from: place, to: Place::Kept(number), inode, over: false };
        self.write(event)?;
        self.at(path, |from| {
            let name = Kept::name(number);
            let kept = self.kept.entry(&name);
            if stat.kind != InodeKind::Directory && from.move_to(&kept).is_ok() {
                return Ok(());
            }
            // Another file system, or a folder, of which all is kept but its number.
            self.kept.copy(number, &from.handle()?, true)?;
            from.remove()
        })?;
        self.write(Event::Done { of: number, after: None }).map(drop)
    }

    fn move_to(&mut self, from: &Place, to: &[u8], inode: &Ident) -> io::Result<()> {
        let target = Place::Share(to.to_vec());
        if let Some(stat) = Tree::look(&self.root, &target)? {
            let is_moved = Ident::of(&stat).inode() == inode.inode() || !self.exists(from)?;
            return if is_moved { Ok(()) } else { Err(io::ErrorKind::AlreadyExists.into()) };
        }
        let inode = Ident::of(&InodeStat::of(&self.handle(from)?)?);
        let event = Event::Move { from: from.clone(), to: target.clone(), inode, over: false };
        let of = self.write(event)?;
        self.at(to, |target| match from {
            Place::Share(from) => self.at(from, |from| from.move_to(target)),
            Place::Kept(number) => self.bring(*number, target),
            Place::Lost => Err(io::ErrorKind::NotFound.into()),
        })?;
        let after = Tree::look(&self.root, &target)?.as_ref().map(Ident::of);
        self.write(Event::Done { of, after }).map(drop)
    }

    /// Brings what is kept under a number to a name that is free.
    fn bring(&self, number: u64, to: &Entry) -> io::Result<()> {
        let name = Kept::name(number);
        let kept = self.kept.entry(&name);
        match kept.move_to(to) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                let unfinished = Entry { name: UNFINISHED, ..*to };
                unfinished.remove()?;
                unfinished.copy_of(&kept.handle()?)?;
                unfinished.move_to(to)?;
                kept.remove()
            }
            result => result,
        }
    }

    fn make(
        &mut self,
        path: &[u8],
        kept: u64,
        len: Option<u64>,
        attributes: &Attributes,
    ) -> io::Result<()> {
        let place = Place::Share(path.to_vec());
        if Tree::look(&self.root, &place)?.is_some() {
            return Ok(());
        }
        let of = self.write(Event::Make { at: place.clone(), of: None })?;
        self.at(path, |target| {
            let unfinished = Entry { name: UNFINISHED, ..*target };
            unfinished.remove()?;
            let file = unfinished.create()?;
            self.fill(&file, Some(kept), len)?;
            attributes.apply(&unfinished.handle()?)?;
            unfinished.move_to(target)
        })?;
        let after = Tree::look(&self.root, &place)?.as_ref().map(Ident::of);
        self.write(Event::Done { of, after }).map(drop)
    }

    fn content(
        &mut self,
        at: &Place,
        kept: Option<u64>,
        len: Option<u64>,
        attributes: &Attributes,
        begun: u64,
    ) -> io::Result<()> {
        let handle = self.handle(at)?;
        let stat = InodeStat::of(&handle)?;
        if stat.kind != InodeKind::Regular {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // What stands there now is kept once, before the first byte of it changes.
        let is_ours = |record: &&Record| {
            matches!(&record.event, Event::Change { at: other, content: Content::Kept, .. }
                if other == at && record.seq > begun)
        };
        let begun = self.records.iter().find(is_ours).map(|record| record.seq);
        let of = if let Some(begun) = begun {
            begun
        } else {
            let number = self.log.next();
            self.kept.image(number, &handle, stat.size, true)?;
            self.write(Event::Change {
                at: at.clone(),
                inode: Ident::of(&stat),
                before: Attributes::of(&handle)?.into(),
                content: Content::Kept,
                opening: number,
            })?
        };
        self.fill(&tree::open_to_write(&handle)?, kept, len)?;
        attributes.apply(&handle)?;
        let after = Ident::of(&InodeStat::of(&handle)?);
        self.write(Event::Settled { of, at: at.clone(), after }).map(drop)
    }

    /// Gives a file the content that is kept, or its own, and that length.
    fn fill(&self, file: &File, kept: Option<u64>, len: Option<u64>) -> io::Result<()> {
        if let Some(number) = kept {
            let from = tree::open_to_read(&self.kept.handle(number)?)?;
            file.set_len(0)?;
            tree::copy_content(&from, file)?;
        }
        len.map_or(Ok(()), |len| file.set_len(len))
    }

    fn attributes(&mut self, at: &Place, attributes: &Attributes) -> io::Result<()> {
        let handle = self.handle(at)?;
        let before = Attributes::of(&handle)?;
        if before == *attributes {
            return Ok(());
        }
        let opening = self.log.next();
        let of = self.write(Event::Change {
            at: at.clone(),
            inode: Ident::of(&InodeStat::of(&handle)?),
            before: Before::from(before),
            content: Content::Same,
            opening,
        })?;
        attributes.apply(&handle)?;
        let after = Some(Ident::of(&InodeStat::of(&handle)?));
        self.write(Event::Done { of, after }).map(drop)
    }

    fn handle(&self, place: &Place) -> io::Result<Handle> {
        match place {
            Place::Share(path) => self.at(path, handle_of),
            Place::Kept(number) => self.kept.handle(*number),
            Place::Lost => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn exists(&self, place: &Place) -> io::Result<bool> {
        match place {
            Place::Kept(number) => Ok(self.kept.handle(*number).is_ok()),
            place => Ok(Tree::look(&self.root, place)?.is_some()),
        }
    }

    /// Does something with an entry of the share, in a folder that may be closed to its owner.
    fn at<T>(&self, path: &[u8], mut act: impl FnMut(&Entry) -> io::Result<T>) -> io::Result<T> {
        let path = tree::path_from_bytes(path);
        let Some(parent) = path.parent() else {
            return act(&Entry { directory: &self.root, name: c"." });
        };
        let folder = self.root.beneath(parent)?;
        let name = tree::c_name(&path)?;
        let entry = Entry { directory: &folder, name: &name };
        match act(&entry) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let before = Attributes::of(&folder)?;
                Attributes { mode: before.mode | 0o700, ..before.clone() }.apply(&folder)?;
                let result = act(&entry);
                before.apply(&folder)?;
                result
            }
            result => result,
        }
    }
}

fn handle_of(entry: &Entry) -> io::Result<Handle> {
    entry.handle()
}

/// The name of what is being brought from another file system.
const UNFINISHED: &std::ffi::CStr = c".cabana-rollback-unfinished";

impl Step {
    /// Does the record say that the step was made? Contents and attributes can be made again.
    fn is_announced_by(&self, event: &Event) -> bool {
        match (self, event) {
            (
                Self::Take { path, inode },
                Event::Move { from, to: Place::Kept(_), inode: other, .. },
            ) => *from == Place::Share(path.clone()) && inode.inode() == other.inode(),
            (
                Self::Move { from, to, inode },
                Event::Move { from: was, to: is, inode: other, .. },
            ) => from == was && *is == Place::Share(to.clone()) && inode.inode() == other.inode(),
            _ => false,
        }
    }

    /// What it is about.
    fn place(&self) -> Place {
        match self {
            Self::Take { path, .. } | Self::Move { to: path, .. } | Self::Make { path, .. } => {
                Place::Share(path.clone())
            }
            Self::Content { at, .. } | Self::Attributes { at, .. } => at.clone(),
        }
    }
}

fn write_plan(home: &Home, pending: &Pending) -> io::Result<()> {
    let bytes = postcard::to_stdvec(pending).map_err(io::Error::other)?;
    let new = home.plan().with_extension("new");
    fs::write(&new, bytes)?;
    File::options().write(true).open(&new)?.sync_all()?;
    fs::rename(&new, home.plan())
}

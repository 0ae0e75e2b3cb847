//! What is to be done to bring the share back to a moment: how that differs from now, what cannot be
//! brought back and why, and the steps that do the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use cabana_os::tree::{self, Attributes, Handle, InodeKind, InodeStat, path_bytes};
use serde::{Deserialize, Serialize};

use crate::kept::Kept;
use crate::past::{Difference, Inner, Left, Slot, Tree, Was};
use crate::record::{Before, Ident, Place, Record};

/// What is to be brought back.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The last record that stays in force; zero for the state before the first.
    pub to: u64,
    /// Only what this session changed.
    pub session: Option<u32>,
    /// Only these paths, from the share on, and what is below them; all if there are none.
    pub paths: Vec<PathBuf>,
    /// Also what the host has changed since; it is kept too.
    pub force: bool,
}

/// How the present differs from the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// There was nothing.
    Added,
    /// There is nothing now.
    Deleted,
    /// Something else stood there.
    Replaced,
    /// What stands elsewhere now stood there.
    Moved {
        /// Where it stands now.
        now: PathBuf,
    },
    /// It had another content.
    Content,
    /// It had other permissions, times or extended attributes.
    Attributes,
}

/// A path that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The path from the share on.
    pub path: PathBuf,
    /// How it differs.
    pub what: What,
    /// Why it cannot be brought back, if it cannot.
    pub refused: Option<String>,
}

/// One step. Made twice it does no more than once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// What stands at a place goes into the journal.
    Take { path: Vec<u8>, inode: Ident },
    /// A name moves, to one that is free.
    Move { from: Place, to: Vec<u8>, inode: Ident },
    /// A file that is gone is made of what is kept of its content.
    Make { path: Vec<u8>, kept: u64, len: Option<u64>, attributes: Before },
    /// A file gets its content back, and its attributes.
    Content { at: Place, kept: Option<u64>, len: Option<u64>, attributes: Before },
    /// An inode gets its attributes back.
    Attributes { at: Place, attributes: Before },
}

/// A plan.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) changed: Vec<Changed>,
    pub(crate) steps: Vec<Step>,
}

/// A path of the plan in the making.
#[derive(Debug)]
struct Item {
    slot: Slot,
    now: Option<InodeStat>,
    what: What,
    refused: Option<String>,
}

type Items = BTreeMap<Vec<u8>, Item>;

/// Where things go that stand elsewhere now: from there to where they stood.
type Moves = BTreeMap<Vec<u8>, Vec<u8>>;

fn moves(items: &Items) -> Moves {
    let elsewhere = |(path, item): (&Vec<u8>, &Item)| {
        Some((moved_from(path, &item.slot)?.to_vec(), path.clone()))
    };
    items.iter().filter_map(elsewhere).collect()
}

/// Where in the share what stood at a path has to come from.
fn moved_from<'a>(path: &[u8], slot: &'a Slot) -> Option<&'a [u8]> {
    match &slot.source {
        Some(Place::Share(source)) if source != path || slot.leaves => Some(source),
        _ => None,
    }
}

impl Plan {
    pub(crate) fn make(
        root: &Handle,
        kept: &Kept,
        records: &[Record],
        request: &Request,
    ) -> io::Result<Self> {
        let (slots, hidden) = Tree::at(records, request.to, request.session).into_slots();
        let left = Left::by(records);
        let moving: BTreeSet<Vec<u8>> = slots
            .iter()
            .filter_map(|(place, slot)| match place {
                Place::Share(path) => moved_from(path, slot).map(<[u8]>::to_vec),
                _ => None,
            })
            .collect();
        let mut items = Items::new();
        for (place, slot) in slots {
            let Place::Share(path) = &place else { continue };
            // What stands there now may go along with a folder above it.
            let goes_along = !slot.leaves && parents(path).any(|above| moving.contains(above));
            let now = if goes_along { None } else { Tree::look(root, &place)? };
            let Some(what) = difference(root, kept, &place, &slot, now.as_ref())? else { continue };
            let since = match &now {
                None if goes_along => Difference::None,
                now => left.difference(&place, now.as_ref(), request.session),
            };
            let refused = refusal(since, request.force)
                .or_else(|| is_lost(kept, &slot))
                .or_else(|| is_gone(&slot, &what, now.as_ref()));
            items.insert(path.clone(), Item { slot, now, what, refused });
        }
        select(&mut items, &request.paths);
        refuse_dependents(root, &mut items)?;
        let mut steps = self::steps(root, kept, &items)?;
        if request.paths.is_empty() {
            steps.splice(0..0, inner_steps(root, kept, hidden)?);
        }
        // What stood elsewhere is told there.
        let moves = moves(&items);
        let told = |path: &Vec<u8>, item: &Item| match &item.slot.source {
            Some(source) => !item.slot.leaves || *source != Place::Share(path.clone()),
            None => !moves.contains_key(path),
        };
        let changed =
            items.iter().filter(|(path, item)| told(path, item)).map(|(path, item)| Changed {
                path: tree::path_from_bytes(path),
                what: item.what.clone(),
                refused: item.refused.clone(),
            });
        Ok(Self { changed: changed.collect(), steps })
    }
}

/// How what stands at a place differs from what stood there; `None` if it does not.
fn difference(
    root: &Handle,
    kept: &Kept,
    place: &Place,
    slot: &Slot,
    now: Option<&InodeStat>,
) -> io::Result<Option<What>> {
    Ok(match (&slot.source, now) {
        (None, None) => None,
        (None, Some(_)) => slot.leaves.then_some(What::Added),
        (Some(source), Some(now)) if source == place && !slot.leaves => {
            let Some(handle) = handle(root, place)? else { return Ok(None) };
            if let Some(was) = slot.was.content.filter(|_| now.kind == InodeKind::Regular)
                && !same_content(kept, was, &handle, now)?
            {
                return Ok(Some(What::Content));
            }
            let differs = |was: &Attributes| {
                Attributes::of(&handle).map(|is| !same_attributes(was, &is, now.kind))
            };
            let differs = slot.was.attributes.as_ref().map(differs).transpose()?.unwrap_or(false);
            differs.then_some(What::Attributes)
        }
        (Some(Place::Share(_)), _) if slot.leaves || slot.source.as_ref() != Some(place) => {
            let now = slot.source.as_ref().and_then(Place::path).unwrap_or_default();
            Some(What::Moved { now })
        }
        (Some(_), None) => Some(What::Deleted),
        (Some(_), Some(_)) => Some(What::Replaced),
    })
}

/// Times of folders follow from what happens in them, those of access from anybody's reading.
fn same_attributes(was: &Attributes, is: &Attributes, kind: InodeKind) -> bool {
    let without_times = |of: &Attributes| {
        let modified = if kind == InodeKind::Directory { (0, 0) } else { of.modified };
        Attributes { accessed: (0, 0), modified, ..of.clone() }
    };
    without_times(was) == without_times(is)
}

fn same_content(kept: &Kept, was: Was, handle: &Handle, now: &InodeStat) -> io::Result<bool> {
    let Some(number) = was.kept else { return Ok(was.len.is_none_or(|len| len == now.size)) };
    // What is no longer kept is told later.
    let Ok(old) = kept.handle(number) else { return Ok(false) };
    let len = InodeStat::of(&old)?.size.min(was.len.unwrap_or(u64::MAX));
    if len != now.size {
        return Ok(false);
    }
    let (old, new) = (tree::open_to_read(&old)?, tree::open_to_read(handle)?);
    cabana_os::file::same_content(&old, &new, len)
}

fn refusal(since: Difference, force: bool) -> Option<String> {
    let sentence = match since {
        Difference::None => return None,
        Difference::Session(session) => {
            return Some(format!("session {session} changed it later: roll that back too"));
        }
        Difference::Made => "the host has made something else there since",
        Difference::Removed => "the host has removed or moved it since",
        Difference::Changed => "the host has changed it since",
    };
    (!force).then(|| format!("{sentence}; --force brings back what was, and keeps what is"))
}

/// What is no longer kept cannot be brought back.
fn is_lost(kept: &Kept, slot: &Slot) -> Option<String> {
    let source = match slot.source {
        Some(Place::Kept(number)) => Some(number),
        _ => None,
    };
    let content = slot.was.content.and_then(|was| was.kept);
    let missing = |number: &u64| kept.handle(*number).is_err();
    let lost =
        matches!(slot.source, Some(Place::Lost)) || [source, content].iter().flatten().any(missing);
    let sentence = "what it was at that moment is no longer kept, since the journal was full; \
                    choose an earlier moment or leave it out";
    lost.then(|| sentence.to_owned())
}

/// What only changed, and is gone, can be made anew if all of its content is kept.
fn is_gone(slot: &Slot, what: &What, now: Option<&InodeStat>) -> Option<String> {
    let whole = slot.was.content.is_some_and(|was| was.kept.is_some());
    let gone = *what == What::Deleted && now.is_none();
    let in_share = matches!(slot.source, Some(Place::Share(_)));
    (gone && in_share && !whole).then(|| "the host has removed it since".to_owned())
}

/// Leaves only these paths, what is below them, and what cannot be brought back without: the other
/// end of a move, and the folders above.
fn select(items: &mut Items, paths: &[PathBuf]) {
    if paths.is_empty() {
        return;
    }
    let wanted: Vec<_> = paths.iter().map(|path| path_bytes(path)).collect();
    let within =
        |path: &[u8]| wanted.iter().any(|wanted| wanted.is_empty() || is_within(path, wanted));
    let mut chosen: BTreeSet<Vec<u8>> = items.keys().filter(|path| within(path)).cloned().collect();
    loop {
        let mut more: BTreeSet<Vec<u8>> = BTreeSet::new();
        for (path, item) in items.iter() {
            let source = moved_from(path, &item.slot);
            if chosen.contains(path) {
                more.extend(
                    source.filter(|source| items.contains_key(*source)).map(<[u8]>::to_vec),
                );
                more.extend(
                    parents(path).filter(|above| items.contains_key(*above)).map(<[u8]>::to_vec),
                );
            } else if source.is_some_and(|source| chosen.contains(source)) {
                more.insert(path.clone());
            }
        }
        let before = chosen.len();
        chosen.append(&mut more);
        if chosen.len() == before {
            break;
        }
    }
    items.retain(|path, _| chosen.contains(path));
}

fn is_within(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// The folders above a path, the nearest first.
fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(at, _)| &path[..at])
}

/// What depends on what is refused is refused too, until nothing more is.
fn refuse_dependents(root: &Handle, items: &mut Items) -> io::Result<()> {
    let moves = moves(items);
    loop {
        let mut refused: Vec<(Vec<u8>, String)> = Vec::new();
        let stays = |path: &[u8]| items.get(path).is_none_or(|item| item.refused.is_some());
        for (path, item) in items.iter().filter(|(_, item)| item.refused.is_none()) {
            if let Some(source) = moved_from(path, &item.slot) {
                let is_there = Tree::look(root, &Place::Share(source.to_vec()))?.is_some();
                if !is_there {
                    refused
                        .push((path.clone(), "the host has removed or moved it since".to_owned()));
                } else if let Some(why) = items.get(source).and_then(|item| item.refused.as_ref()) {
                    let name = String::from_utf8_lossy(source);
                    refused.push((path.clone(), format!("it is {name} now, and {why}")));
                }
            }
            // What would be moved away to a place that is refused stays.
            if let Some(target) = moves.get(path)
                && stays(target)
            {
                let name = String::from_utf8_lossy(target);
                refused.push((path.clone(), format!("{name}, where it was, stays as it is")));
            }
            if leaves(path, item)
                && let Some(now) = &item.now
                && now.kind == InodeKind::Directory
                && !moves.contains_key(path)
                && let Some(name) = remains_below(root, items, path)?
            {
                let sentence = format!("it holds {name}, which stays");
                refused.push((path.clone(), sentence));
            }
            let above = parents(path).find_map(|above| items.get(above));
            if item.slot.source.is_some()
                && above.is_some_and(|above| above.refused.is_some() && above.now.is_none())
            {
                refused.push((path.clone(), "its folder cannot be brought back".to_owned()));
            }
        }
        if refused.is_empty() {
            return Ok(());
        }
        for (path, why) in refused {
            if let Some(item) = items.get_mut(&path) {
                item.refused.get_or_insert(why);
            }
        }
    }
}

/// Does what stands at the path now go into the journal?
fn leaves(path: &[u8], item: &Item) -> bool {
    let is_own = matches!(&item.slot.source, Some(Place::Share(source)) if source == path);
    let makes_room = item.slot.source.is_some() && !is_own;
    item.refused.is_none() && item.now.is_some() && (item.slot.leaves || makes_room)
}

/// Something in a folder that neither goes nor moves away.
fn remains_below(root: &Handle, items: &Items, path: &[u8]) -> io::Result<Option<String>> {
    let Ok(folder) = root.beneath(&tree::path_from_bytes(path)) else {
        return Ok(None);
    };
    for name in tree::names(&folder)? {
        let child = [path, b"/", name.to_bytes()].concat();
        let goes = items.get(&child).is_some_and(|item| leaves(&child, item));
        if !goes {
            return Ok(Some(String::from_utf8_lossy(name.to_bytes()).into_owned()));
        }
    }
    Ok(None)
}

/// The steps: first everything goes that must, the deepest first; then everything comes, a folder
/// before what is in it; then contents and attributes, those of folders last.
fn steps(root: &Handle, kept: &Kept, items: &Items) -> io::Result<Vec<Step>> {
    let mut moves = moves(items);
    moves.retain(|_, path| items.get(path).is_some_and(|item| item.refused.is_none()));
    let mut going: BTreeSet<&[u8]> = moves.keys().map(Vec::as_slice).collect();
    going.extend(items.iter().filter(|(path, item)| leaves(path, item)).map(|(path, _)| &path[..]));
    let (mut steps, mut staged) = (Vec::new(), BTreeMap::new());
    for path in going.iter().rev() {
        let place = Place::Share(path.to_vec());
        let Some(stat) = Tree::look(root, &place)? else { continue };
        let inode = Ident::of(&stat);
        if let Some(target) = moves.get(*path) {
            let to = stage(root, path, staged.len())?;
            staged.insert(&target[..], (to.clone(), inode));
            steps.push(Step::Move { from: place, to, inode });
        } else {
            steps.push(Step::Take { path: path.to_vec(), inode });
        }
    }
    let wanted = || items.iter().filter(|(_, item)| item.refused.is_none());
    for (path, item) in wanted() {
        if let Some((from, inode)) = staged.get(&path[..]) {
            let (from, inode) = (Place::Share(from.clone()), *inode);
            steps.push(Step::Move { from, to: path.clone(), inode });
        } else if let Some(Place::Kept(number)) = item.slot.source {
            let inode = Ident::of(&InodeStat::of(&kept.handle(number)?)?);
            let from = Place::Kept(number);
            steps.push(Step::Move { from, to: path.clone(), inode });
        } else if item.slot.source.is_some()
            && item.now.is_none()
            && let (Some(Was { kept: Some(kept), len }), Some(attributes)) =
                (item.slot.was.content, &item.slot.was.attributes)
        {
            let attributes = attributes.clone().into();
            steps.push(Step::Make { path: path.clone(), kept, len, attributes });
        }
    }
    let (mut attributes_of_all, mut seen) = (Vec::new(), BTreeSet::new());
    for (path, item) in wanted() {
        let (path, slot) = (path.clone(), &item.slot);
        // What has several names is one thing.
        if slot.source.is_none() || slot.thing.is_some_and(|thing| !seen.insert(thing)) {
            continue;
        }
        let Some(attributes) = slot.was.attributes.clone().map(Before::from) else { continue };
        match slot.was.content {
            Some(Was { kept, len }) => {
                steps.push(Step::Content { at: Place::Share(path), kept, len, attributes });
            }
            None => attributes_of_all.push(Step::Attributes { at: Place::Share(path), attributes }),
        }
    }
    steps.extend(attributes_of_all.into_iter().rev());
    Ok(steps)
}

/// The steps for what has no name in the share then, but had one when it changed.
fn inner_steps(root: &Handle, kept: &Kept, hidden: Vec<(Place, Inner)>) -> io::Result<Vec<Step>> {
    let mut steps = Vec::new();
    for (at, was) in hidden {
        let handle = match at {
            Place::Kept(number) => kept.handle(number).ok(),
            _ => handle(root, &at).ok().flatten(),
        };
        let (Some(handle), Some(attributes)) = (handle, was.attributes) else { continue };
        // With one name nobody sees what it is.
        if InodeStat::of(&handle)?.links < 2 {
            continue;
        }
        let attributes = attributes.into();
        steps.push(match was.content {
            Some(Was { kept, len }) => Step::Content { at, kept, len, attributes },
            None => Step::Attributes { at, attributes },
        });
    }
    Ok(steps)
}

/// Where something waits between two names: on its own mount, in that mount's first folder, which
/// nobody moves.
fn stage(root: &Handle, path: &[u8], index: usize) -> io::Result<Vec<u8>> {
    let mount = |folder: &[u8]| {
        let folder = root.beneath(&tree::path_from_bytes(folder))?;
        InodeStat::of(&folder).map(|stat| stat.mount)
    };
    let mut above: Vec<&[u8]> = parents(path).collect();
    above.push(b"");
    let own = mount(above[0])?;
    let mut highest = above[0];
    for folder in &above[1..] {
        if mount(folder)? != own {
            break;
        }
        highest = folder;
    }
    let separator: &[u8] = if highest.is_empty() { b"" } else { b"/" };
    Ok([highest, separator, format!(".cabana-rollback-{index}").as_bytes()].concat())
}

fn handle(root: &Handle, place: &Place) -> io::Result<Option<Handle>> {
    let Some(path) = place.path() else { return Ok(None) };
    let Some(parent) = path.parent() else { return root.try_clone().map(Some) };
    let folder = root.beneath(parent)?;
    let name = tree::c_name(&path)?;
    tree::Entry { directory: &folder, name: &name }.handle().map(Some)
}

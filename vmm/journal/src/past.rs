//! Walking the records: backward, to what the share was at a moment, and forward, to what the guest
//! left in it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;

use cabana_os::tree::{self, Attributes, Entry, Handle, InodeStat};

use crate::record::{Content, Event, Ident, Inode, Place, Record};
use crate::state::voided;

/// What stood at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Where that is now; `None` if nothing stood there.
    pub(crate) source: Option<Place>,
    /// How it was another than it is now.
    pub(crate) was: Inner,
    /// Tells things apart that had several names.
    pub(crate) thing: Option<usize>,
    /// What stands there now was elsewhere, or nowhere.
    pub(crate) leaves: bool,
}

/// How an inode was another than it is now, whatever its names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inner {
    /// What its content was, if it was another.
    pub(crate) content: Option<Was>,
    /// What its attributes were, if they were others.
    pub(crate) attributes: Option<Attributes>,
}

/// A file's content: of what is kept under a number, or its own as it is now; and of that all, or the
/// first bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Was {
    pub(crate) kept: Option<u64>,
    pub(crate) len: Option<u64>,
}

/// A name on the way back: where what it names is now, and which thing that is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    source: Option<Place>,
    thing: Option<usize>,
}

impl Name {
    const NOTHING: Self = Self { source: None, thing: None };

    /// What is there now, as it is.
    fn now(place: &Place) -> Self {
        Self { source: Some(place.clone()), thing: None }
    }
}

/// The share at a moment, as far as it is not what it is now.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    names: BTreeMap<Place, Name>,
    /// What changed otherwise than by its names.
    things: Vec<Inner>,
    by_inode: HashMap<Inode, usize>,
    /// Where things stand now that did not exist.
    new: Vec<Place>,
}

impl Tree {
    /// What the share was after the record `to`, if nothing of `session` had happened since; of every
    /// session if that is `None`.
    pub(crate) fn at(records: &[Record], to: u64, session: Option<u32>) -> Self {
        let void = voided(records);
        let ours = |record: &&Record| {
            !void.contains(&record.seq) && session.is_none_or(|session| record.session == session)
        };
        let mut tree = Self::default();
        for record in records.iter().rev().take_while(|record| record.seq > to).filter(ours) {
            tree.undo(record);
        }
        for (record, at) in spanning(records, to, &void) {
            if session.is_none_or(|session| record.session == session)
                && let Event::Change { inode, before, content, .. } = &record.event
            {
                tree.unchange(&at, inode, record.seq, *content, before.clone().into());
            }
        }
        tree
    }

    /// What stands at a place in the share now.
    pub(crate) fn look(root: &Handle, place: &Place) -> io::Result<Option<InodeStat>> {
        let Some(path) = place.path() else { return Ok(None) };
        let Some(folder) = path.parent() else { return InodeStat::of(root).map(Some) };
        match root.beneath(folder) {
            Ok(folder) => Entry { directory: &folder, name: &tree::c_name(&path)? }.stat(),
            Err(error) => match error.kind() {
                // Also where a link stands in place of a folder.
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// The places where something else stood, and those whose inodes were elsewhere, in order: a folder
    /// before what is in it.
    ///
    /// Beside them what was otherwise though it has no name in the share then: its inode may have
    /// names there of which no record speaks.
    pub(crate) fn into_slots(self) -> (BTreeMap<Place, Slot>, Vec<(Place, Inner)>) {
        let Self { mut names, things, new, .. } = self;
        let in_share = |place: &Place| matches!(place, Place::Share(_));
        let source = |(place, name): (&Place, &Name)| {
            name.source.clone().filter(|source| in_share(source) && source != place)
        };
        // What stood in the journal goes back there.
        let mut leaving: BTreeSet<Place> = names.iter().filter_map(source).collect();
        leaving.extend(new.into_iter().filter(in_share));
        // What stays where it is while a folder above it moves away has to move too.
        let stays = |(place, name): (&Place, &Name)| {
            (name.source.as_ref() == Some(place)).then(|| place.clone())
        };
        let alone: Vec<_> = names
            .iter()
            .filter_map(stays)
            .filter(|place| above(place).any(|above| leaving.contains(&above)))
            .collect();
        leaving.extend(alone);
        let visible: HashSet<usize> = names
            .iter()
            .filter(|(place, name)| in_share(place) && name.source.is_some())
            .filter_map(|(_, name)| name.thing)
            .collect();
        let hidden = names
            .iter()
            .filter(|(place, _)| !in_share(place))
            .filter_map(|(_, name)| Some((name.source.clone()?, name.thing?)))
            .filter(|(_, thing)| !visible.contains(thing))
            .filter_map(|(source, thing)| Some((source, things.get(thing)?.clone())))
            .collect();
        names.retain(|place, name| {
            in_share(place) && (*name != Name::now(place) || leaving.contains(place))
        });
        for place in &leaving {
            names.entry(place.clone()).or_insert(Name::NOTHING);
        }
        let slot = |(place, Name { source, thing }): (Place, Name)| {
            let was = thing.and_then(|thing| things.get(thing)).cloned().unwrap_or_default();
            let leaves = leaving.contains(&place);
            (place, Slot { source, was, thing, leaves })
        };
        (names.into_iter().map(slot).collect(), hidden)
    }

    fn undo(&mut self, record: &Record) {
        match &record.event {
            Event::Make { at, of } => {
                let (name, _) = self.take(at);
                // What happened to an inode by a name that goes, happened to it by the other.
                if let (Some(of), Some(thing)) = (of, name.thing) {
                    let other = self.get(of);
                    if other.source.is_some() {
                        self.names.insert(of.clone(), Name { thing: Some(thing), ..other });
                    }
                }
                self.new.extend(name.source);
                self.put(at, Name::NOTHING, Vec::new());
            }
            Event::Move { from, to, over, .. } => {
                let (name, below) = self.take(to);
                self.put(from, name, below);
                if *over {
                    let (name, below) = self.take(&Place::Kept(record.seq));
                    self.put(to, name, below);
                } else {
                    self.put(to, Name::NOTHING, Vec::new());
                }
            }
            Event::Swap { one, other, .. } => {
                let (first, second) = (self.take(one), self.take(other));
                self.put(other, first.0, first.1);
                self.put(one, second.0, second.1);
            }
            Event::Change { at, inode, before, content, .. } => {
                self.unchange(at, inode, record.seq, *content, before.clone().into());
            }
            _ => {}
        }
    }

    fn unchange(
        &mut self,
        at: &Place,
        inode: &Ident,
        seq: u64,
        content: Content,
        attributes: Attributes,
    ) {
        let name = self.get(at);
        let known = name.thing.or_else(|| self.by_inode.get(&inode.inode()).copied());
        let thing = known.unwrap_or(self.things.len());
        if thing == self.things.len() {
            self.things.push(Inner::default());
        }
        self.by_inode.insert(inode.inode(), thing);
        let was = &mut self.things[thing];
        match content {
            Content::Same => {}
            Content::Kept => was.content = Some(Was { kept: Some(seq), len: None }),
            Content::Prefix(len) => {
                let was = was.content.get_or_insert_default();
                was.len = Some(was.len.map_or(len, |known| known.min(len)));
            }
        }
        was.attributes = Some(attributes);
        if name.source.is_some() {
            self.names.insert(at.clone(), Name { thing: Some(thing), ..name });
        }
    }

    /// What stands at a place.
    fn get(&self, place: &Place) -> Name {
        if let Some(name) = self.names.get(place) {
            return name.clone();
        }
        let Place::Share(path) = place else { return Name::now(place) };
        // The nearest folder above of which something is known says it.
        let slashes = path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/');
        for (at, _) in slashes {
            if let Some(name) = self.names.get(&Place::Share(path[..at].to_vec())) {
                return match &name.source {
                    Some(Place::Share(now)) => {
                        Name::now(&Place::Share([now, &path[at..]].concat()))
                    }
                    // What is kept of a folder is empty.
                    _ => Name::NOTHING,
                };
            }
        }
        Name::now(place)
    }

    /// Takes what stands at a place, with what is known below it by the rest of its path.
    fn take(&mut self, place: &Place) -> (Name, Vec<(Vec<u8>, Name)>) {
        let name = self.get(place);
        self.names.remove(place);
        (name, take_below(&mut self.names, place))
    }

    fn put(&mut self, place: &Place, name: Name, below: Vec<(Vec<u8>, Name)>) {
        if let Place::Share(path) = place {
            for (rest, name) in below {
                self.names.insert(Place::Share([path.as_slice(), &rest].concat()), name);
            }
        }
        self.names.insert(place.clone(), name);
    }
}

/// The folders above a place in the share, the nearest first.
fn above(place: &Place) -> impl Iterator<Item = Place> {
    let path = match place {
        Place::Share(path) => path.as_slice(),
        Place::Kept(_) | Place::Lost => &[],
    };
    let slashes = path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(at, _)| Place::Share(path[..at].to_vec()))
}

/// Takes what a map has below a folder, by the rest of its path, which begins with a slash.
fn take_below<T>(map: &mut BTreeMap<Place, T>, folder: &Place) -> Vec<(Vec<u8>, T)> {
    let Place::Share(path) = folder else { return Vec::new() };
    let first = Place::Share([path.as_slice(), b"/"].concat());
    let behind = Place::Share([path.as_slice(), b"0"].concat());
    let keys: Vec<_> = map.range(first..behind).map(|(key, _)| key.clone()).collect();
    let mut taken = Vec::with_capacity(keys.len());
    for key in keys {
        if let (Place::Share(whole), Some(value)) = (&key, map.remove(&key)) {
            taken.push((whole[path.len()..].to_vec(), value));
        }
    }
    taken
}

/// Changes of content that began before `to` and were not complete there, with the file's place then:
/// files that the guest had open. Such a file comes back as it was before it was opened.
fn spanning<'a>(records: &'a [Record], to: u64, void: &HashSet<u64>) -> Vec<(&'a Record, Place)> {
    let mut open: BTreeMap<u64, (&Record, Place)> = BTreeMap::new();
    for record in records.iter().take_while(|record| record.seq <= to) {
        match &record.event {
            // The first change of an opening goes back furthest, but for what it left unkept.
            Event::Change { at, content, opening, .. }
                if *content == Content::Kept
                    || (*content != Content::Same && *opening == record.seq) =>
            {
                open.insert(*opening, (record, at.clone()));
            }
            Event::Settled { of, .. } => {
                open.remove(of);
            }
            Event::Move { from, to, .. } if !void.contains(&record.seq) => {
                for (_, place) in open.values_mut() {
                    *place = moved(place, from, to);
                }
            }
            event if ends_openings(event) => open.clear(),
            _ => {}
        }
    }
    let next = records.iter().find(|record| record.seq > to);
    if next.is_none_or(|next| ends_openings(&next.event)) {
        open.clear();
    }
    open.into_values().collect()
}

/// A machine that had files open is gone before another, or a rollback, begins.
fn ends_openings(event: &Event) -> bool {
    matches!(event, Event::Opened | Event::RollbackBegun { .. })
}

/// Where a place is after `from` has become `to`.
fn moved(place: &Place, from: &Place, to: &Place) -> Place {
    match (place, from, to) {
        _ if place == from => to.clone(),
        (Place::Share(path), Place::Share(from), Place::Share(to))
            if path.starts_with(from) && path.get(from.len()) == Some(&b'/') =>
        {
            Place::Share([to, &path[from.len()..]].concat())
        }
        _ => place.clone(),
    }
}

/// What the guest left, as far as it touched it.
#[derive(Debug, Default)]
pub(crate) struct Left {
    names: BTreeMap<Place, Option<Inode>>,
    inodes: HashMap<Inode, Inodes>,
}

#[derive(Debug, Default)]
struct Inodes {
    ident: Option<Ident>,
    /// Openings that changed it and have not settled.
    open: u32,
    session: u32,
}

/// How something differs from what the guest left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// It is as the guest left it, or nobody can tell.
    None,
    /// Something new stands where the guest left nothing.
    Made,
    /// It is gone.
    Removed,
    /// It is another, or has another content.
    Changed,
    /// Another session touched it later.
    Session(u32),
}

impl Left {
    pub(crate) fn by(records: &[Record]) -> Self {
        let void = voided(records);
        let mut left = Self::default();
        let mut announced: HashMap<u64, &Record> = HashMap::new();
        let mut openings: HashMap<u64, Inode> = HashMap::new();
        for record in records.iter().filter(|record| !void.contains(&record.seq)) {
            match &record.event {
                Event::Make { .. } | Event::Swap { .. } => {
                    announced.insert(record.seq, record);
                }
                Event::Move { from, to, inode, over } => {
                    announced.insert(record.seq, record);
                    if *over {
                        left.rename(to, &Place::Kept(record.seq));
                    }
                    left.rename(from, to);
                    left.names.insert(from.clone(), None);
                    left.names.insert(to.clone(), Some(inode.inode()));
                    left.note(*inode, record.session);
                }
                Event::Change { at, inode, content, opening, .. } => {
                    left.names.insert(at.clone(), Some(inode.inode()));
                    announced.insert(record.seq, record);
                    let known = left.inodes.entry(inode.inode()).or_default();
                    known.session = record.session;
                    if *content == Content::Same {
                        known.ident = None;
                    } else if *opening == record.seq {
                        openings.insert(*opening, inode.inode());
                        known.open += 1;
                    }
                }
                Event::Done { of, after } => {
                    left.done(announced.get(of).copied(), *after, record.session);
                }
                Event::Settled { of, after, .. } => {
                    if let Some(known) = openings.remove(of).and_then(|i| left.inodes.get_mut(&i)) {
                        known.open = known.open.saturating_sub(1);
                    }
                    left.note(*after, record.session);
                }
                _ => {}
            }
        }
        left
    }

    fn note(&mut self, ident: Ident, session: u32) {
        let known = self.inodes.entry(ident.inode()).or_default();
        known.ident = Some(ident);
        known.session = session;
    }

    fn done(&mut self, announced: Option<&Record>, after: Option<Ident>, session: u32) {
        let Some(record) = announced else { return };
        match (&record.event, after) {
            (Event::Make { at, of }, Some(after)) => {
                self.names.insert(at.clone(), Some(after.inode()));
                // What only gets one more name may be open, and written to, by another.
                if of.is_none() {
                    self.inodes.insert(after.inode(), Inodes::default());
                }
                self.note(after, session);
            }
            (Event::Swap { one, other, .. }, _) => {
                let (first, second) = (self.take(one), self.take(other));
                self.put(other, first);
                self.put(one, second);
            }
            (_, Some(after)) => self.note(after, session),
            _ => {}
        }
    }

    fn rename(&mut self, from: &Place, to: &Place) {
        let taken = self.take(from);
        self.put(to, taken);
    }

    /// Takes what is known of a place and of those below it, by the rest of their paths.
    fn take(&mut self, from: &Place) -> Vec<(Vec<u8>, Option<Inode>)> {
        let mut taken = take_below(&mut self.names, from);
        taken.extend(self.names.remove(from).map(|name| (Vec::new(), name)));
        taken
    }

    fn put(&mut self, to: &Place, taken: Vec<(Vec<u8>, Option<Inode>)>) {
        for (rest, name) in taken {
            let place = match to {
                Place::Share(path) => Place::Share([path.as_slice(), &rest].concat()),
                other => other.clone(),
            };
            self.names.insert(place, name);
        }
    }

    /// How what stands at a place now differs from what the guest left there; of `session` alone, if
    /// only its changes are meant.
    pub(crate) fn difference(
        &self,
        place: &Place,
        now: Option<&InodeStat>,
        session: Option<u32>,
    ) -> Difference {
        let Some(name) = self.names.get(place) else { return Difference::None };
        let known = name.and_then(|inode| self.inodes.get(&inode));
        if let (Some(known), Some(session)) = (known, session)
            && known.session != session
        {
            return Difference::Session(known.session);
        }
        match (name, now) {
            (None, None) => Difference::None,
            (None, Some(_)) => Difference::Made,
            (Some(_), None) => Difference::Removed,
            (Some(inode), Some(now)) => {
                let same_inode = *inode == Ident::of(now).inode();
                let settled = known.filter(|known| known.open == 0);
                let as_left = settled.and_then(|known| known.ident).is_none_or(|left| left.is(now));
                if same_inode && as_left { Difference::None } else { Difference::Changed }
            }
        }
    }
}

//! `cabana share`: what guests did to folders that have a journal. What machines that are up are shown is in
//! [`shares`].

use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cabana_journal::{
    Changed, Event, Home, Place, Record, Request, What, accept, diff, journals, log, rollback,
};
use serde::Serialize;
use serde_json::json;

use crate::args::{DiffArgs, ShareArgs, ShareLsArgs, ShareVerb};
use crate::units::Moment;
use crate::{FAILED, Failure, shares};

pub(crate) fn share(args: ShareArgs) -> Result<u8, Failure> {
    match args.verb {
        ShareVerb::Add(args) => shares::add(args),
        ShareVerb::Ls(ShareLsArgs { machine: Some(machine), session, json }) => {
            shares::list(machine, session, json)
        }
        ShareVerb::Ls(ShareLsArgs { json, .. }) => list(json),
        ShareVerb::Rm(args) => shares::remove(args),
        ShareVerb::Log { folder, json } => show_log(&folder, json),
        ShareVerb::Diff(args) => show_diff(&args),
        ShareVerb::Rollback { what, force } => roll_back(&what, force),
        ShareVerb::Accept { folder, to, json } => take(&folder, to, json),
    }
}

fn list(json: bool) -> Result<u8, Failure> {
    let homes = Home::list(&journals())?;
    if json {
        let entry = |home: &Home| json!({ "id": home.id, "folder": text(&home.share) });
        return print_json(&homes.iter().map(entry).collect::<Vec<_>>());
    }
    if homes.is_empty() {
        println!("no folder has a journal; `cabana run --share FOLDER:journal` makes one");
    }
    for home in homes {
        println!("{}  {}", home.id, home.share.display());
    }
    Ok(0)
}

fn show_log(folder: &Path, json: bool) -> Result<u8, Failure> {
    let home = Home::find(&journals(), folder)?;
    let records = log(&home)?;
    if json {
        return print_json(&records.iter().map(Line::of).collect::<Vec<_>>());
    }
    for record in &records {
        if let Some(line) = sentence(record) {
            println!("{:>8}  {}  {line}", record.seq, utc(record.time));
        }
    }
    Ok(0)
}

fn show_diff(args: &DiffArgs) -> Result<u8, Failure> {
    let home = Home::find(&journals(), &args.folder)?;
    let changed = diff(&home, &request(&home, args, false)?)?;
    if args.json {
        return print_json(&changed.iter().map(Difference::of).collect::<Vec<_>>());
    }
    if changed.is_empty() {
        println!("{} is as it was", home.share.display());
    }
    for changed in &changed {
        println!("{}", line(changed));
    }
    Ok(0)
}

fn roll_back(args: &DiffArgs, force: bool) -> Result<u8, Failure> {
    let home = Home::find(&journals(), &args.folder)?;
    let outcome = rollback(&home, &request(&home, args, force)?)?;
    let refused = outcome.changed.iter().filter(|changed| changed.refused.is_some()).count();
    let whole = refused == 0 && outcome.failed.is_empty();
    if args.json {
        print_json(&json!({
            "changed": outcome.changed.iter().map(Difference::of).collect::<Vec<_>>(),
            "failed": outcome.failed,
            "undo": outcome.undo,
            "completed_another": outcome.completed,
        }))?;
    } else {
        if outcome.completed {
            println!("a rollback that had been interrupted was completed first");
        }
        for changed in &outcome.changed {
            println!("{}", line(changed));
        }
        let brought = outcome.changed.len() - refused;
        println!("{}: {brought} paths brought back, {refused} not", home.share.display());
        if let Some(undo) = outcome.undo {
            println!("`cabana share rollback {} --to {undo}` undoes this", home.id);
        }
        for failed in &outcome.failed {
            eprintln!("cabana: the host refused a step: {failed}");
        }
    }
    Ok(if whole { 0 } else { FAILED })
}

fn take(folder: &Path, to: Option<Moment>, json: bool) -> Result<u8, Failure> {
    let home = Home::find(&journals(), folder)?;
    let to = to.map(|to| record_at(&home, to)).transpose()?;
    let records = accept(&home, to)?;
    if json {
        return print_json(&json!({ "records": records }));
    }
    println!("{}: {records} records accepted", home.share.display());
    Ok(0)
}

fn request(home: &Home, args: &DiffArgs, force: bool) -> Result<Request, Failure> {
    let to = args.to.map_or(Ok(0), |to| record_at(home, to))?;
    let paths = args.paths.iter().map(|path| inside(home, path));
    let paths = paths.collect::<Result<_, Failure>>()?;
    Ok(Request { to, session: args.session, paths, force })
}

/// The last record of a moment.
fn record_at(home: &Home, moment: Moment) -> Result<u64, Failure> {
    let at = match moment {
        Moment::Record(number) => return Ok(number),
        Moment::At(at) => at,
        Moment::Ago(ago) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            now.saturating_sub(ago)
        }
    };
    let records = log(home)?;
    let last = records.iter().take_while(|record| Duration::from_nanos(record.time) <= at).last();
    Ok(last.map_or(0, |record| record.seq))
}

/// A path in the folder, as the user names it: from there, or from here.
fn inside(home: &Home, path: &Path) -> Result<PathBuf, Failure> {
    let path = path.strip_prefix(&home.share).unwrap_or(path);
    let plain = path.components().filter(|part| *part != Component::CurDir);
    let plain: PathBuf = plain.collect();
    if plain.components().all(|part| matches!(part, Component::Normal(_))) {
        return Ok(plain);
    }
    let (path, share) = (path.display(), home.share.display());
    Err(Failure::new(format!("{path} is no path in {share}; name it from that folder on")))
}

/// A path that differs, for programs.
#[derive(Serialize)]
struct Difference {
    path: String,
    what: &'static str,
    /// Where it is now, if it was moved.
    now: Option<String>,
    /// Why it is not brought back.
    refused: Option<String>,
}

impl Difference {
    fn of(changed: &Changed) -> Self {
        let now = match &changed.what {
            What::Moved { now } => Some(text(now)),
            _ => None,
        };
        let refused = changed.refused.clone();
        Self { path: text(&changed.path), what: word(&changed.what), now, refused }
    }
}

fn word(what: &What) -> &'static str {
    match what {
        What::Added => "added",
        What::Deleted => "deleted",
        What::Replaced => "replaced",
        What::Moved { .. } => "moved",
        What::Content => "content",
        What::Attributes => "attributes",
    }
}

fn line(changed: &Changed) -> String {
    let mut line = format!("{:10}  {}", word(&changed.what), changed.path.display());
    if let What::Moved { now } = &changed.what {
        line += &format!(" -> {}", now.display());
    }
    if let Some(why) = &changed.refused {
        line += &format!("\n            not brought back: {why}");
    }
    line
}

/// A record for programs.
#[derive(Serialize)]
struct Line {
    seq: u64,
    time_ns: u64,
    session: u32,
    what: String,
    event: Event,
}

impl Line {
    fn of(record: &Record) -> Self {
        let Record { seq, time, session, event } = record.clone();
        let what = sentence(record).unwrap_or_default();
        Self { seq, time_ns: time, session, what, event }
    }
}

/// What happened; nothing for what only completes another record.
fn sentence(record: &Record) -> Option<String> {
    Some(match &record.event {
        Event::Opened => "a machine began".to_owned(),
        Event::Make { at, .. } => format!("make {at}"),
        Event::Move { from, to: Place::Kept(_), .. } => format!("remove {from}"),
        Event::Move { from: Place::Kept(_), to, .. } => format!("bring back {to}"),
        Event::Move { from, to, over: true, .. } => format!("rename {from} over {to}"),
        Event::Move { from, to, .. } => format!("rename {from} to {to}"),
        Event::Swap { one, other, .. } => format!("exchange {one} and {other}"),
        Event::Change { at, content: cabana_journal::Content::Same, .. } => {
            format!("change the attributes of {at}")
        }
        Event::Change { at, .. } => format!("write to {at}"),
        Event::Void { of } => format!("{of} failed"),
        Event::Dropped { kept } => format!("what {kept} kept was given up, to make room"),
        Event::RollbackBegun { to } => format!("rollback to {to}"),
        Event::RollbackEnded => "end of the rollback".to_owned(),
        Event::Done { .. } | Event::Settled { .. } => return None,
    })
}

/// Nanoseconds since 1970 as a date and time in UTC.
fn utc(time: u64) -> String {
    let seconds = time / 1_000_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's civil_from_days: years that begin in March, eras of 400 of them.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * day + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let day = day - (153 * from_march + 2) / 5 + 1;
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn print_json(value: &impl Serialize) -> Result<u8, Failure> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let at = |seconds: u64| utc(seconds * 1_000_000_000);
        assert_eq!(at(0), "1970-01-01 00:00:00");
        assert_eq!(at(951_782_399), "2000-02-28 23:59:59");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(at(1_709_251_200), "2024-03-01 00:00:00");
        assert_eq!(at(4_102_444_799), "2099-12-31 23:59:59");
    }
}

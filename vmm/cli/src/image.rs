//! `cabana image`: the store's root images.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::sync::atomic::Ordering;
use std::thread;

use cabana_builder::{Flavour, Options, build_image};
use cabana_os::signals::{HANGUP, INTERRUPT, Signals, TERMINATE};
use cabana_store::{Kind, Listing, Store};
use serde::Serialize;
use serde_json::json;

use crate::args::{ImageArgs, ImageVerb};
use crate::machines::print;
use crate::{Failure, terminal};

/// Back to the beginning of the line, and nothing on it (ECMA-48: CR, EL).
const CLEAR_LINE: &str = "\r\x1b[2K";

pub(crate) fn image(args: ImageArgs) -> Result<u8, Failure> {
    let store = Store::open()?;
    match args.verb {
        ImageVerb::Build { flavour, rebuild, json } => build(&store, &flavour, rebuild, json)?,
        ImageVerb::List { json } => list(&store, json)?,
        ImageVerb::Remove { name, json } => {
            let freed = store.remove(Kind::Image, &name)?;
            if json {
                print(&json!({ "image": name, "freed": freed.0 }))?;
            } else {
                println!("removed image {name}: {freed} freed");
            }
        }
    }
    Ok(0)
}

fn build(store: &Store, flavour: &str, rebuild: bool, json: bool) -> Result<(), Failure> {
    let flavour = Flavour::find(flavour)?;
    let options = Options { rebuild, ..Options::default() };
    let (mut signals, cancel) =
        (Signals::new(&[HANGUP, INTERRUPT, TERMINATE])?, options.cancel.clone());
    thread::spawn(move || {
        while signals.wait().is_some() {
            cancel.store(true, Ordering::SeqCst);
        }
    });
    // One line that changes on a terminal, and a line for each step elsewhere.
    let terminal = io::stderr().is_terminal();
    let mut step = None;
    let built = build_image(store, &flavour, &options, &mut |progress| {
        if terminal {
            let line = format!("image {}: {progress}", flavour.name);
            let width = terminal::size().cols.saturating_sub(1);
            let fitting: String = line.chars().take(width.into()).collect();
            eprint!("{CLEAR_LINE}{fitting}");
        } else if step.replace(progress.step) != Some(progress.step) {
            eprintln!("image {}: {}", flavour.name, progress.step);
        }
    });
    if terminal {
        eprint!("{CLEAR_LINE}");
    }
    if options.cancel.load(Ordering::SeqCst) {
        return Err(Failure { status: 130, sentence: "the build was stopped".to_owned() });
    }
    let built = built?;
    if json {
        return print(&json!({ "image": flavour.name, "size": built.size().0 }));
    }
    println!("image {}: {}", flavour.name, built.size());
    Ok(())
}

fn list(store: &Store, json: bool) -> Result<(), Failure> {
    let listings = store.list()?;
    if json {
        let entries: Vec<_> = listings.iter().map(Entry::of).collect();
        println!("{}", serde_json::to_string_pretty(&entries)?);
        return Ok(());
    }
    if listings.is_empty() {
        println!("the store is empty; `cargo xtask setup` fills it");
    }
    for listing in listings {
        println!("{listing}");
    }
    Ok(())
}

/// One artifact for programs.
#[derive(Serialize)]
struct Entry<'a> {
    kind: &'static str,
    name: &'a str,
    allocated_bytes: u64,
    /// What the builder remembered of it.
    facts: Option<&'a BTreeMap<String, String>>,
    /// Why it cannot be used.
    problem: Option<String>,
}

impl<'a> Entry<'a> {
    fn of(listing: &'a Listing) -> Self {
        Self {
            kind: listing.kind.as_str(),
            name: &listing.name,
            allocated_bytes: listing.allocated.0,
            facts: listing.artifact.as_ref().ok().map(|artifact| &artifact.manifest.facts),
            problem: listing.artifact.as_ref().err().map(ToString::to_string),
        }
    }
}

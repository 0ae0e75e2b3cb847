//! `cabana share add`, `ls` and `rm`: folders of this host in a machine that is up.

use cabana_api::{Call, Outcome, Place, ShareSpec};
use serde_json::json;

use crate::args::{ShareAddArgs, ShareRmArgs};
use crate::machines::{print, table};
use crate::sessions::{ask, nonsense};
use crate::{Failure, machines};

pub(crate) fn add(args: ShareAddArgs) -> Result<u8, Failure> {
    let place = Place { machine: args.machine, session: args.session };
    for share in &args.shares {
        let share = machines::share(share)?;
        let call = Call::ShareAdd { place: place.clone(), share: share.clone() };
        ask(&place.machine, call)?;
        if args.json {
            print(&share)?;
        } else {
            println!("{} is on {}", share.host.display(), share.guest);
        }
    }
    Ok(0)
}

pub(crate) fn list(machine: String, session: Option<String>, json: bool) -> Result<u8, Failure> {
    let place = Place { machine, session };
    let Outcome::Shares(shares) = ask(&place.machine, Call::ShareList(place.clone()))? else {
        return Err(nonsense());
    };
    if json {
        print(&shares)?;
        return Ok(0);
    }
    let cells = |share: &ShareSpec| {
        let access = if share.read_only { "read-only" } else { "read-write" };
        [share.guest.clone(), access.to_owned(), share.host.display().to_string()]
    };
    let head = ["GUEST", "ACCESS", "HOST"].map(str::to_owned);
    table(&std::iter::once(head).chain(shares.iter().map(cells)).collect::<Vec<_>>());
    Ok(0)
}

pub(crate) fn remove(args: ShareRmArgs) -> Result<u8, Failure> {
    let place = Place { machine: args.machine, session: args.session };
    for guest in args.guests {
        let call = Call::ShareRemove { place: place.clone(), guest: guest.clone() };
        ask(&place.machine, call)?;
        if args.json {
            print(&json!({ "guest": guest, "removed": true }))?;
        } else {
            println!("{guest} is gone");
        }
    }
    Ok(0)
}

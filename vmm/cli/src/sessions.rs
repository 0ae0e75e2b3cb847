//! `cabana session`, `cp` and `forward`: what else is asked of a machine that is up.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{self, Path, PathBuf};

use cabana_api::{Call, CopySpec, Outcome, SessionLimits, SessionSpec, SessionStatus};
use cabana_os::tree::path_bytes;
use cabana_serve::{ClientError, Place};
use serde_json::json;

use crate::args::{
    CopyArgs, ForwardArgs, LimitArgs, SessionArgs, SessionMakeArgs, SessionNamedArgs, SessionVerb,
};
use crate::machines::{connect, named, print, table};
use crate::units::split_path;
use crate::{Failure, machines};

pub(crate) fn session(args: SessionArgs) -> Result<u8, Failure> {
    match args.verb {
        SessionVerb::Add(args) => add(&args),
        SessionVerb::Ls { machine, json } => list(&machine, json),
        SessionVerb::Set { which, limits } => set(&which, &limits),
        SessionVerb::Rm(args) => remove(&args),
    }
}

fn add(args: &SessionMakeArgs) -> Result<u8, Failure> {
    let policy = args.rules.spec()?;
    let spec = SessionSpec {
        name: args.which.session.clone(),
        limits: overlay(SessionLimits::default(), &args.limits),
        shares: args.shares.iter().map(machines::share).collect::<Result<_, _>>()?,
        network: args.network || policy.is_some(),
        policy,
    };
    let machine = args.which.machine.clone();
    match ask(&machine, Call::SessionCreate { machine: machine.clone(), spec })? {
        Outcome::Session(status) if args.which.json => print(&status)?,
        _ => println!("session {} is in {machine}", args.which.session),
    }
    Ok(0)
}

fn list(machine: &str, json: bool) -> Result<u8, Failure> {
    let Outcome::Sessions(all) = ask(machine, Call::SessionList(named(machine)))? else {
        return Err(nonsense());
    };
    if json {
        print(&all)?;
        return Ok(0);
    }
    let cells = |status: &SessionStatus| {
        let SessionStatus { name, uid, limits, pids, memory, disk, .. } = status;
        [
            name.clone(),
            uid.map_or_else(|| "-".to_owned(), |uid| uid.to_string()),
            of_limit((*pids).into(), limits.pids.map(u64::from), |count| count.to_string()),
            of_limit(*memory, limits.memory, size),
            of_limit(*disk, limits.disk, size),
        ]
    };
    let head = ["NAME", "USER", "PROCESSES", "MEMORY", "DISK"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(all.iter().map(cells)).collect();
    table(&rows);
    Ok(0)
}

fn set(which: &SessionNamedArgs, limits: &LimitArgs) -> Result<u8, Failure> {
    let (machine, session) = (which.machine.clone(), which.session.clone());
    let Outcome::Sessions(all) = ask(&machine, Call::SessionList(named(&machine)))? else {
        return Err(nonsense());
    };
    let Some(status) = all.into_iter().find(|status| status.name == session) else {
        return Err(Failure::new(format!("there is no session {session}")));
    };
    let limits = overlay(status.limits, limits);
    let asked = Call::SessionLimit { machine: machine.clone(), session: session.clone(), limits };
    match ask(&machine, asked)? {
        Outcome::Session(status) if which.json => print(&status)?,
        _ => println!("session {session} has its new limits"),
    }
    Ok(0)
}

fn remove(which: &SessionNamedArgs) -> Result<u8, Failure> {
    let (machine, session) = (which.machine.clone(), which.session.clone());
    ask(&machine, Call::SessionRemove { machine: machine.clone(), session: session.clone() })?;
    if which.json {
        print(&json!({ "machine": machine, "session": session, "removed": true }))?;
    } else {
        println!("session {session} is gone");
    }
    Ok(0)
}

/// One side of a copy.
enum Side {
    Host(PathBuf),
    Guest { machine: String, path: String },
}

pub(crate) fn copy(args: CopyArgs) -> Result<u8, Failure> {
    let (machine, guest, host, into) = match (side(&args.from), side(&args.to)) {
        (Side::Host(host), Side::Guest { machine, path }) => (machine, path, host, true),
        (Side::Guest { machine, path }, Side::Host(host)) => (machine, path, host, false),
        (Side::Host(_), Side::Host(_)) => {
            let why = "one side has to be in a machine, as in `cabana cp data.csv work:/root/`";
            return Err(Failure::new(why));
        }
        (Side::Guest { .. }, Side::Guest { .. }) => {
            return Err(Failure::new("one side has to be on this host; copy in two steps"));
        }
    };
    let copy = CopySpec { host: absolute(&host)?, guest };
    let place = cabana_api::Place { machine: machine.clone(), session: args.session };
    let call = if into { Call::CopyIn { place, copy } } else { Call::CopyOut { place, copy } };
    match ask(&machine, call)? {
        Outcome::Copied(copied) if args.json => print(&copied)?,
        Outcome::Copied(_) => {}
        _ => return Err(nonsense()),
    }
    Ok(0)
}

/// `MACHINE:PATH` is in a guest; with a slash before the colon it is a path of the host's, as for `scp`.
fn side(text: &str) -> Side {
    match split_path(text) {
        Some((machine, path)) if !machine.contains('/') && !machine.is_empty() => {
            Side::Guest { machine: machine.to_owned(), path: path.to_owned() }
        }
        _ => Side::Host(text.into()),
    }
}

/// The holder has a folder of its own. A slash at the end says something.
fn absolute(host: &Path) -> Result<PathBuf, Failure> {
    let slash = path_bytes(host).ends_with(b"/");
    let absolute = path::absolute(host)?;
    Ok(if slash { absolute.join("") } else { absolute })
}

pub(crate) fn forward(args: ForwardArgs) -> Result<u8, Failure> {
    let place = cabana_api::Place { machine: args.machine.clone(), session: args.session };
    let guest = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let mut client = connect(&Place::open()?, &args.machine)?;
    let mut listening = Vec::new();
    let forwards = args.forwards.iter().map(|ports| (ports, false));
    for (ports, back) in forwards.chain(args.back.iter().map(|ports| (ports, true))) {
        let place = place.clone();
        let call = if back {
            Call::ForwardBack { place, guest: guest(ports.guest), host: ports.host }
        } else {
            Call::Forward { place, host: ports.host, guest: guest(ports.guest) }
        };
        let Outcome::Forward(status) = client.call(call, |_| {})? else { return Err(nonsense()) };
        let to = if back { ports.host } else { guest(ports.guest) };
        listening.push((status.listens, to, back));
    }
    if args.json {
        let entry =
            |(listens, to, back)| json!({ "listens": listens, "leads_to": to, "back": back });
        print(&listening.into_iter().map(entry).collect::<Vec<_>>())?;
    } else {
        for (listens, to, back) in &listening {
            let (here, there) =
                if *back { (&*args.machine, "the host") } else { ("the host", &*args.machine) };
            println!("{listens} of {here} leads to {to} of {there}");
        }
    }
    io::stdout().flush()?;
    // The holder ends them with this connection, so with this process however that ends. What else it
    // says is of no matter here.
    while client.next_line().is_ok() {}
    Err(ClientError::Gone.into())
}

/// Asks the holder of a machine for one thing.
pub(crate) fn ask(machine: &str, call: Call) -> Result<Outcome, Failure> {
    let mut client = connect(&Place::open()?, machine)?;
    Ok(client.call(call, |_| {})?)
}

fn overlay(limits: SessionLimits, args: &LimitArgs) -> SessionLimits {
    let cpus = args.cpus.map(|cpus| (cpus * 1000.0).round() as u32);
    SessionLimits {
        memory: args.memory.or(limits.memory),
        pids: args.pids.or(limits.pids),
        cpu_weight: args.cpu_weight.or(limits.cpu_weight),
        cpu_max: cpus.or(limits.cpu_max),
        io_read: args.io_read.or(limits.io_read),
        io_write: args.io_write.or(limits.io_write),
        disk: args.disk.or(limits.disk),
    }
}

/// What is used, and of how much.
fn of_limit(used: u64, limit: Option<u64>, text: impl Fn(u64) -> String) -> String {
    match limit {
        Some(limit) => format!("{} of {}", text(used), text(limit)),
        None => text(used),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{}K", bytes >> 10),
        _ => format!("{}M", bytes >> 20),
    }
}

pub(crate) fn nonsense() -> Failure {
    ClientError::Nonsense("another answer".to_owned()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_told_apart_as_scp_does() {
        let guest = |text| match side(text) {
            Side::Guest { machine, path } => Some((machine, path)),
            Side::Host(_) => None,
        };
        let of = |machine: &str, path: &str| Some((machine.to_owned(), path.to_owned()));
        assert_eq!(guest("work:/root/x"), of("work", "/root/x"));
        assert_eq!(guest("work:x:y"), of("work", "x:y"));
        for host in ["x", "./a:b", "/a:b", ":x"] {
            assert_eq!(guest(host), None, "{host}");
        }
    }

    #[test]
    fn a_slash_at_the_end_stays() {
        let bytes = |path: &str| path_bytes(&absolute(Path::new(path)).unwrap()).into_owned();
        // A drive's, on Windows.
        let root = bytes("/");
        assert_eq!(bytes("/a/b"), [&root[..], b"a/b"].concat());
        assert_eq!(bytes("/a/b/"), [&root[..], b"a/b/"].concat());
    }

    #[test]
    fn what_is_used_is_short() {
        assert_eq!(of_limit(5 << 20, Some(1 << 30), size), "5M of 1024M");
        assert_eq!(of_limit(4096, None, size), "4K");
    }
}

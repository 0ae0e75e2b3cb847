//! `cabana net`: what a machine's network did, and what a policy would do.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::thread;
use std::time::{Duration, SystemTime};

use cabana_api::{
    Call, MachineEvent, NetworkEvent, NetworkStatus, NetworkVerdict, NetworkWhat, Outcome,
    PolicySpec, Remember,
};
use cabana_engine::egress_policy;
use cabana_sandbox::egress::{self, LogLine, Protocol, Verdict, What};
use cabana_serve::{ClientError, Incoming, Place};
use serde_json::json;

use crate::Failure;
use crate::args::{NetAnswerArgs, NetArgs, NetLogArgs, NetSetArgs, NetTestArgs, NetVerb};
use crate::machines::{connect, named, print};
use crate::sessions::{ask, nonsense};

/// How often a log that is followed is looked at.
const INTERVAL: Duration = Duration::from_millis(200);

pub(crate) fn net(args: NetArgs) -> Result<u8, Failure> {
    match args.verb {
        NetVerb::Log(args) => log(&args),
        NetVerb::Test(args) => test(&args),
        NetVerb::Status(args) => status(&args.name, args.json),
        NetVerb::Set(args) => set(&args),
        NetVerb::Answer(args) => answer(&args),
    }
}

fn log(args: &NetLogArgs) -> Result<u8, Failure> {
    let mut out = std::io::stdout().lock();
    if let Some(file) = &args.file {
        let log = File::open(file)
            .map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
        show(BufReader::new(log), args.follow, args.denied, &mut out)?;
    } else if let Some(machine) = &args.machine {
        // A machine that has none says so.
        ask(machine, Call::NetworkStatus(named(machine)))?;
        let mut client = connect(&Place::open()?, machine)?;
        loop {
            match client.next_line() {
                Ok(Incoming::Machine(_, MachineEvent::Network { event })) => {
                    if args.denied && !is_bad(&event.what) {
                        continue;
                    }
                    if args.json {
                        writeln!(out, "{}", serde_json::to_string(&event)?)?;
                    } else {
                        writeln!(out, "{}", live(&event))?;
                    }
                    out.flush()?;
                }
                Ok(_) => {}
                Err(ClientError::Gone) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(0)
}

fn test(args: &NetTestArgs) -> Result<u8, Failure> {
    let policy = match &args.machine {
        Some(machine) => {
            let NetworkStatus { policy, sessions, .. } = network(machine)?;
            egress_policy(&policy, &sessions)
        }
        None => args.policy.read()?,
    };
    if let Some(session) = args.session.as_ref().filter(|name| !policy.session.contains_key(*name))
    {
        println!("the policy has no rules for the session {session}, which then has the machine's");
    }
    let (host, port) = host_and_port(&args.host)?;
    let protocol = if args.udp { Protocol::Udp } else { Protocol::Tcp };
    let explanation = egress::explain(&policy, args.session.as_deref(), host, protocol, port)?;
    for step in &explanation.steps {
        println!("{step}");
    }
    println!("{host} port {port}: {}", if explanation.allowed { "allowed" } else { "denied" });
    Ok(u8::from(!explanation.allowed))
}

fn network(machine: &str) -> Result<NetworkStatus, Failure> {
    match ask(machine, Call::NetworkStatus(named(machine)))? {
        Outcome::Network(status) => Ok(status),
        _ => Err(nonsense()),
    }
}

fn status(machine: &str, json: bool) -> Result<u8, Failure> {
    let status = network(machine)?;
    if json {
        print(&status)?;
        return Ok(0);
    }
    println!("policy {}", status.version);
    rules("the machine", &status.policy);
    for (session, policy) in &status.sessions {
        rules(&format!("session {session}"), policy);
    }
    for address in &status.published {
        println!("published: {address}");
    }
    println!(
        "{} flows of {}, {} refused; {} bytes out, {} bytes in",
        status.flows, status.flows_opened, status.denied, status.bytes_sent, status.bytes_received
    );
    println!(
        "dropped: {} packets with a forged source, {} of no use, {} over a limit; {} bytes of buffers",
        status.forged, status.ignored, status.over_limit, status.memory
    );
    Ok(0)
}

fn rules(whose: &str, policy: &PolicySpec) {
    let list =
        |words: &[String]| if words.is_empty() { "nothing".to_owned() } else { words.join(" ") };
    let deny = if policy.deny.is_empty() {
        String::new()
    } else {
        format!("; denies {}", list(&policy.deny))
    };
    let rest = if policy.ask { "; asks about the rest" } else { "" };
    println!("{whose} allows {}{deny}{rest}", list(&policy.allow));
}

fn set(args: &NetSetArgs) -> Result<u8, Failure> {
    let place = cabana_api::Place { machine: args.machine.clone(), session: args.session.clone() };
    let policy = args.rules.spec()?;
    match ask(&args.machine, Call::NetworkPolicy { place, policy })? {
        Outcome::Policy(policy) if args.json => print(&json!({ "policy": policy }))?,
        Outcome::Policy(policy) => println!("policy {policy} from now on"),
        _ => return Err(nonsense()),
    }
    Ok(0)
}

fn answer(args: &NetAnswerArgs) -> Result<u8, Failure> {
    let (machine, allow) = (args.machine.clone(), args.answer == "yes");
    let remember = match args.remember.as_str() {
        "session" => Remember::Session,
        "machine" => Remember::Machine,
        _ => Remember::Once,
    };
    let call = Call::NetworkAnswer { machine, ask: args.ask, allow, remember };
    ask(&args.machine, call)?;
    if args.json {
        print(&json!({ "ask": args.ask, "allowed": allow }))?;
    }
    Ok(0)
}

fn is_bad(what: &NetworkWhat) -> bool {
    match what {
        NetworkWhat::Flow { verdict, .. } | NetworkWhat::Query { verdict, .. } => !verdict.allowed,
        NetworkWhat::Answered { allowed, .. } => !allowed,
        NetworkWhat::Failed { .. } | NetworkWhat::Lost { .. } => true,
        _ => false,
    }
}

/// An event of a machine that is up, as a line for people.
fn live(event: &NetworkEvent) -> String {
    let word = |verdict: &NetworkVerdict| if verdict.allowed { "allow" } else { "DENY " };
    let why = |verdict: &NetworkVerdict| {
        let rule = verdict.rule.as_ref().map(|rule| format!("rule {rule}, ")).unwrap_or_default();
        format!("{} ({rule}policy {})", verdict.reason, verdict.policy)
    };
    let what = match &event.what {
        NetworkWhat::Flow { flow, protocol, host, address, port, verdict } => {
            let host = host.as_ref().map(|host| format!("{host} ")).unwrap_or_default();
            let (word, why) = (word(verdict), why(verdict));
            format!("{word} #{flow} {protocol} {host}{address} port {port}: {why}")
        }
        NetworkWhat::Query { host, addresses, verdict } => {
            let list: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            format!("{} dns {host} [{}]: {}", word(verdict), list.join(" "), why(verdict))
        }
        NetworkWhat::Closed { flow, sent, received } => {
            format!("close #{flow} {sent} bytes out, {received} bytes in")
        }
        NetworkWhat::Failed { flow, why } => format!("FAIL  #{flow} {why}"),
        NetworkWhat::Ask { ask, host, port, process, .. } => {
            let port = port.map(|port| format!(" port {port}")).unwrap_or_default();
            let process = process.as_ref().map(|name| format!(" for {name}")).unwrap_or_default();
            format!("ask   ?{ask} {host}{port}{process}")
        }
        NetworkWhat::Answered { ask, allowed } => {
            format!("reply ?{ask} {}", if *allowed { "yes" } else { "no" })
        }
        NetworkWhat::Policy { policy } => format!("policy {policy} from now on"),
        NetworkWhat::Lost { events } => format!("{events} events were lost"),
        NetworkWhat::Listening { address, port } => format!("open  {address} port {port}"),
        NetworkWhat::ListeningEnded { address, port } => format!("shut  {address} port {port}"),
    };
    let session = event.session.as_deref().map(|name| format!("[{name}] ")).unwrap_or_default();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{} {session}{}", clock(now.as_millis() as u64), clean(&what))
}

fn host_and_port(text: &str) -> Result<(&str, u16), Failure> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None if text.matches(':').count() > 1 => (text, None),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = port.map_or(Ok(443), str::parse);
    Ok((host, port.map_err(|_| Failure::new(format!("{text} has a port that is no number")))?))
}

/// Writes each event as a line for people.
fn show(
    mut log: impl BufRead,
    follow: bool,
    denied: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let mut line = String::new();
    loop {
        if log.read_line(&mut line)? == 0 {
            if !follow {
                break;
            }
            thread::sleep(INTERVAL);
            continue;
        }
        if !line.ends_with('\n') {
            continue; // The rest of the line is on its way.
        }
        let read: LogLine = serde_json::from_str(&line)
            .map_err(|error| Failure::new(format!("this is no log of a network: {error}")))?;
        line.clear();
        if !denied || is_refusal(&read.event.what) {
            writeln!(out, "{}", text(&read))?;
        }
    }
    Ok(())
}

fn is_refusal(what: &What) -> bool {
    match what {
        What::Flow { verdict, .. } | What::Query { verdict, .. } => !verdict.allowed,
        What::Answered { allowed, .. } => !allowed,
        What::Failed { .. } | What::Lost { .. } => true,
        _ => false,
    }
}

fn text(line: &LogLine) -> String {
    let session =
        line.event.session.as_deref().map(|name| format!("[{name}] ")).unwrap_or_default();
    let word = |verdict: &Verdict| if verdict.allowed { "allow" } else { "DENY " };
    let what = match &line.event.what {
        What::Flow { flow, protocol, host, address, port, verdict } => {
            let host = host.as_ref().map(|host| format!("{host} ")).unwrap_or_default();
            format!("{} #{flow} {protocol} {host}{address} port {port}: {verdict}", word(verdict))
        }
        What::Query { host, addresses, verdict } => {
            let list: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            format!("{} dns {host} [{}]: {verdict}", word(verdict), list.join(" "))
        }
        What::Closed { flow, sent, received } => {
            format!("close #{flow} {sent} bytes out, {received} bytes in")
        }
        What::Failed { flow, why } => format!("FAIL  #{flow} {why}"),
        What::Ask(question) => {
            let port = question.port.map(|port| format!(" port {port}")).unwrap_or_default();
            format!("ask   ?{} {}{port}", question.ask, question.host)
        }
        What::Answered { ask, allowed } => {
            format!("reply ?{ask} {}", if *allowed { "yes" } else { "no" })
        }
        What::Policy { policy } => format!("policy {policy} from now on"),
        What::Lost { events } => format!("{events} events were lost"),
    };
    format!("{} {session}{}", clock(line.time), clean(&what))
}

/// The time of day in UTC.
fn clock(milliseconds: u64) -> String {
    let moment = SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds);
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() % 86_400;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{:03}", seconds % 60, since.subsec_millis())
}

/// A guest chose some of these words: nothing of them may reach a terminal as a command.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"{"time":3723004,"at":{"secs":1,"nanos":0},"event":"flow","flow":7,"protocol":"tcp","host":"pypi.org","address":"93.184.216.34","port":443,"verdict":{"allowed":true,"rule":"pypi: pypi.org","reason":{"code":"allow-rule"},"policy":1}}
{"time":3723005,"at":{"secs":1,"nanos":0},"session":"build","event":"query","host":"evil.example","addresses":[],"verdict":{"allowed":false,"reason":{"code":"no-rule"},"policy":2}}
{"time":3723006,"at":{"secs":1,"nanos":0},"event":"closed","flow":7,"sent":10,"received":20}
"#;

    #[test]
    fn a_log_is_shown_for_people() {
        let mut out = Vec::new();
        show(LOG.as_bytes(), false, false, &mut out).unwrap();
        let expected = "01:02:03.004 allow #7 tcp pypi.org 93.184.216.34 port 443: allowed: a rule allows it (rule pypi: pypi.org, policy 1)
01:02:03.005 [build] DENY  dns evil.example []: denied: no rule allows it (policy 2)
01:02:03.006 close #7 10 bytes out, 20 bytes in
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn only_refusals_if_asked() {
        let mut out = Vec::new();
        show(LOG.as_bytes(), false, true, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 1);
    }

    #[test]
    fn what_is_no_log_is_told() {
        assert!(show("{}\n".as_bytes(), false, false, &mut Vec::new()).is_err());
    }

    #[test]
    fn hosts_and_ports() {
        assert_eq!(host_and_port("a.example").unwrap(), ("a.example", 443));
        assert_eq!(host_and_port("a.example:22").unwrap(), ("a.example", 22));
        assert_eq!(host_and_port("[2001:db8::1]:80").unwrap(), ("2001:db8::1", 80));
        assert_eq!(host_and_port("2001:db8::1").unwrap(), ("2001:db8::1", 443));
        assert!(host_and_port("a.example:x").is_err());
    }
}

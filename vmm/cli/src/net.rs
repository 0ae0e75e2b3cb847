//! `cabana net`: what a machine's network did, and what a policy would do.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::thread;
use std::time::{Duration, SystemTime};

use cabana_sandbox::egress::{self, LogLine, Protocol, Verdict, What};

use crate::Failure;
use crate::args::{NetArgs, NetTestArgs, NetVerb};

/// How often a log that is followed is looked at.
const INTERVAL: Duration = Duration::from_millis(200);

pub(crate) fn net(args: NetArgs) -> Result<u8, Failure> {
    match args.verb {
        NetVerb::Log { file, follow, denied } => {
            let log = File::open(&file)
                .map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
            show(BufReader::new(log), follow, denied, &mut std::io::stdout().lock())?;
            Ok(0)
        }
        NetVerb::Test(args) => test(&args),
    }
}

fn test(args: &NetTestArgs) -> Result<u8, Failure> {
    let policy = args.policy.read()?;
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

use super::*;
use crate::ask::Remember;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

const GUEST: &str = "100.96.0.2";
const OTHER: &str = "100.96.0.3";
const SITE: &str = "93.184.216.34";

/// A gate and a clock, driven as a stack drives them.
struct World {
    gate: Gate,
    now: Duration,
    next: u64,
}

fn policy(text: &str) -> EgressPolicy {
    EgressPolicy::parse(text).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl World {
    /// GUEST is the machine, OTHER the session `other`.
    fn new(text: &str) -> Self {
        let mut gate = Gate::new(&policy(text)).unwrap();
        gate.assign(ip(GUEST), None);
        gate.assign(ip(OTHER), Some("other".to_owned()));
        Self { gate, now: Duration::from_secs(1), next: 1 }
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn ask(&mut self, source: &str, name: &str, kind: RecordType) -> DnsStep {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let id = self.id();
        let from = Asker { protocol: Protocol::Udp, address: SocketAddr::new(ip(source), 40_000) };
        self.gate.query(self.now, id, from, &message.to_vec().unwrap())
    }

    /// What the guest gets to know when the host's resolver finds `addresses`.
    fn resolve(&mut self, source: &str, name: &str, addresses: &[&str]) -> (ResponseCode, usize) {
        let kind = if addresses.first().is_some_and(|a| a.contains(':')) {
            RecordType::AAAA
        } else {
            RecordType::A
        };
        let step = match self.ask(source, name, kind) {
            DnsStep::Resolve(lookup) => {
                let found: Vec<_> = addresses.iter().map(|text| ip(text)).collect();
                self.gate.resolved(self.now, &lookup, Ok(&found))
            }
            step => step,
        };
        reply(&step)
    }

    fn flow(
        &mut self,
        source: &str,
        protocol: Protocol,
        address: &str,
        port: u16,
    ) -> (u64, Decision) {
        let destination = SocketAddr::new(ip(address), port);
        let (id, source) = (self.id(), ip(source));
        let flow = Flow { id, source, source_port: 50_000, protocol, destination };
        (flow.id, self.gate.open(self.now, flow))
    }

    fn tcp(&mut self, address: &str, port: u16) -> Decision {
        self.flow(GUEST, Protocol::Tcp, address, port).1
    }

    fn reason(&mut self, address: &str, port: u16) -> Reason {
        match self.tcp(address, port) {
            Decision::Deny(verdict) => verdict.reason,
            other => panic!("{address}:{port} was not denied: {other:?}"),
        }
    }

    fn send(&mut self, id: u64, bytes: &[u8]) -> Result<Vec<u8>, Reason> {
        let mut out = Vec::new();
        let result = self.gate.inspect(self.now, id, bytes, &mut out);
        result.map(|_| out).map_err(|verdict| verdict.reason)
    }

    fn changes(&mut self) -> Vec<Change> {
        self.gate.poll(self.now)
    }
}

fn reply(step: &DnsStep) -> (ResponseCode, usize) {
    let DnsStep::Reply(bytes) = step else { panic!("no reply: {step:?}") };
    let message = Message::from_vec(bytes).unwrap();
    (message.metadata.response_code, message.answers.len())
}

fn get(host: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

const NO_ERROR: ResponseCode = ResponseCode::NoError;
const NX_DOMAIN: ResponseCode = ResponseCode::NXDomain;

#[test]
fn nothing_passes_by_default() {
    let mut world = World::new("");
    assert_eq!(world.resolve(GUEST, "a.example.", &[SITE]), (NX_DOMAIN, 0));
    assert_eq!(world.reason(SITE, 443), Reason::NotResolved);
    assert_eq!(world.reason("127.0.0.1", 22), Reason::Special { range: "loopback".to_owned() });
}

#[test]
fn an_allowed_name_opens_its_address_for_itself() {
    let mut world = World::new("allow = ['a.example']");
    assert_eq!(world.reason(SITE, 80), Reason::NotResolved);
    assert_eq!(world.resolve(GUEST, "A.example.", &[SITE]), (NO_ERROR, 1));
    let (id, decision) = world.flow(GUEST, Protocol::Tcp, SITE, 80);
    assert!(matches!(decision, Decision::Inspect { client_first: true, .. }));
    assert_eq!(world.send(id, &get("a.example")), Ok(get("a.example")));
    assert_eq!(world.reason(SITE, 22), Reason::NoPort);
    let (_, other) = world.flow(OTHER, Protocol::Tcp, SITE, 80);
    assert!(matches!(other, Decision::Deny(_)), "another session has not looked it up");
}

#[test]
fn a_pin_ends() {
    let mut world = World::new("allow = ['a.example']");
    world.resolve(GUEST, "a.example.", &[SITE]);
    world.now += crate::pins::TTL + crate::pins::GRACE;
    assert_eq!(world.reason(SITE, 443), Reason::NotResolved);
}

#[test]
fn another_host_on_the_same_address_is_reset() {
    let mut world = World::new("allow = ['a.example']");
    world.resolve(GUEST, "a.example.", &[SITE]);
    let (id, _) = world.flow(GUEST, Protocol::Tcp, SITE, 80);
    let refusal = Refusal::OtherHost { named: "evil.example".to_owned() };
    assert_eq!(world.send(id, &get("evil.example")), Err(Reason::Inspection { refusal }));
    assert!(world.send(id, &get("a.example")).is_err(), "nothing follows a refusal");
}

#[test]
fn rebinding_is_defeated() {
    let mut world = World::new("allow = ['*.example']");
    for address in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "fd00::1"]
    {
        assert_eq!(world.resolve(GUEST, "a.example.", &[address]), (NX_DOMAIN, 0), "{address}");
        assert!(matches!(world.tcp(address, 80), Decision::Deny(_)));
    }
    assert_eq!(world.resolve(GUEST, "a.example.", &["10.0.0.1", SITE]), (NO_ERROR, 1));
    let reasons: Vec<_> =
        world.gate.take_events(world.now).into_iter().map(|event| event.what).collect();
    assert!(reasons.iter().any(|what| matches!(
        what,
        What::Query { verdict: Verdict { reason: Reason::Rebinding { .. }, .. }, .. }
    )));
}

#[test]
fn a_name_may_lead_to_a_private_address_that_a_rule_names() {
    let mut world = World::new("allow = ['db.example', '10.0.0.0/8:5432']");
    assert_eq!(world.resolve(GUEST, "db.example.", &["10.0.0.1"]), (NO_ERROR, 1));
    assert!(matches!(world.tcp("10.0.0.1", 5432), Decision::Allow { .. }));
    assert!(matches!(world.tcp("10.0.0.1", 80), Decision::Deny(_)), "the name opens nothing there");
}

#[test]
fn hosts_without_ipv4_reach_the_rest_through_nat64() {
    let mut world = World::new("allow = ['a.example']");
    assert_eq!(
        world.reason("64:ff9b::5db8:d822", 443),
        Reason::Special { range: "NAT64".to_owned() }
    );
    assert_eq!(world.resolve(GUEST, "a.example.", &["64:ff9b::5db8:d822"]), (NO_ERROR, 1));
    assert!(matches!(world.tcp("64:ff9b::5db8:d822", 443), Decision::Inspect { .. }));
    assert_eq!(world.resolve(GUEST, "a.example.", &["64:ff9b::7f00:1"]), (NX_DOMAIN, 0));
}

#[test]
fn a_source_that_nobody_was_given_gets_nothing() {
    let mut world = World::new("allow = ['*', '0.0.0.0/0']");
    assert!(matches!(world.ask("100.96.0.77", "a.example.", RecordType::A), DnsStep::Drop));
    let (_, decision) = world.flow("100.96.0.77", Protocol::Tcp, SITE, 443);
    let Decision::Deny(verdict) = decision else { panic!("{decision:?}") };
    assert_eq!(verdict.reason, Reason::ForgedSource);
}

#[test]
fn a_session_has_its_own_rules_and_no_others() {
    let mut world = World::new("allow = ['a.example']\n[session.other]\nallow = ['b.example']");
    assert_eq!(world.resolve(OTHER, "a.example.", &[SITE]), (NX_DOMAIN, 0));
    assert_eq!(world.resolve(OTHER, "b.example.", &[SITE]), (NO_ERROR, 1));
    assert_eq!(world.resolve(GUEST, "b.example.", &[SITE]), (NX_DOMAIN, 0));
    assert_eq!(world.reason(SITE, 443), Reason::NotResolved);
}

#[test]
fn only_addresses_come_out_of_the_dns() {
    let mut world = World::new("allow = ['a.example']");
    for kind in
        [RecordType::TXT, RecordType::HTTPS, RecordType::SVCB, RecordType::MX, RecordType::ANY]
    {
        let step = world.ask(GUEST, "a.example.", kind);
        assert_eq!(reply(&step), (NO_ERROR, 0), "{kind}");
    }
    let step = world.ask(GUEST, "b.example.", RecordType::TXT);
    assert_eq!(reply(&step), (NX_DOMAIN, 0));
}

#[test]
fn a_reload_resets_what_it_no_longer_allows() {
    let mut world = World::new("allow = ['a.example', 'b.example', '203.0.113.0/24']");
    world.resolve(GUEST, "a.example.", &[SITE]);
    world.resolve(GUEST, "b.example.", &["198.51.100.7"]);
    let (named, _) = world.flow(GUEST, Protocol::Tcp, SITE, 80);
    world.send(named, &get("a.example")).unwrap();
    let (silent, _) = world.flow(GUEST, Protocol::Tcp, SITE, 80);
    let (kept, _) = world.flow(GUEST, Protocol::Tcp, "198.51.100.7", 80);
    let (address, _) = world.flow(GUEST, Protocol::Tcp, "203.0.113.1", 80);
    assert!(world.changes().is_empty());

    assert_eq!(world.gate.reload(world.now, &policy("allow = ['b.example']")), Ok(2));
    let mut reset: Vec<_> = world
        .changes()
        .into_iter()
        .map(|change| match change {
            Change::Flow(id, Decision::Deny(verdict)) => {
                assert_eq!((verdict.reason, verdict.policy), (Reason::PolicyChanged, 2));
                id
            }
            other => panic!("{other:?}"),
        })
        .collect();
    reset.sort_unstable();
    assert_eq!(reset, [named, silent, address]);
    assert!(world.send(kept, &get("b.example")).is_ok());
    assert!(world.send(silent, &get("a.example")).is_err());
}

#[test]
fn a_bad_policy_changes_nothing() {
    let mut world = World::new("allow = ['203.0.113.1']");
    let bad = EgressPolicy { allow: vec!["no rule".to_owned()], ..EgressPolicy::default() };
    assert!(world.gate.reload(world.now, &bad).is_err());
    assert_eq!(world.gate.version(), 1);
    assert!(matches!(world.tcp("203.0.113.1", 1), Decision::Allow { .. }));
}

#[test]
fn a_lookup_under_way_is_judged_by_the_policy_that_holds_when_it_returns() {
    let mut world = World::new("allow = ['a.example']");
    let DnsStep::Resolve(lookup) = world.ask(GUEST, "a.example.", RecordType::A) else {
        panic!("a.example is allowed");
    };
    world.gate.reload(world.now, &policy("")).unwrap();
    let step = world.gate.resolved(world.now, &lookup, Ok(&[ip(SITE)]));
    assert_eq!(reply(&step), (NX_DOMAIN, 0));
    world.gate.reload(world.now, &policy("allow = ['a.example']")).unwrap();
    assert_eq!(world.reason(SITE, 443), Reason::NotResolved);
}

#[test]
fn an_inspection_under_way_follows_the_policy() {
    let mut world = World::new("allow = ['a.example', 'b.example']");
    world.resolve(GUEST, "a.example.", &[SITE]);
    world.resolve(GUEST, "b.example.", &[SITE]);
    let (id, _) = world.flow(GUEST, Protocol::Tcp, SITE, 80);
    assert_eq!(world.send(id, b"GET / HTTP/1.1\r\nHost: b.ex"), Ok(Vec::new()));
    world.gate.reload(world.now, &policy("allow = ['a.example']")).unwrap();
    assert!(world.changes().is_empty(), "it may still go to a.example");
    assert!(world.send(id, b"ample\r\n\r\n").is_err());
}

#[test]
fn a_session_that_ends_takes_its_flows_along() {
    let mut world = World::new("allow = ['203.0.113.1']");
    let (id, _) = world.flow(OTHER, Protocol::Tcp, "203.0.113.1", 9);
    world.gate.unassign(world.now, ip(OTHER));
    assert!(matches!(&world.changes()[..], [Change::Flow(own, Decision::Deny(_))] if *own == id));
    assert!(matches!(world.flow(OTHER, Protocol::Tcp, "203.0.113.1", 9).1, Decision::Deny(_)));
}

#[test]
fn a_question_holds_a_lookup_and_its_answer_opens_the_host() {
    let mut world = World::new("ask = true");
    let DnsStep::Hold(ask) = world.ask(GUEST, "a.example.", RecordType::A) else {
        panic!("nobody has answered yet");
    };
    let events = world.gate.take_events(world.now);
    let [Event { what: What::Ask(question), .. }] = &events[..] else { panic!("{events:?}") };
    assert_eq!((question.ask, question.host.as_str(), question.port), (ask, "a.example", None));
    assert!(world.changes().is_empty());

    world.gate.answer(world.now, ask, Answer { allow: true, remember: Remember::Session });
    let changes = world.changes();
    let [Change::Query(_, DnsStep::Resolve(lookup))] = &changes[..] else { panic!("{changes:?}") };
    world.gate.resolved(world.now, lookup, Ok(&[ip(SITE)]));
    assert!(matches!(world.tcp(SITE, 443), Decision::Inspect { .. }));
    assert!(matches!(world.tcp(SITE, 22), Decision::Hold(_)), "the answer was about the web");
}

#[test]
fn a_question_holds_a_flow() {
    for (allow, remember) in [(true, Remember::Once), (false, Remember::Machine)] {
        let mut world = World::new("ask = true");
        let (id, held) = world.flow(GUEST, Protocol::Tcp, SITE, 22);
        let Decision::Hold(ask) = held else { panic!("{held:?}") };
        world.gate.answer(world.now, ask, Answer { allow, remember });
        let changes = world.changes();
        let [Change::Flow(own, decision)] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!((*own, matches!(decision, Decision::Allow { .. })), (id, allow));
        let again = world.tcp(SITE, 22);
        assert_eq!(matches!(again, Decision::Allow { .. }), allow, "{again:?}");
        assert!(!matches!(again, Decision::Hold(_)), "it was answered");
    }
}

#[test]
fn a_question_that_nobody_answers_is_a_no() {
    let mut world = World::new("ask = true");
    let (id, _) = world.flow(GUEST, Protocol::Tcp, SITE, 22);
    world.now = world.gate.deadline().unwrap();
    let changes = world.changes();
    let [Change::Flow(own, Decision::Deny(verdict))] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!((*own, &verdict.reason), (id, &Reason::Unanswered));
}

#[test]
fn nobody_is_asked_about_special_addresses_or_what_a_rule_denies() {
    let mut world = World::new("ask = true\ndeny = ['evil.example', '198.51.100.0/24']");
    for address in ["169.254.169.254", "127.0.0.1", "10.0.0.1", "198.51.100.1"] {
        assert!(matches!(world.tcp(address, 80), Decision::Deny(_)), "{address}");
    }
    assert_eq!(reply(&world.ask(GUEST, "evil.example.", RecordType::A)), (NX_DOMAIN, 0));
}

#[test]
fn an_answer_is_no_match_for_a_rule_that_denies() {
    let mut world = World::new("ask = true");
    let (_, held) = world.flow(GUEST, Protocol::Tcp, SITE, 22);
    let Decision::Hold(ask) = held else { panic!("{held:?}") };
    world.gate.answer(world.now, ask, Answer { allow: true, remember: Remember::Machine });
    assert!(matches!(&world.changes()[..], [Change::Flow(_, Decision::Allow { .. })]));
    world.gate.reload(world.now, &policy(&format!("ask = true\ndeny = ['{SITE}']"))).unwrap();
    assert_eq!(world.changes().len(), 1, "the open flow is reset");
    assert!(matches!(world.tcp(SITE, 22), Decision::Deny(_)));
}

#[test]
fn udp_and_echo_by_name_need_a_rule_of_their_own() {
    let mut world = World::new("allow = ['udp://a.example:123', 'icmp://a.example', 'b.example']");
    world.resolve(GUEST, "a.example.", &[SITE]);
    assert!(matches!(world.flow(GUEST, Protocol::Udp, SITE, 123).1, Decision::Allow { .. }));
    assert!(matches!(world.flow(GUEST, Protocol::Icmp, SITE, 0).1, Decision::Allow { .. }));
    assert!(matches!(world.flow(GUEST, Protocol::Udp, SITE, 53).1, Decision::Deny(_)));
    assert!(matches!(world.flow(GUEST, Protocol::Tcp, SITE, 443).1, Decision::Deny(_)));
    world.resolve(GUEST, "b.example.", &["198.51.100.7"]);
    let quic = world.flow(GUEST, Protocol::Udp, "198.51.100.7", 443).1;
    assert!(matches!(quic, Decision::Deny(_)), "QUIC is UDP");
}

#[test]
fn every_verdict_is_an_event_that_survives_the_log() {
    let mut world = World::new("allow = ['a.example']");
    world.resolve(GUEST, "a.example.", &[SITE]);
    let (id, _) = world.flow(GUEST, Protocol::Tcp, SITE, 80);
    world.send(id, &get("a.example")).unwrap();
    world.gate.close(world.now, id, 10, 20);
    world.tcp("203.0.113.9", 1);
    let events = world.gate.take_events(world.now);
    let lines: Vec<_> = events.iter().map(|event| serde_json::to_string(event).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[1].contains(r#""host":"a.example""#) && lines[1].contains(r#""allowed":true"#));
    assert!(lines[1].contains(r#""rule":"a.example""#) && lines[1].contains(r#""policy":1"#));
    for (line, event) in lines.iter().zip(&events) {
        assert_eq!(&serde_json::from_str::<Event>(line).unwrap(), event);
    }
}

#[test]
fn lookups_under_way_are_bounded() {
    let mut world = World::new("allow = ['*']");
    let mut held = Vec::new();
    let last = loop {
        match world.ask(GUEST, &format!("n{}.example.", held.len()), RecordType::A) {
            DnsStep::Resolve(lookup) if held.len() < 10_000 => held.push(lookup),
            step => break step,
        }
    };
    assert_eq!(reply(&last).0, ResponseCode::ServFail);
    world.gate.resolved(world.now, &held[0], Err(LookupError::Failed));
    assert!(matches!(world.ask(GUEST, "more.example.", RecordType::A), DnsStep::Resolve(_)));
}

#[test]
fn an_explanation_says_what_would_happen() {
    let world = World::new("allow = ['pypi', '10.0.0.0/8:80']\n[session.other]\nask = true");
    let explain = |session, host: &str, port, addresses: &[&str]| {
        let addresses: Vec<_> = addresses.iter().map(|text| ip(text)).collect();
        world.gate.explain(session, host, Protocol::Tcp, port, &addresses)
    };
    let yes = explain(None, "pypi.org", 443, &[SITE]);
    assert!(yes.allowed && yes.steps[1].contains("pypi: pypi.org"), "{yes:?}");
    assert!(yes.steps[2].contains("ClientHello"), "{yes:?}");
    assert!(!explain(None, "pypi.org", 22, &[SITE]).allowed);
    assert!(!explain(None, "pypi.org", 443, &["10.0.0.1"]).allowed);
    assert!(explain(None, "10.1.1.1", 80, &[]).allowed);
    let asks = explain(Some("other"), "pypi.org", 443, &[]);
    assert!(!asks.allowed && asks.steps.last().unwrap().contains("asks"), "{asks:?}");
    assert!(!explain(None, "a b", 1, &[]).allowed);
}

#[test]
fn what_inspections_hold_back_is_bounded_for_all_of_them() {
    let mut world = World::new("allow = ['a.example']");
    world.resolve(GUEST, "a.example.", &[SITE]);
    let part = vec![b'x'; 60_000];
    let mut refused = 0;
    for _ in 0..2000 {
        let (id, _) = world.flow(GUEST, Protocol::Tcp, SITE, 80);
        world.send(id, b"GET / HTTP/1.1\r\nX: ").unwrap();
        refused += u32::from(world.send(id, &part).is_err());
        assert!(world.gate.held <= super::MAX_HELD + part.len());
    }
    assert!(refused > 500, "{refused}");
    let ids: Vec<_> = world.gate.flows.keys().copied().collect();
    for id in ids {
        world.gate.close(world.now, id, 0, 0);
    }
    assert_eq!(world.gate.held, 0);
}

#[test]
fn a_name_that_a_proxy_looks_up_has_an_address_of_its_own() {
    let mut world = World::new("allow = ['a.example', 'b.example']");
    let mut answer = |name: &str| {
        let DnsStep::Resolve(lookup) = world.ask(GUEST, name, RecordType::A) else {
            panic!("{name}")
        };
        let DnsStep::Reply(bytes) = world.gate.resolved_elsewhere(world.now, &lookup) else {
            panic!("{name}")
        };
        let message = Message::from_vec(&bytes).unwrap();
        message.answers[0].data.ip_addr().unwrap().to_string()
    };
    let (a, b) = (answer("a.example."), answer("b.example."));
    assert_eq!((a.as_str(), b.as_str()), ("198.18.0.0", "198.18.0.1"));
    assert_eq!(answer("a.example."), a);
    let (id, decision) = world.flow(GUEST, Protocol::Tcp, &a, 80);
    assert!(matches!(decision, Decision::Inspect { .. }), "{decision:?}");
    assert!(world.send(id, &get("b.example")).is_err(), "it stands for one name");
    assert!(matches!(world.flow(OTHER, Protocol::Tcp, &a, 80).1, Decision::Deny(_)));
    assert!(matches!(world.tcp("198.18.0.2", 80), Decision::Deny(_)));
    assert_eq!(
        world.resolve(GUEST, "a.example.", &["198.18.0.1"]),
        (NX_DOMAIN, 0),
        "no answer means it"
    );
    assert!(world.gate.is_elsewhere(ip(&a)) && !world.gate.is_elsewhere(ip("198.18.0.2")));
}

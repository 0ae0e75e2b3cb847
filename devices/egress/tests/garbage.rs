//! Random and mutated input for everything that reads a guest's bytes or a policy: nothing may panic, hang or
//! let something pass that names another host. The sequence is the same in every run.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use cabana_egress::inspect::{Inspector, MAX_HELD, Progress};
use cabana_egress::{
    Asker, Decision, DnsStep, DomainName, EgressPolicy, Expect, Flow, Gate, Protocol, Rule,
};

const ROUNDS: u64 = 20_000;
const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(100, 96, 0, 2));

/// xorshift64* (Vigna 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit.max(1)
    }

    /// A seed with some bytes changed, removed, doubled or cut off.
    fn mutate(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len());
            match self.below(6) {
                _ if bytes.is_empty() => bytes.push(self.next() as u8),
                0 => bytes[at] = self.next() as u8,
                1 => bytes[at] ^= 1 << self.below(8),
                2 => bytes.insert(at, b"\r\n :;,\0/.*[]{}'\"="[self.below(17)]),
                3 => drop(bytes.remove(at)),
                4 => bytes.truncate(at),
                _ => {
                    let other = self.below(bytes.len());
                    let part = bytes[at.min(other)..at.max(other)].to_vec();
                    bytes.splice(at..at, part);
                    bytes.truncate(4096);
                }
            }
        }
        bytes
    }
}

fn inspector(expect: Expect) -> Inspector {
    Inspector::new(vec![(DomainName::parse("a.example").unwrap(), expect)], false)
}

#[test]
fn mutated_clients_name_the_allowed_host_or_nobody() {
    let hello = {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0, 0, 18, 0, 0, 0, 14, 0, 12, 0, 0, 9]);
        body.extend(b"a.example");
        let mut message = vec![1, 0, 0, body.len() as u8];
        message.extend(body);
        let mut record = vec![22, 3, 1, 0, message.len() as u8];
        record.extend(message);
        record
    };
    let seeds: &[&[u8]] = &[
        &hello,
        b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\nGET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nabcdeGET / HTTP/1.1\r\n",
        b"SSH-2.0-OpenSSH\r\n",
    ];
    let expects = [
        Expect { tls: true, http: false, other: false },
        Expect { tls: false, http: true, other: false },
        Expect { tls: true, http: true, other: true },
    ];
    let mut random = Random(1);
    for round in 0..ROUNDS {
        let bytes = random.mutate(seeds[round as usize % seeds.len()]);
        let expect = expects[random.below(3)];
        let (mut inspector, mut out) = (inspector(expect), Vec::new());
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (part, after) = rest.split_at(1 + random.below(rest.len()));
            match inspector.push(part, &mut out) {
                Ok(Progress::Watching) => assert!(bytes.len() - out.len() <= MAX_HELD),
                Ok(Progress::Passed) => assert!(inspector.host().is_some()),
                Err(_) => break,
            }
            rest = after;
        }
        assert!(bytes.starts_with(&out), "nothing is made up");
        if !out.is_empty() && (expect.http || expect.tls) && !expect.other {
            assert_eq!(inspector.host().map(DomainName::as_str), Some("a.example"));
        }
    }
}

#[test]
fn mutated_queries_get_an_answer_or_none() {
    let policy = EgressPolicy { allow: vec!["a.example".to_owned()], ..EgressPolicy::default() };
    let mut gate = Gate::new(&policy).unwrap();
    gate.assign(GUEST, None);
    let seed =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x01a\x07example\x00\x00\x01\x00\x01\
                 \x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x0c\x00\x0a\x00\x08abcdefgh";
    let mut random = Random(2);
    let now = Duration::from_secs(1);
    let mut looked_up = 0;
    let from = Asker { protocol: Protocol::Udp, address: SocketAddr::new(GUEST, 40_000) };
    for round in 0..ROUNDS {
        let message = if round % 8 == 0 {
            (0..random.below(80)).map(|_| random.next() as u8).collect()
        } else {
            random.mutate(seed)
        };
        match gate.query(now, round, from, &message) {
            DnsStep::Resolve(lookup) => {
                assert_eq!(lookup.name().as_str(), "a.example");
                let address = IpAddr::V4(Ipv4Addr::from(random.next() as u32));
                gate.resolved(now, &lookup, Ok(&[address]));
                looked_up += 1;
            }
            DnsStep::Reply(reply) => {
                assert_eq!(reply[..2], message[..2], "the id comes back");
                assert!(reply[2] & 0x80 != 0 && reply.len() <= 512);
            }
            DnsStep::Drop => {}
            DnsStep::Hold(_) => panic!("nobody is to be asked"),
        }
    }
    assert!(looked_up > 100, "the mutations leave some questions whole: {looked_up}");
}

#[test]
fn mutated_policies_are_read_or_refused() {
    let seeds: &[&str] = &[
        "allow = ['pypi', '*.example.com', 'tcp://git.example.com:22', '10.1.0.0/16:1-2']\nask = true\n[session.a]\ndeny = ['*']\n",
        r#"{"allow":["pypi","[2001:db8::/32]:443"],"deny":["udp://a.example:1"],"ask":true,"session":{"a":{}}}"#,
    ];
    let mut random = Random(3);
    let mut read = 0;
    for round in 0..ROUNDS / 4 {
        let text = random.mutate(seeds[round as usize % seeds.len()].as_bytes());
        let Ok(text) = String::from_utf8(text) else { continue };
        if let Ok(policy) = EgressPolicy::parse(&text) {
            read += 1;
            let again = serde_json::to_string(&policy).unwrap();
            assert_eq!(EgressPolicy::parse(&again), Ok(policy));
        }
    }
    assert!(read > 50, "the mutations leave some policies whole: {read}");
}

#[test]
fn a_mutated_rule_prints_as_what_it_means() {
    let seeds =
        ["*.example.com:80-90", "tls://a.example:8443", "[2001:db8::/32]:443", "any://10.0.0.0/8"];
    let mut random = Random(4);
    for round in 0..ROUNDS {
        let word = random.mutate(seeds[round as usize % seeds.len()].as_bytes());
        let Ok(word) = String::from_utf8(word) else { continue };
        if let Ok(rule) = Rule::parse(&word) {
            assert_eq!(Rule::parse(&rule.to_string()), Ok(rule), "{word}");
        }
    }
}

/// Whatever address a guest takes, without an answer from an allowed name it opens only what a rule names.
#[test]
fn random_addresses_stay_closed() {
    let allow = ["*", "198.51.100.0/24", "0.0.0.0/0:80"].map(str::to_owned).to_vec();
    let mut gate = Gate::new(&EgressPolicy { allow, ..EgressPolicy::default() }).unwrap();
    gate.assign(GUEST, None);
    let mut random = Random(5);
    for id in 0..ROUNDS {
        let v4 = Ipv4Addr::from(random.next() as u32);
        let port = [22, 80, 443][random.below(3)];
        let destination = SocketAddr::new(v4.into(), port);
        let flow = Flow { id, source: GUEST, source_port: 1, protocol: Protocol::Tcp, destination };
        let open = matches!(gate.open(Duration::ZERO, flow), Decision::Allow { .. });
        let named = v4.octets()[..3] == [198, 51, 100];
        let private =
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast();
        assert!(!private || !open, "{destination}");
        assert!(!named || open, "{destination}");
        assert!(!open || named || port == 80, "{destination}");
        gate.close(Duration::ZERO, id, 0, 0);
    }
}

use super::*;

fn inspector(expect: Expect) -> Inspector {
    let name = |text| DomainName::parse(text).unwrap();
    Inspector::new(vec![(name("a.example"), expect), (name("b.example"), expect)], false)
}

const TLS: Expect = Expect { tls: true, http: false, other: false };
const HTTP: Expect = Expect { tls: false, http: true, other: false };
const ANY: Expect = Expect { tls: true, http: true, other: true };

/// Everything at once and byte by byte must come to the same.
fn run(expect: Expect, bytes: &[u8]) -> Result<(Vec<u8>, Progress), Refusal> {
    let mut out = Vec::new();
    let whole = inspector(expect).push(bytes, &mut out).map(|progress| (out, progress));
    let (mut slow, mut out) = (inspector(expect), Vec::new());
    let mut progress = Ok(Progress::Watching);
    for byte in bytes {
        progress = slow.push(std::slice::from_ref(byte), &mut out);
        if progress.is_err() {
            break;
        }
    }
    assert_eq!(whole, progress.map(|progress| (out, progress)), "in one piece and in many");
    whole
}

fn passes(expect: Expect, bytes: &[u8]) -> bool {
    run(expect, bytes).is_ok_and(|(out, _)| out == bytes)
}

fn vector16(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector16(content)].concat()
}

fn names(names: &[&str]) -> Vec<u8> {
    let list: Vec<u8> =
        names.iter().flat_map(|name| [vec![0], vector16(name.as_bytes())].concat()).collect();
    extension(0, &vector16(&list))
}

/// A `ClientHello` message with these extensions.
fn hello(extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0]);
    body.extend(vector16(&[0x13, 0x01]));
    body.extend([1, 0]);
    body.extend(vector16(extensions));
    let length = (body.len() as u32).to_be_bytes();
    [&[1], &length[1..], &body].concat()
}

fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1], &vector16(content)[..]].concat()
}

fn client(name: &str) -> Vec<u8> {
    record(22, &hello(&names(&[name])))
}

#[test]
fn tls_must_name_the_allowed_host() {
    assert!(passes(TLS, &client("a.example")));
    assert!(passes(TLS, &client("B.Example")));
    assert!(passes(ANY, &client("a.example")));
    let other = Refusal::OtherHost { named: "evil.example".to_owned() };
    assert_eq!(run(TLS, &client("evil.example")), Err(other.clone()));
    assert_eq!(run(ANY, &client("evil.example")), Err(other));
    assert!(matches!(run(TLS, &client("93.184.216.34")), Err(Refusal::OtherHost { .. })));
    assert!(matches!(
        run(TLS, &client("a.example\0.evil.example")),
        Err(Refusal::OtherHost { .. })
    ));
    assert_eq!(run(TLS, &record(22, &hello(&[]))), Err(Refusal::NoServerName));
}

#[test]
fn two_names_are_one_too_many() {
    let list = record(22, &hello(&names(&["a.example", "evil.example"])));
    assert_eq!(run(TLS, &list), Err(Refusal::MalformedTls));
    let twice = [names(&["a.example"]), names(&["evil.example"])].concat();
    assert_eq!(run(TLS, &record(22, &hello(&twice))), Err(Refusal::MalformedTls));
}

#[test]
fn an_encrypted_client_hello_is_refused_unless_allowed() {
    let extensions = [names(&["a.example"]), extension(0xfe0d, &[0; 40])].concat();
    let bytes = record(22, &hello(&extensions));
    assert_eq!(run(TLS, &bytes), Err(Refusal::Ech));
    let esni = [extension(0xffce, &[0; 40]), names(&["a.example"])].concat();
    assert_eq!(run(TLS, &record(22, &hello(&esni))), Err(Refusal::Ech));
    let allowed = vec![(DomainName::parse("a.example").unwrap(), TLS)];
    let mut out = Vec::new();
    Inspector::new(allowed, true).push(&bytes, &mut out).unwrap();
    assert_eq!(out, bytes);
}

#[test]
fn a_client_hello_may_come_in_many_records() {
    let message = hello(&names(&["a.example"]));
    for size in [1, 3, 50] {
        let bytes: Vec<u8> = message.chunks(size).flat_map(|part| record(22, part)).collect();
        assert!(passes(TLS, &bytes), "{size}");
        let message = hello(&names(&["evil.example"]));
        let bytes: Vec<u8> = message.chunks(size).flat_map(|part| record(22, part)).collect();
        assert!(run(TLS, &bytes).is_err(), "{size}");
    }
    let mut between = record(22, &message[..10]);
    between.extend(record(23, &[0; 10]));
    between.extend(record(22, &message[10..]));
    assert_eq!(run(TLS, &between), Err(Refusal::MalformedTls));
}

#[test]
fn the_second_client_hello_must_name_it_too() {
    let change = record(20, &[1]);
    let same =
        [client("a.example"), change.clone(), client("a.example"), record(23, &[9; 30])].concat();
    assert!(passes(TLS, &same));
    let other = [client("a.example"), change, client("evil.example")].concat();
    assert!(matches!(run(TLS, &other), Err(Refusal::OtherHost { .. })));
    let glued = [hello(&names(&["a.example"])), hello(&names(&["evil.example"]))].concat();
    assert_eq!(run(TLS, &record(22, &glued)), Err(Refusal::MalformedTls));
}

#[test]
fn what_is_encrypted_passes_unseen() {
    let start = [client("a.example"), record(23, &[9; 30])].concat();
    let (_, progress) = run(TLS, &start).unwrap();
    assert_eq!(progress, Progress::Passed);
    let older = [client("a.example"), record(22, &[16, 0, 0, 1, 0])].concat();
    assert_eq!(run(TLS, &older).unwrap().1, Progress::Passed);
}

#[test]
fn what_a_rule_is_not_for_is_refused() {
    assert_eq!(run(TLS, b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"), Err(Refusal::NotTls));
    assert_eq!(run(TLS, b"SSH-2.0-x\r\n"), Err(Refusal::NotTls));
    assert_eq!(run(HTTP, &client("a.example")), Err(Refusal::NotHttp));
    assert_eq!(run(HTTP, b"SSH-2.0-x\r\n\r\n"), Err(Refusal::NotHttp));
    assert_eq!(run(TLS, b"\x80\x2e\x01\x00\x02"), Err(Refusal::NotTls));
}

#[test]
fn broken_tls_is_refused() {
    assert_eq!(run(TLS, &[22, 2, 0, 0, 1, 1]), Err(Refusal::MalformedTls));
    assert_eq!(run(TLS, &record(22, &[])), Err(Refusal::MalformedTls));
    assert_eq!(run(TLS, &[22, 3, 1, 0xff, 0xff]), Err(Refusal::MalformedTls));
    assert_eq!(run(TLS, &record(22, &[2, 0, 0, 0])), Err(Refusal::MalformedTls));
    let whole = hello(&names(&["a.example"]));
    for cut in 5..whole.len() {
        let mut message = whole[..cut].to_vec();
        let length = ((cut - 4) as u32).to_be_bytes();
        message[1..4].copy_from_slice(&length[1..]);
        assert!(run(TLS, &record(22, &message)).is_err(), "{cut}");
    }
}

fn get(host: &str) -> String {
    format!("GET /path HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n\r\n")
}

#[test]
fn every_http_request_must_name_the_allowed_host() {
    assert!(passes(HTTP, get("a.example").as_bytes()));
    assert!(passes(HTTP, get("A.EXAMPLE:80").as_bytes()));
    assert!(passes(HTTP, (get("a.example") + &get("b.example")).as_bytes()));
    for bad in [
        "evil.example",
        "a.example.evil.org",
        "",
        "a.example@evil.example",
        "a.example:80@e",
        "1.2.3.4",
        "[::1]",
    ] {
        let second = get("a.example") + &get(bad);
        assert!(run(HTTP, get(bad).as_bytes()).is_err(), "{bad}");
        assert!(run(HTTP, second.as_bytes()).is_err(), "second, {bad}");
    }
}

#[test]
fn a_target_with_a_host_must_name_it_as_well() {
    let absolute = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n");
    assert!(passes(HTTP, absolute("http://a.example/x").as_bytes()));
    assert!(passes(HTTP, absolute("HTTP://a.example:80?x").as_bytes()));
    assert!(passes(HTTP, b"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n"));
    for bad in [
        "http://evil.example/",
        "http://a.example@evil.example/",
        "https://a.example/",
        "evil.example/",
        "//evil.example/ ",
    ] {
        assert!(run(HTTP, absolute(bad).as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn tunnels_are_refused() {
    for request in [
        "CONNECT evil.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "connect a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nUpgrade: h2c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket, h2c\r\n\r\n",
    ] {
        let refusal = run(HTTP, request.as_bytes()).unwrap_err();
        assert!(matches!(refusal, Refusal::Tunnel { .. }), "{request}: {refusal:?}");
    }
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    assert_eq!(run(HTTP, preface), Err(Refusal::Http2));
    assert_eq!(run(ANY, preface), Err(Refusal::Http2));
}

#[test]
fn a_web_socket_passes_and_hides_no_request() {
    let upgrade =
        "GET / HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
    let frame = [upgrade.as_bytes(), &[0x81, 0x85, 1, 2, 3, 4, 0, 0, 0, 0, 0]].concat();
    assert_eq!(run(HTTP, &frame).unwrap().1, Progress::Passed);
    let request = upgrade.to_owned() + &get("evil.example");
    assert!(run(HTTP, request.as_bytes()).is_err());
    let line = upgrade.to_owned() + "\r\n" + &get("evil.example");
    assert!(run(HTTP, line.as_bytes()).is_err());
}

#[test]
fn bodies_are_counted_and_hide_no_request() {
    let post = |fields: &str, body: &str| {
        format!("POST / HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n{body}")
    };
    let evil = get("evil.example");
    let length = format!("Content-Length: {}\r\n", evil.len());
    assert!(passes(HTTP, post(&length, &evil).as_bytes()), "it is a body");
    assert!(passes(
        HTTP,
        post("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n").as_bytes()
    ));
    assert!(passes(
        HTTP,
        post("Transfer-Encoding: Chunked\r\n", "3;x=y\r\nabc\r\n00\r\nT: x\r\n\r\n").as_bytes()
    ));

    let chunked = "Transfer-Encoding: chunked\r\n";
    for (fields, body) in [
        ("Content-Length: 0\r\n", evil.clone()),
        ("Content-Length: 4\r\nContent-Length: 0\r\n", "abcd".to_owned()),
        ("Content-Length: 4, 4\r\n", "abcd".to_owned()),
        ("Content-Length: +4\r\n", "abcd".to_owned()),
        ("Content-Length: -1\r\n", String::new()),
        ("Content-Length: 99999999999999999999\r\n", String::new()),
        ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n".to_owned()),
        ("Transfer-Encoding: identity\r\n", String::new()),
        ("Transfer-Encoding: gzip, chunked\r\n", String::new()),
        ("Transfer-Encoding: \x0bchunked\r\n", String::new()),
        ("Transfer-Encoding : chunked\r\n", String::new()),
        ("X: y\r\n Transfer-Encoding: chunked\r\n", String::new()),
        ("X: a\nTransfer-Encoding: chunked\r\n", String::new()),
        ("X: a\rY: b\r\n", String::new()),
        (chunked, "0\r\n\r\n".to_owned() + &evil),
        (chunked, "3\r\nabcd\r\n0\r\n\r\n".to_owned()),
        (chunked, "3\nabc\r\n0\r\n\r\n".to_owned()),
        (chunked, "0x3\r\nabc\r\n0\r\n\r\n".to_owned()),
        (chunked, "-1\r\n".to_owned()),
        (chunked, "10000000000000000\r\n".to_owned()),
        ("Host: evil.example\r\n", String::new()),
        ("hOST: a.example\r\n", String::new()),
    ] {
        let bytes = post(fields, &body);
        assert!(run(HTTP, bytes.as_bytes()).is_err(), "{bytes:?}");
    }
}

#[test]
fn a_request_without_a_host_is_refused() {
    assert!(run(HTTP, b"GET / HTTP/1.0\r\n\r\n").is_err());
    assert!(run(HTTP, b"GET /\r\n\r\n").is_err());
    assert!(run(HTTP, b"\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n").is_err());
    assert!(run(HTTP, b"GET / HTTP/1.1\r\nHost: a.exam\0ple\r\n\r\n").is_err());
    assert!(run(HTTP, b"GET / HTTP/3.0\r\nHost: a.example\r\n\r\n").is_err());
}

#[test]
fn what_is_neither_tls_nor_http_passes_where_a_rule_says_so() {
    for bytes in [
        &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
        b"EHLO client\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"get key\r\n",
    ] {
        let (out, progress) = run(ANY, bytes).unwrap();
        assert_eq!((out.as_slice(), progress), (bytes, Progress::Passed));
    }
    let mut inspector = inspector(ANY);
    inspector.push(b"SSH-2.0-x\r\n", &mut Vec::new()).unwrap();
    assert_eq!(inspector.host().unwrap().as_str(), "a.example");
}

#[test]
fn http_is_known_in_disguise() {
    let evil = get("evil.example");
    for prefix in ["\r\n", "\n\n", "\r\n\r\n"] {
        assert!(run(ANY, (prefix.to_owned() + &evil).as_bytes()).is_err(), "{prefix:?}");
    }
    for line in [
        "FROBNICATE / HTTP/1.1\r\n",
        "GET /é HTTP/1.1\r\n",
        "GET\t/\tHTTP/1.1\r\n",
        "get / http/1.1\r\n",
        "GET / HTTP/1.1\n",
        "GET   /   HTTP/1.1   \r\n",
    ] {
        let bytes = line.to_owned() + "Host: evil.example\r\n\r\n";
        assert!(run(ANY, bytes.as_bytes()).is_err(), "{line:?}");
    }
    let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(20_000));
    assert!(run(ANY, long.as_bytes()).is_err());
}

#[test]
fn what_is_held_is_bounded() {
    let endless = vec![b'x'; MAX_HELD + 2];
    for start in [&b"GET / HTTP/1.1\r\nX: "[..], b"GET /"] {
        let bytes = [start, &endless].concat();
        let mut inspector = inspector(HTTP);
        let mut refused = false;
        for part in bytes.chunks(1000) {
            refused |= inspector.push(part, &mut Vec::new()).is_err();
            assert!(refused || inspector.held.len() <= MAX_HELD + 1000);
        }
        assert!(refused);
    }
    let huge = [&[1, 0xff, 0xff, 0xff][..], &[0; 10_000]].concat();
    assert!(inspector(TLS).push(&record(22, &huge), &mut Vec::new()).is_err());
}

#[test]
fn a_long_body_costs_no_memory() {
    let mut inspector = inspector(HTTP);
    let mut out = Vec::new();
    inspector
        .push(b"PUT / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 10000000\r\n\r\n", &mut out)
        .unwrap();
    let part = vec![b'x'; 100_000];
    for _ in 0..100 {
        out.clear();
        inspector.push(&part, &mut out).unwrap();
        assert_eq!((out.len(), inspector.held.len()), (100_000, 0));
    }
    assert!(inspector.push(get("evil.example").as_bytes(), &mut out).is_err());
}

//! Proxies and secrets with real sockets: the test is the network stack, and holds the guest's end of each flow.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use cabana_egress_host::{EgressConfig, Secret, Trust, What};
use cabana_netstack::{Gate, Opening, Protocol};
use common::stack::{Stack, ask, connect_proxy, get, proxies};
use common::{EVIL, GOOD, Names, Server, in_namespace};
use data_encoding::BASE64;
use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

#[test]
fn plain_http_goes_through_a_proxy_with_whole_urls() {
    if !in_namespace("plain_http_goes_through_a_proxy_with_whole_urls") {
        return;
    }
    let proxy = Server::http("127.0.0.1:0", "hello");
    let names = Names::default();
    names.set("a.example", &[GOOD]);
    let word = format!("http://me:pass@{}", proxy.address);
    let mut stack = Stack::new(&["a.example"], &names, proxies(&word));
    stack.look_up("a.example.");
    let mut stream = stack.open(&format!("{GOOD}:80"));
    let request = "GET /x HTTP/1.1\r\nHost: a.example\r\nProxy-Authorization: Basic evil\r\n\r\n";
    assert!(ask(&mut stream, request, "hello").ends_with("hello"));
    assert!(ask(&mut stream, &get("a.example:80"), "hello").ends_with("hello"));
    let seen = proxy.seen().concat();
    let credentials = BASE64.encode(b"me:pass");
    let first = format!(
        "GET http://a.example/x HTTP/1.1\r\nProxy-Authorization: Basic {credentials}\r\nHost: a.example\r\n\r\n"
    );
    assert!(seen.starts_with(&first), "{seen}");
    assert!(seen.contains("GET http://a.example:80/x HTTP/1.1"), "{seen}");

    let refused = ask(&mut stream, &get("evil.example"), "hello");
    assert_eq!(refused, "", "another host in a later request");
    assert!(!proxy.seen().concat().contains("evil.example"));
}

#[test]
fn other_protocols_go_through_connect_and_the_server_may_speak_first() {
    if !in_namespace("other_protocols_go_through_connect_and_the_server_may_speak_first") {
        return;
    }
    let names = Names::default();
    names.set("git.example", &[GOOD]);
    let (address, proxy) = connect_proxy("200 Connection established");
    let config = proxies(&format!("http://u:p@{address}"));
    let mut stack = Stack::new(&["git.example:22"], &names, config);
    stack.look_up("git.example.");
    let mut stream = stack.open(&format!("{GOOD}:22"));
    assert_eq!(ask(&mut stream, "SSH-2.0-client\r\n", "server\r\n"), "SSH-2.0-server\r\n");
    let head = proxy.join().unwrap();
    assert!(
        head.starts_with("CONNECT git.example:22 HTTP/1.1\r\nHost: git.example:22\r\n"),
        "{head}"
    );
    assert!(
        head.contains(&format!("Proxy-Authorization: Basic {}", BASE64.encode(b"u:p"))),
        "{head}"
    );
}

#[test]
fn a_proxy_that_refuses_is_an_event_with_its_words() {
    if !in_namespace("a_proxy_that_refuses_is_an_event_with_its_words") {
        return;
    }
    let names = Names::default();
    names.set("git.example", &[GOOD]);
    let (address, proxy) = connect_proxy("407 Proxy Authentication Required");
    let mut stack = Stack::new(&["git.example:22"], &names, proxies(&format!("http://{address}")));
    stack.look_up("git.example.");
    let mut stream = stack.open(&format!("{GOOD}:22"));
    assert_eq!(ask(&mut stream, "", "never"), "");
    let why = stack.log.wait(|event| match &event.what {
        What::Failed { why, .. } => Some(why.clone()),
        _ => None,
    });
    assert!(why.contains("user and a password"), "{why}");
    drop(stream);
    proxy.join().unwrap();
}

/// What a client said at its login, and what it asked for.
type Asked = (Vec<u8>, Vec<u8>);

/// A SOCKS 5 server that keeps the request and then echoes a banner.
fn socks_proxy() -> (SocketAddr, thread::JoinHandle<Asked>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut take = |count| {
            let mut bytes = vec![0; count];
            stream.read_exact(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(take(3), [5, 1, 2]);
        stream.write_all(&[5, 2]).unwrap();
        let mut take = |count| {
            let mut bytes = vec![0; count];
            stream.read_exact(&mut bytes).unwrap();
            bytes
        };
        let login = take(1 + 1 + 1 + 1 + 1);
        stream.write_all(&[1, 0]).unwrap();
        let mut take = |count| {
            let mut bytes = vec![0; count];
            stream.read_exact(&mut bytes).unwrap();
            bytes
        };
        let mut request = take(4);
        let rest = match request[3] {
            1 => 4,
            3 => {
                let length = take(1);
                request.extend(&length);
                usize::from(length[0])
            }
            kind => panic!("{kind}"),
        };
        request.extend(take(rest + 2));
        stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
        stream.write_all(b"hello").unwrap();
        (login, request)
    };
    (address, thread::spawn(serve))
}

#[test]
fn socks_gets_the_name_or_the_pinned_address() {
    if !in_namespace("socks_gets_the_name_or_the_pinned_address") {
        return;
    }
    let names = Names::default();
    names.set("git.example", &[GOOD]);
    for (scheme, expected) in [
        ("socks5h", [&[5, 1, 0, 3, 11][..], b"git.example", &[0, 22]].concat()),
        ("socks5", vec![5, 1, 0, 1, 93, 184, 216, 34, 0, 22]),
    ] {
        let (address, proxy) = socks_proxy();
        let config = proxies(&format!("{scheme}://a:b@{address}"));
        let mut stack = Stack::new(&["git.example:22"], &names, config);
        stack.look_up("git.example.");
        let mut stream = stack.open(&format!("{GOOD}:22"));
        assert_eq!(ask(&mut stream, "", "hello"), "hello");
        let (login, request) = proxy.join().unwrap();
        assert_eq!(login, [1, 1, b'a', 1, b'b']);
        assert_eq!(request, expected, "{scheme}");
    }
}

#[test]
fn what_the_policy_denies_reaches_no_proxy() {
    if !in_namespace("what_the_policy_denies_reaches_no_proxy") {
        return;
    }
    let proxy = Server::http("127.0.0.1:0", "hello");
    let names = Names::default();
    names.set("a.example", &[GOOD]);
    let mut stack =
        Stack::new(&["a.example"], &names, proxies(&format!("http://{}", proxy.address)));
    stack.look_up("a.example.");
    for to in [format!("{EVIL}:80"), format!("{GOOD}:22"), "169.254.169.254:80".to_owned()] {
        let (id, flow) = stack.flow(Protocol::Tcp, to.parse().unwrap());
        assert!(matches!(stack.gate.open(Duration::ZERO, id, &flow), Opening::Refuse), "{to}");
    }
    let mut stream = stack.open(&format!("{GOOD}:80"));
    assert_eq!(ask(&mut stream, &get("evil.example"), "hello"), "");
    assert!(proxy.seen().is_empty(), "{:?}", proxy.seen());
}

/// An authority and a server's certificate, as a company or the web would have them.
fn certificate(host: &str) -> (CertificateDer<'static>, Arc<ServerConfig>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap().der().clone();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let leaf =
        CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    (root, Arc::new(config))
}

/// A server in TLS that answers with the request that it got.
fn tls_server(address: &str, config: Arc<ServerConfig>) {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut tls = rustls::StreamOwned::new(connection, stream.unwrap());
            let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(count @ 1..) = tls.read(&mut buffer) {
                request.extend_from_slice(&buffer[..count]);
                if request.ends_with(b"\r\n\r\n") {
                    let head =
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.len());
                    let _ = tls.write_all(head.as_bytes());
                    let _ = tls.write_all(&request);
                    request.clear();
                }
            }
        }
    });
}

/// A client in the guest that trusts these roots in PEM or DER.
fn tls_client(
    host: &str,
    roots: &[CertificateDer<'static>],
    stream: TcpStream,
) -> rustls::StreamOwned<ClientConnection, TcpStream> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots.iter().cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    rustls::StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
}

fn secret(word: &str) -> Secret {
    Secret::parse(word, [5; 16], |_| None).unwrap()
}

fn from_pem(pem: &str) -> CertificateDer<'static> {
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    BASE64.decode(body.as_bytes()).unwrap().into()
}

#[test]
fn a_placeholder_becomes_the_secret_on_its_way() {
    if !in_namespace("a_placeholder_becomes_the_secret_on_its_way") {
        return;
    }
    let (root, config) = certificate("api.example");
    tls_server(&format!("{GOOD}:443"), config);
    let names = Names::default();
    names.set("api.example", &[GOOD]);
    let secret = secret("TOKEN=hush@api.example");
    let placeholder = secret.placeholder().text;
    let config = EgressConfig {
        secrets: vec![secret],
        trust: Trust::only(vec![root.to_vec()]),
        ..EgressConfig::default()
    };
    let mut stack = Stack::new(&["api.example"], &names, config);
    let ours = from_pem(stack.egress.authority_pem().unwrap());
    stack.look_up("api.example.");

    let stream = stack.open(&format!("{GOOD}:443"));
    let mut tls = tls_client("api.example", std::slice::from_ref(&ours), stream);
    let request = format!(
        "GET / HTTP/1.1\r\nHost: api.example\r\nAuthorization: Bearer {placeholder}\r\n\r\n"
    );
    let answer = ask(&mut tls, &request, "hush\r\n\r\n");
    assert!(answer.contains("Authorization: Bearer hush\r\n"), "{answer}");
    assert!(!answer.contains(&placeholder), "{answer}");

    // In any other place the placeholder goes nowhere, and that is told.
    let cookie = format!("GET / HTTP/1.1\r\nHost: api.example\r\nCookie: {placeholder}\r\n\r\n");
    assert_eq!(ask(&mut tls, &cookie, "\r\n\r\n"), "");
    let told = |event: &cabana_egress_host::Event| {
        serde_json::to_string(event).unwrap().contains("placeholder").then_some(())
    };
    stack.log.wait(told);
    let stream = stack.open(&format!("{GOOD}:443"));
    let mut tls = tls_client("api.example", &[ours], stream);
    let other = "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    assert_eq!(ask(&mut tls, other, "\r\n\r\n"), "", "another host inside");
}

#[test]
fn a_server_that_cannot_prove_its_name_gets_no_secret() {
    if !in_namespace("a_server_that_cannot_prove_its_name_gets_no_secret") {
        return;
    }
    let (_, config) = certificate("api.example");
    tls_server(&format!("{GOOD}:443"), config);
    let (other_root, _) = certificate("api.example");
    let names = Names::default();
    names.set("api.example", &[GOOD]);
    let config = EgressConfig {
        secrets: vec![secret("TOKEN=hush@api.example")],
        trust: Trust::only(vec![other_root.to_vec()]),
        ..EgressConfig::default()
    };
    let mut stack = Stack::new(&["api.example"], &names, config);
    let ours = from_pem(stack.egress.authority_pem().unwrap());
    stack.look_up("api.example.");
    let stream = stack.open(&format!("{GOOD}:443"));
    let mut tls = tls_client("api.example", &[ours], stream);
    assert!(tls.write_all(b"GET / HTTP/1.1\r\n").and_then(|()| tls.read(&mut [0; 1])).is_err());
    let why = stack.log.wait(|event| match &event.what {
        What::Failed { why, .. } => Some(why.clone()),
        _ => None,
    });
    assert!(why.contains("certificate"), "{why}");
}

#[test]
fn hosts_without_secrets_keep_their_own_tls() {
    if !in_namespace("hosts_without_secrets_keep_their_own_tls") {
        return;
    }
    let names = Names::default();
    names.set("other.example", &[GOOD]);
    let config =
        EgressConfig { secrets: vec![secret("TOKEN=hush@api.example")], ..EgressConfig::default() };
    let mut stack = Stack::new(&["other.example", "api.example"], &names, config);
    stack.look_up("other.example.");
    let (id, flow) = stack.flow(Protocol::Tcp, format!("{GOOD}:443").parse().unwrap());
    let opening = stack.gate.open(Duration::ZERO, id, &flow);
    assert!(matches!(opening, Opening::Connect { inspect: true, .. }), "{opening:?}");
}

#[test]
fn a_proxy_looks_up_what_this_host_cannot() {
    if !in_namespace("a_proxy_looks_up_what_this_host_cannot") {
        return;
    }
    let proxy = Server::http("127.0.0.1:0", "hello");
    let config = proxies(&format!("http://{}", proxy.address));
    let mut stack = Stack::new(&["far.example"], &Names::default(), config);
    stack.look_up("far.example.");
    let mut stream = stack.open("198.18.0.0:80");
    assert!(ask(&mut stream, &get("far.example"), "hello").ends_with("hello"));
    assert!(proxy.seen().concat().starts_with("GET http://far.example/x HTTP/1.1\r\n"));
}

//! Scripts that name proxies, with real sockets from the guest's end to the proxy's.
//! The interpreter is found and killed by `/proc`.
#![cfg(target_os = "linux")]

#[path = "../../egress-host/tests/common/mod.rs"]
mod common;
use std::fs;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use cabana_egress_host::{EgressConfig, Proxies};
use common::stack::{Stack, ask, connect_proxy, failure, get, proxies};
use common::{GOOD, Names, Server, in_namespace};
use rustix::process::{Pid, Signal, kill_process};

/// A file with this script's body, and the word that names it.
fn script(body: &str) -> (tempfile::NamedTempFile, String) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "function FindProxyForURL(url, host) {{ {body} }}").unwrap();
    let word = format!("pac+file://{}", file.path().display());
    (file, word)
}

#[test]
fn a_script_names_the_ways_and_they_are_tried_in_their_order() {
    if !in_namespace("a_script_names_the_ways_and_they_are_tried_in_their_order") {
        return;
    }
    let names = Names::default();
    names.set("git.example", &[GOOD]);
    names.set("near.example", &[GOOD]);
    let (address, proxy) = connect_proxy("200 Connection established");
    // Nobody is at the discard port.
    let (_file, word) = script(&format!(
        "if (dnsDomainIs(host, 'near.example')) return 'DIRECT'; \
         return url == 'https://git.example:22/' ? 'PROXY 127.0.0.1:9; PROXY {address}; DIRECT' : 'PROXY no' "
    ));
    let near = Server::http(&format!("{GOOD}:80"), "hello");
    let mut stack = Stack::new(&["git.example:22", "near.example"], &names, proxies(&word));
    stack.look_up("git.example.");
    let mut stream = stack.open(&format!("{GOOD}:22"));
    assert_eq!(ask(&mut stream, "SSH-2.0-client\r\n", "server\r\n"), "SSH-2.0-server\r\n");
    assert!(proxy.join().unwrap().starts_with("CONNECT git.example:22 HTTP/1.1\r\n"));
    stack.look_up("near.example.");
    let mut stream = stack.open(&format!("{GOOD}:80"));
    assert!(ask(&mut stream, &get("near.example"), "hello").ends_with("hello"));
    assert!(near.seen().concat().starts_with("GET /x HTTP/1.1\r\n"));
    // The policy is asked before the script's proxies are.
    let mut stream = stack.open(&format!("{GOOD}:80"));
    assert_eq!(ask(&mut stream, &get("git.example"), "never"), "");
}

#[test]
fn a_script_comes_from_the_web_and_may_send_names_to_a_proxy() {
    if !in_namespace("a_script_comes_from_the_web_and_may_send_names_to_a_proxy") {
        return;
    }
    let proxy = Server::http("127.0.0.1:0", "hello");
    let body = format!(
        "function FindProxyForURL(url, host) {{ return host == 'far.example' ? 'PROXY {}' : 'DIRECT' }}",
        proxy.address
    );
    let company = Server::http("127.0.0.1:0", body.leak());
    let word = format!("pac+http://{}/proxy.pac", company.address);
    let mut stack = Stack::new(&["far.example", "gone.example"], &Names::default(), proxies(&word));
    stack.look_up("far.example.");
    let mut stream = stack.open("198.18.0.0:80");
    assert!(ask(&mut stream, &get("far.example"), "hello").ends_with("hello"));
    assert!(proxy.seen().concat().starts_with("GET http://far.example/x HTTP/1.1\r\n"));
    // It was fetched once.
    let fetched = company.seen().concat();
    assert!(fetched.starts_with("GET /proxy.pac HTTP/1.0\r\nHost: 127.0.0.1:"), "{fetched}");
    assert_eq!(fetched.matches("GET").count(), 1, "{fetched}");
}

#[test]
fn without_its_script_nothing_goes_out_or_all_goes_as_if_there_were_none() {
    if !in_namespace("without_its_script_nothing_goes_out_or_all_goes_as_if_there_were_none") {
        return;
    }
    let names = Names::default();
    names.set("a.example", &[GOOD]);
    let server = Server::http(&format!("{GOOD}:80"), "hello");
    let missing = "http://127.0.0.1:9/proxy.pac";
    let (_file, wrong) = script("throw 'lunch'");
    for (word, expected) in [
        (format!("pac+{missing}"), "cannot fetch the script http://127.0.0.1:9/proxy.pac"),
        ("pac+file:///no/such/file".to_owned(), "cannot read the script /no/such/file"),
        (wrong, "the script failed: lunch"),
    ] {
        let mut stack = Stack::new(&["a.example"], &names, proxies(&word));
        stack.look_up("a.example.");
        let mut stream = stack.open(&format!("{GOOD}:80"));
        let _ = stream.write_all(get("a.example").as_bytes());
        assert_eq!(ask(&mut stream, "", "never"), "");
        let why = failure(&stack.log);
        assert!(why.starts_with(expected), "{why}");
    }
    assert_eq!(server.seen().concat(), "");
    // A script of the settings' is not needed, and neither is what runs it.
    let settings = |name: &str| (name == "auto_proxy").then(|| missing.to_owned());
    for started in [true, false] {
        let mut proxies = Proxies::from_environment(settings).unwrap();
        if started {
            proxies.start_interpreter().unwrap();
        }
        let config = EgressConfig { proxies, ..EgressConfig::default() };
        let mut stack = Stack::new(&["a.example"], &names, config);
        stack.look_up("a.example.");
        let mut stream = stack.open(&format!("{GOOD}:80"));
        assert!(ask(&mut stream, &get("a.example"), "hello").ends_with("hello"));
    }
}

#[test]
fn a_script_learns_the_addresses_that_the_resolver_knows() {
    if !in_namespace("a_script_learns_the_addresses_that_the_resolver_knows") {
        return;
    }
    let names = Names::default();
    names.set("a.example", &[GOOD]);
    names.set("proxy.example", &["127.0.0.1"]);
    let proxy = Server::http("127.0.0.1:0", "hello");
    let (_file, word) = script(&format!(
        "return dnsResolve(host) == '{GOOD}' && !isResolvable('b.example') ? \
         'PROXY ' + dnsResolve('proxy.example') + ':{}' : 'PROXY 127.0.0.1:9'",
        proxy.address.port()
    ));
    let mut stack = Stack::new(&["a.example"], &names, proxies(&word));
    stack.look_up("a.example.");
    let mut stream = stack.open(&format!("{GOOD}:80"));
    assert!(ask(&mut stream, &get("a.example"), "hello").ends_with("hello"));
    assert!(names.asked().contains(&"asked:b.example".to_owned()));
}

/// The interpreter of the one program that this process has started: the child of its child.
fn interpreting() -> Option<Pid> {
    let child = |process: &str| {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).ok()?;
        let children =
            tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
        children.collect::<String>().split_whitespace().next().map(str::to_owned)
    };
    Pid::from_raw(child(&child("self")?)?.parse().ok()?)
}

#[test]
fn an_interpreter_that_is_killed_costs_the_question_and_no_connection() {
    if !in_namespace("an_interpreter_that_is_killed_costs_the_question_and_no_connection") {
        return;
    }
    let names = Names::default();
    for name in ["a.example", "b.example", "c.example"] {
        names.set(name, &[GOOD]);
    }
    let _server = Server::http(&format!("{GOOD}:80"), "hello");
    let (_file, word) = script("if (host == 'b.example') for (;;); return 'DIRECT'");
    let mut stack = Stack::new(&["a.example", "b.example", "c.example"], &names, proxies(&word));
    stack.look_up("a.example.");
    let mut open = stack.open(&format!("{GOOD}:80"));
    assert!(ask(&mut open, &get("a.example"), "hello").ends_with("hello"));
    // Between two questions nobody notices.
    let mut last = interpreting().unwrap();
    kill_process(last, Signal::KILL).unwrap();
    stack.look_up("c.example.");
    let mut stream = stack.open(&format!("{GOOD}:80"));
    assert!(ask(&mut stream, &get("c.example"), "hello").ends_with("hello"));
    // Over a question it is asked once more, and then not again.
    let killer = thread::spawn(move || {
        for _ in 0..2 {
            let deadline = Instant::now() + Duration::from_secs(30);
            last = loop {
                assert!(Instant::now() < deadline, "no interpreter begins");
                match interpreting() {
                    Some(process) if process != last => break process,
                    _ => thread::sleep(Duration::from_millis(5)),
                }
            };
            // Long enough that it has begun to compute.
            thread::sleep(Duration::from_millis(700));
            kill_process(last, Signal::KILL).unwrap();
        }
    });
    stack.look_up("b.example.");
    let mut stream = stack.open(&format!("{GOOD}:80"));
    assert_eq!(ask(&mut stream, &get("b.example"), "never"), "");
    assert_eq!(failure(&stack.log), "the script's interpreter ended (killed by signal 9)");
    killer.join().unwrap();
    assert!(ask(&mut open, &get("a.example"), "hello").ends_with("hello"));
}

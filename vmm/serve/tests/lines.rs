//! What needs no guest: requests, errors, lines that are none, and who may speak to a socket.

use std::io::{BufRead, BufReader, Write};
use std::thread;

use cabana_api::{
    Call, CommandSpec, CopySpec, MachineSpec, MachineState, Named, Outcome, Place, SessionSpec,
};
use cabana_engine::{Engine, EngineConfig};
use cabana_os::{LocalListener, LocalStream};
use cabana_serve::{Client, ClientError, Server};

/// A server whose store is empty, so that no machine starts.
fn server(home: &tempfile::TempDir) -> std::sync::Arc<Server> {
    let home = Some(home.path().to_owned());
    Server::new(Engine::new(EngineConfig { home, ..EngineConfig::default() }).unwrap())
}

fn connect(home: &tempfile::TempDir) -> LocalStream {
    let (ours, theirs) = LocalStream::pair().unwrap();
    let server = server(home);
    thread::spawn(move || server.serve(theirs.try_clone().unwrap(), theirs));
    ours
}

fn named(machine: &str) -> Named {
    Named { machine: machine.to_owned() }
}

#[test]
fn every_request_has_an_answer() {
    let home = tempfile::tempdir().unwrap();
    let stream = connect(&home);
    let mut client = Client::new(stream.try_clone().unwrap(), stream).unwrap();
    let mut ask = |call| client.call(call, |_| {});
    let refused = |outcome: Result<Outcome, ClientError>| match outcome {
        Err(ClientError::Refused(fault)) => fault.code,
        other => panic!("{other:?}"),
    };
    let spec = |name: &str| MachineSpec { name: name.to_owned(), ..MachineSpec::default() };
    let made = ask(Call::MachineCreate { spec: spec("m") }).unwrap();
    assert!(matches!(made, Outcome::Machine(status) if status.state == MachineState::Idle));
    assert_eq!(refused(ask(Call::MachineCreate { spec: spec("m") })), "exists");
    assert_eq!(refused(ask(Call::MachineCreate { spec: spec("a/b") })), "invalid");
    assert_eq!(refused(ask(Call::MachineStart(named("m")))), "store");
    let command = CommandSpec::new(["true"]);
    assert_eq!(refused(ask(Call::Exec { machine: "n".to_owned(), command })), "not-found");
    assert_eq!(refused(ask(Call::StdinClose { process: 7 })), "not-found");
    assert_eq!(refused(ask(Call::Signal { process: 7, signal: 9 })), "not-found");
    assert!(matches!(ask(Call::MachineList), Ok(Outcome::Machines(all)) if all.len() == 1));
    // Sessions of a machine that cannot start.
    let machine = || "m".to_owned();
    let session = || "s".to_owned();
    let made = SessionSpec { name: session(), ..SessionSpec::default() };
    assert_eq!(refused(ask(Call::SessionCreate { machine: machine(), spec: made })), "store");
    assert!(
        matches!(ask(Call::SessionList(named("m"))), Ok(Outcome::Sessions(all)) if all.is_empty())
    );
    let removed = ask(Call::SessionRemove { machine: machine(), session: session() });
    assert_eq!(refused(removed), "not-found");
    let place = || Place { machine: machine(), session: None };
    let copy = CopySpec { host: "relative".into(), guest: "/x".to_owned() };
    assert_eq!(refused(ask(Call::CopyIn { place: place(), copy: copy.clone() })), "invalid");
    let elsewhere = Place { session: Some(session()), ..place() };
    assert_eq!(refused(ask(Call::CopyOut { place: elsewhere, copy })), "not-found");
    assert_eq!(refused(ask(Call::ForwardEnd { forward: 1 })), "not-found");
    let local = ([127, 0, 0, 1], 0).into();
    let forward = Call::Forward { place: place(), host: local, guest: local };
    let Ok(Outcome::Forward(forward)) = ask(forward) else { panic!("no forward") };
    let back = Call::Forward { place: place(), host: forward.listens, guest: local };
    assert_eq!(refused(ask(back)), "listen");
    let end = Call::ForwardEnd { forward: forward.forward };
    assert!(matches!(ask(end), Ok(Outcome::Done(true))));
    assert!(matches!(ask(Call::MachineRemove(named("m"))), Ok(Outcome::Done(true))));
    assert!(matches!(ask(Call::MachineList), Ok(Outcome::Machines(all)) if all.is_empty()));
}

#[test]
fn lines_that_are_no_requests_are_told_and_passed_over() {
    let home = tempfile::tempdir().unwrap();
    let stream = connect(&home);
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().starts_with(r#"{"cabana":1,"#));
    let mut stream = stream;
    for bad in ["{", "[]", r#"{"id":1}"#, r#"{"id":1,"call":"dance"}"#, "\u{0}"] {
        writeln!(stream, "{bad}").unwrap();
        let told = lines.next().unwrap();
        assert!(told.starts_with(r#"{"misread":"#), "{bad}: {told}");
    }
    write!(stream, "\n  \n{{\"id\":9,\"call\":\"machine-list\"}}\n").unwrap();
    assert_eq!(lines.next().unwrap(), r#"{"id":9,"machines":[]}"#);
    // A line without an end does not fill the server.
    let chunk = vec![b' '; 1 << 20];
    for _ in 0..16 {
        stream.write_all(&chunk).unwrap();
    }
    assert!(lines.next().unwrap().contains("longer than"));
    drop(stream);
}

#[test]
fn a_socket_serves_its_owner_and_many_at_once() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("socket");
    let listener = LocalListener::bind(&path).unwrap();
    let server = server(&home);
    thread::spawn(move || server.serve_socket(&listener));
    let mut clients: Vec<_> = (0..8)
        .map(|_| {
            let stream = LocalStream::connect(&path).unwrap();
            Client::new(stream.try_clone().unwrap(), stream).unwrap()
        })
        .collect();
    for client in &mut clients {
        assert!(matches!(client.call(Call::MachineList, |_| {}), Ok(Outcome::Machines(_))));
    }
}

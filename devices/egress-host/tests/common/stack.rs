//! The test is the network stack, and holds the guest's end of each flow.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use cabana_egress_host::{Egress, EgressConfig, EgressGate, EgressPolicy, Proxies, What, egress};
use cabana_netstack::{Flow, Gate, MACHINE_V4, Opening, Order, Protocol};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};

use super::{Log, Names, PATIENCE, wait};

pub(crate) struct Stack {
    pub(crate) gate: EgressGate,
    pub(crate) egress: Egress,
    pub(crate) log: Log,
    next: u64,
}

impl Stack {
    pub(crate) fn new(allow: &[&str], names: &Names, config: EgressConfig) -> Self {
        let log = Log::default();
        let allow = allow.iter().map(|word| (*word).to_owned()).collect();
        let (egress, mut gate) = egress(EgressConfig {
            policy: EgressPolicy { allow, ..EgressPolicy::default() },
            resolver: Arc::new(names.clone()),
            ..config
        })
        .unwrap();
        egress.listen(log.listener());
        egress.assign(MACHINE_V4.into(), None);
        gate.start(Arc::new(|| {}));
        Self { gate, egress, log, next: 0 }
    }

    pub(crate) fn flow(&mut self, protocol: Protocol, to: SocketAddr) -> (u64, Flow) {
        self.next += 1;
        let source = SocketAddr::new(MACHINE_V4.into(), 40_000);
        (self.next, Flow { protocol, source, destination: to })
    }

    /// Looks a name up, as the guest would.
    pub(crate) fn look_up(&mut self, name: &str) {
        let mut message = Message::new(9, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        let (id, flow) = self.flow(Protocol::Udp, "10.107.0.1:53".parse().unwrap());
        self.gate.query(Duration::ZERO, id, &flow, &message.to_vec().unwrap());
        let answer = wait(|| self.gate.poll(Duration::ZERO), || name.to_owned());
        let Order::Answer(_, bytes) = answer else { panic!("{answer:?}") };
        assert!(!Message::from_vec(&bytes).unwrap().answers.is_empty(), "{name}");
    }

    /// Opens a flow that is served in the process.
    pub(crate) fn open(&mut self, to: &str) -> TcpStream {
        let (id, flow) = self.flow(Protocol::Tcp, to.parse().unwrap());
        match self.gate.open(Duration::ZERO, id, &flow) {
            Opening::Serve(socket) => {
                let stream = TcpStream::from(socket);
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream
            }
            other => panic!("{to} is not served: {other:?}"),
        }
    }
}

/// Why the first flow failed that did.
pub(crate) fn failure(log: &Log) -> String {
    log.wait(|event| match &event.what {
        What::Failed { why, .. } => Some(why.clone()),
        _ => None,
    })
}

/// Sends a request and reads until `end` has come, or the stream's end.
pub(crate) fn ask(stream: &mut (impl Read + Write), request: &str, end: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let (mut answer, mut buffer) = (String::new(), [0; 4096]);
    while !answer.ends_with(end) {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => answer.push_str(&String::from_utf8_lossy(&buffer[..count])),
        }
    }
    answer
}

pub(crate) fn get(host: &str) -> String {
    format!("GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

pub(crate) fn proxies(word: &str) -> EgressConfig {
    let mut proxies = Proxies::only(word).unwrap();
    proxies.start_interpreter().unwrap();
    EgressConfig { proxies, ..EgressConfig::default() }
}

/// A proxy that answers `CONNECT` after a look at the head, and then is a server that echoes one line.
pub(crate) fn connect_proxy(status: &'static str) -> (SocketAddr, thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        stream
            .write_all(format!("HTTP/1.1 {status}\r\n\r\nSSH-2.0-server\r\n").as_bytes())
            .unwrap();
        let mut rest = [0; 16];
        let _ = stream.read_exact(&mut rest);
        String::from_utf8(head).unwrap()
    };
    (address, thread::spawn(serve))
}

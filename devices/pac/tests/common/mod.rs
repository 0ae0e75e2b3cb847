//! Scripts, and who asks them.

use std::net::IpAddr;

use cabana_pac::{Interpreter, World};

/// What scripts of these tests hear of the world.
pub(crate) struct Names;

impl World for Names {
    fn resolve(&self, name: &str) -> Vec<IpAddr> {
        let addresses = match name {
            "localhost" => ["127.0.0.1"].as_slice(),
            "two.example" => &["203.0.113.7", "2001:db8::7"],
            _ => &[],
        };
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    fn own_addresses(&self) -> Vec<IpAddr> {
        vec!["192.0.2.9".parse().unwrap()]
    }
}

/// The program, for no script yet.
pub(crate) fn start() -> Interpreter {
    Interpreter::start_at(env!("CARGO_BIN_EXE_cabana-pac").into()).unwrap()
}

/// A script of this body.
pub(crate) fn script(body: &str) -> String {
    format!("function FindProxyForURL(url, host) {{ {body} }}")
}

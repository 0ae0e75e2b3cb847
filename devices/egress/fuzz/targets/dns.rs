#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use cabana_egress::{Asker, DnsStep, EgressPolicy, Gate, Protocol};
use libfuzzer_sys::fuzz_target;

const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 107, 0, 2));

fuzz_target!(|message: &[u8]| {
    let policy = EgressPolicy { allow: vec!["*".to_owned()], ..EgressPolicy::default() };
    let mut gate = Gate::new(&policy).expect("a star is a rule");
    gate.assign(GUEST, None);
    let now = Duration::from_secs(1);
    let from = Asker { protocol: Protocol::Udp, address: (GUEST, 40_000).into() };
    let step = match gate.query(now, 1, from, message) {
        DnsStep::Resolve(lookup) => {
            let addresses = [IpAddr::from([1, 1, 1, 1]), IpAddr::from([0x2606; 8])].repeat(9);
            gate.resolved(now, &lookup, Ok(&addresses))
        }
        step => step,
    };
    if let DnsStep::Reply(reply) = step {
        assert_eq!(reply[..2], message[..2]);
        assert!(reply.len() <= 512);
    }
});

//! The network card and what stands behind it.

use std::net::{IpAddr, SocketAddr};

use cabana_egress_host::{Egress, EgressConfig, Trust, egress};
use cabana_net::Net;
use cabana_netstack::{
    Capture, GATEWAY_V4, GATEWAY_V6, GUEST_MAC, Limits, MACHINE_V4, MACHINE_V6, Network, PREFIX_V4,
    PREFIX_V6,
};
use cabana_os::LoopHandle;
use cabana_protocol::NetworkSetup;

use crate::{Error, NetworkConfig};

/// Makes the network and its card; both are served on `events`.
pub(crate) fn make(
    config: &NetworkConfig,
    events: &LoopHandle,
) -> Result<(Network, Net<Network>, Egress), Error> {
    // Reading the host's roots takes milliseconds, which only who needs them spends.
    let needs_trust = !config.secrets.is_empty() || !config.proxies.is_empty();
    let (egress, gate) = egress(EgressConfig {
        policy: config.egress.clone(),
        log: config.log.clone(),
        proxies: config.proxies.clone(),
        secrets: config.secrets.clone(),
        trust: if needs_trust { Trust::of_this_host() } else { Trust::default() },
        ..EgressConfig::default()
    })?;
    egress.assign(MACHINE_V4.into(), None);
    egress.assign(MACHINE_V6.into(), None);
    let capture = config.capture.as_deref().map(|path| {
        let made = Capture::create(path);
        made.map_err(|source| Error::Capture { path: path.to_owned(), source })
    });
    // The gateway speaks to the guest by the family of the port's own address.
    let publish = config.publish.iter().map(|publish| {
        let guest: IpAddr =
            if publish.host.is_ipv4() { MACHINE_V4.into() } else { MACHINE_V6.into() };
        let guest = SocketAddr::new(guest, publish.guest);
        cabana_netstack::Publish { host: publish.host, guest }
    });
    let network = Network::start(
        cabana_netstack::NetworkConfig {
            mtu: config.mtu,
            limits: Limits::default(),
            gate: Box::new(gate),
            publish: publish.collect(),
            capture: capture.transpose()?,
        },
        events.clone(),
    )?;
    let card = Net::new(network.clone(), GUEST_MAC, config.mtu, events.clone());
    Ok((network, card, egress))
}

/// What the agent is told of the card.
pub(crate) fn setup() -> NetworkSetup {
    NetworkSetup {
        interface: "eth0".to_owned(),
        v4: MACHINE_V4.octets(),
        v4_prefix: PREFIX_V4,
        v4_gateway: GATEWAY_V4.octets(),
        v6: MACHINE_V6.octets(),
        v6_prefix: PREFIX_V6,
        v6_gateway: GATEWAY_V6.octets(),
    }
}

//! The network card and what stands behind it.

use std::net::{IpAddr, SocketAddr};

use cabana_egress_host::{Egress, EgressConfig, Trust, egress};
use cabana_net::Net;
use cabana_netstack::{
    Cable, Capture, FrameLink, GATEWAY_V4, GATEWAY_V6, GUEST_MAC, Limits, MACHINE_V4, MACHINE_V6,
    Network, NetworkCounters, PREFIX_V4, PREFIX_V6, Plug, session_addresses, session_mac,
};
use cabana_os::{EventLoop, FromHandle, LoopHandle, OwnedHandle, Packets};
use cabana_protocol::{NetworkSetup, SessionCard};
use cabana_virtio::VirtioDevice;

use crate::{CableConfig, Error, NetworkConfig};

/// The card's name in the guest, and that of a session's, which has to be another: the kernel looks for it in the
/// machine's network too.
const INTERFACE: &str = "eth0";
const SESSION_INTERFACE: &str = "net0";

/// A network without a machine: the card is in another process, at the other end of a cable
/// ([`MachineConfig::cable`](crate::MachineConfig)). It ends when this is dropped.
pub struct NetworkHost {
    network: Network,
    egress: Egress,
    _plug: Plug,
    _events: EventLoop,
}

impl NetworkHost {
    /// Begins to serve the card at the other end of `socket`.
    pub fn start(config: &NetworkConfig, socket: OwnedHandle) -> Result<Self, Error> {
        let events = EventLoop::spawn("net").map_err(Error::host("a thread"))?;
        let (network, egress) = behind(config, &events.handle())?;
        let packets = Packets::from_handle(socket).map_err(Error::host("a socket"))?;
        let plug = Plug::new(network.clone(), packets, events.handle());
        let plug = plug.map_err(Error::host("an event"))?;
        Ok(Self { network, egress, _plug: plug, _events: events })
    }

    /// What may leave.
    pub fn egress(&self) -> &Egress {
        &self.egress
    }

    /// Figures of it.
    pub fn counters(&self) -> NetworkCounters {
        self.network.counters()
    }

    /// Where the host listens for the guest, in the order of the configuration.
    pub fn published(&self) -> Vec<SocketAddr> {
        self.network.published()
    }
}

/// A card plugged into a network.
pub(crate) fn card(
    link: impl FrameLink + Sync + 'static,
    mtu: u16,
    events: &LoopHandle,
) -> Box<dyn VirtioDevice> {
    Box::new(Net::new(link, GUEST_MAC, mtu, events.clone()))
}

/// A card whose network is in another process.
pub(crate) fn cabled(
    config: &CableConfig,
    events: &LoopHandle,
) -> Result<Box<dyn VirtioDevice>, Error> {
    let socket = config.socket.try_clone().map_err(Error::host("a descriptor"))?;
    let packets = Packets::from_handle(socket).map_err(Error::host("a socket"))?;
    let cable = Cable::new(packets, events.clone());
    Ok(card(cable.map_err(Error::host("an event"))?, config.mtu, events))
}

/// Makes what stands behind a card; it is served on `events`.
pub(crate) fn behind(
    config: &NetworkConfig,
    events: &LoopHandle,
) -> Result<(Network, Egress), Error> {
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
    Ok((network, egress))
}

/// What the agent is told of the machine's card.
pub fn machine_card() -> NetworkSetup {
    addressed(INTERFACE, MACHINE_V4.octets(), MACHINE_V6.octets())
}

/// The card of the session in `slot`, 1 to [`MAX_SESSIONS`](crate::MAX_SESSIONS): what the host knows its traffic by,
/// once [`Egress::assign_session`] has told whose the slot is.
pub fn session_card(slot: u16) -> Option<SessionCard> {
    let (v4, v6) = session_addresses(slot)?;
    Some(SessionCard {
        parent: INTERFACE.to_owned(),
        mac: session_mac(slot).0,
        network: addressed(SESSION_INTERFACE, v4.octets(), v6.octets()),
    })
}

fn addressed(interface: &str, v4: [u8; 4], v6: [u8; 16]) -> NetworkSetup {
    NetworkSetup {
        interface: interface.to_owned(),
        v4,
        v4_prefix: PREFIX_V4,
        v4_gateway: GATEWAY_V4.octets(),
        v6,
        v6_prefix: PREFIX_V6,
        v6_gateway: GATEWAY_V6.octets(),
    }
}

//! Rules by which the kernel sends the TCP traffic of a pod through its proxy, in the network namespace of that pod.
//!
//! Pure but for [`source_address`]: [`Settings::inbound`] and [`Settings::outbound`] say what happens in which order, and
//! [`nft`] and [`iptables`] write the same rules for either tool.

pub(crate) mod iptables;
mod list;
pub(crate) mod nft;
pub(crate) mod source_address;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ports::{HBONE, NOT_REDIRECTED};

pub(crate) use list::{InterfaceName, List, Network, Port, Selection};

/// The source addresses from which the proxy and its agent connect to the application beside them.
pub(crate) const SOURCE_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// Like [`SOURCE_V4`]; unlike it, the loopback interface does not have it by itself, see [`source_address`].
pub(crate) const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// Which traffic is redirected where.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The user of the proxy, whose own traffic is left alone.
    pub proxy_uid: u32,
    /// Its group.
    pub proxy_gid: u32,
    /// The port of the proxy for outbound traffic.
    pub outbound_port: Port,
    /// The port of the proxy for inbound traffic.
    pub inbound_port: Port,
    /// The ports whose inbound traffic is redirected.
    pub inbound_ports: Selection<Port>,
    /// Those of them whose traffic is not.
    pub exclude_inbound_ports: List<Port>,
    /// The destinations to which outbound traffic is redirected.
    pub outbound_ranges: Selection<Network>,
    /// Those of them to which it is not.
    pub exclude_outbound_ranges: List<Network>,
    /// The ports to which outbound traffic is redirected, whatever its destination.
    pub outbound_ports: List<Port>,
    /// The ports to which outbound traffic is not redirected.
    pub exclude_outbound_ports: List<Port>,
    /// The interfaces whose traffic is not redirected.
    pub exclude_interfaces: List<InterfaceName>,
}

/// What a connection must be like for a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Match {
    /// It comes in by this interface.
    In(String),
    /// It goes out by this interface.
    Out(String),
    /// It stays in the pod.
    Loopback,
    /// It comes from this address.
    Source(IpAddr),
    /// It goes to this network.
    To(Network),
    /// It goes elsewhere than to this address.
    NotTo(IpAddr),
    /// It goes to one of these ports.
    Ports(BTreeSet<u16>),
    /// It goes to another port.
    NotPort(u16),
    /// It belongs to a process of this user.
    Uid(u32),
    /// It belongs to a process of this group.
    Gid(u32),
}

impl Match {
    /// Whether it can apply to IPv6, or to IPv4.
    fn applies_to(&self, v6: bool) -> bool {
        match self {
            Self::Source(ip) | Self::NotTo(ip) => ip.is_ipv6() == v6,
            Self::To(network) => network.is_ipv6() == v6,
            _ => true,
        }
    }
}

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It goes where it was going.
    Leave,
    /// It goes to this port of the pod.
    Redirect(u16),
}

/// The first rule whose matches all hold decides.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    matches: Vec<Match>,
    verdict: Verdict,
}

fn leave(matches: impl Into<Vec<Match>>) -> Rule {
    Rule { matches: matches.into(), verdict: Verdict::Leave }
}

fn redirect(matches: impl Into<Vec<Match>>, port: Port) -> Rule {
    Rule { matches: matches.into(), verdict: Verdict::Redirect(port.0) }
}

/// A match for some ports; no rule if there is none.
fn to_ports(ports: &BTreeSet<Port>) -> Option<Match> {
    (!ports.is_empty()).then(|| Match::Ports(ports.iter().map(|port| port.0).collect()))
}

impl Settings {
    /// The rules for connections that enter the pod.
    fn inbound(&self) -> Vec<Rule> {
        let Selection::Only(ports) = &self.inbound_ports else {
            let mut rules = self.never_inbound();
            rules.push(redirect([], self.inbound_port));
            return rules;
        };
        match to_ports(ports) {
            Some(ports) => {
                let mut rules = self.never_inbound();
                rules.push(redirect([ports], self.inbound_port));
                rules
            }
            None => Vec::new(),
        }
    }

    fn never_inbound(&self) -> Vec<Rule> {
        let ports = self.exclude_inbound_ports.0.iter().map(|port| port.0).chain(NOT_REDIRECTED);
        let interfaces = self.exclude_interfaces.0.iter();
        interfaces
            .map(|interface| leave([Match::In(interface.0.clone())]))
            .chain([leave([Match::Ports(ports.collect())])])
            .collect()
    }

    /// The rules for connections that a process of the pod opens.
    fn outbound(&self) -> Vec<Rule> {
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        let proxy = [Match::Uid(self.proxy_uid), Match::Gid(self.proxy_gid)];
        let mut rules = Vec::new();
        for interface in &self.exclude_interfaces.0 {
            rules.push(leave([Match::Out(interface.0.clone())]));
        }
        rules.extend(to_ports(&self.exclude_outbound_ports.0).map(|ports| leave([ports])));
        // The proxy and its agent call the application.
        for source in [IpAddr::from(SOURCE_V4), SOURCE_V6.into()] {
            rules.push(leave([Match::Loopback, Match::Source(source)]));
        }
        // The proxy calls a service that leads to its own pod: this is inbound traffic.
        for owner in &proxy {
            for address in loopback {
                let matches =
                    [Match::Loopback, Match::NotTo(address), Match::NotPort(HBONE), owner.clone()];
                rules.push(redirect(matches, self.inbound_port));
            }
        }
        // The application calls itself.
        rules.push(leave([Match::Loopback]));
        rules.extend(proxy.map(|owner| leave([owner])));
        for network in &self.exclude_outbound_ranges.0 {
            rules.push(leave([Match::To(*network)]));
        }
        let ports = to_ports(&self.outbound_ports.0);
        rules.extend(ports.map(|ports| redirect([ports], self.outbound_port)));
        match &self.outbound_ranges {
            Selection::All => rules.push(redirect([], self.outbound_port)),
            Selection::Only(networks) => rules.extend(
                networks.iter().map(|network| redirect([Match::To(*network)], self.outbound_port)),
            ),
        }
        rules
    }
}

//! Plans the outbound listeners and their contents.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::tcp::{self, Chain};
use super::{INBOUND_PORT, OUTBOUND_PORT};
use crate::api::Age;
use crate::mesh::{
    Families, Host, Interception, Port, PortClass, Protocol, Registry, Resolution, ScopeView,
    Service, VisibleService, canonical_address,
};

/// The plan of a listener for one port, or for one address and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ListenerPlan {
    /// The address.
    pub address: String,
    /// The port.
    pub port: u16,
    /// Whether it binds its port, because traffic is not redirected.
    pub bind: bool,
    /// Whether the address is the wildcard address.
    pub any_address: bool,
    /// Whether the address is that of both families.
    pub both_families: bool,
    /// The route configuration for traffic that is, or is detected as, HTTP.
    pub http: Option<String>,
    /// Whether only HTTP can arrive, because the port is HTTP and traffic is not redirected.
    pub only_http: bool,
    /// Whether some of it is gRPC-Web.
    pub grpc_web: bool,
    /// The chains for all other traffic.
    pub chains: Vec<Chain>,
    /// The cluster for connections that match no chain.
    pub default_cluster: String,
}

impl ListenerPlan {
    /// The listener name.
    pub(crate) fn name(&self) -> String {
        format!("{}_{}", self.address, self.port)
    }

    /// Adds chains for connections that no existing chain matches. Envoy rejects a listener in which two chains match
    /// the same connections, so the older service wins.
    fn add(&mut self, chains: Vec<Chain>) {
        for mut chain in chains {
            if chain.sni.iter().any(|name| name == "*") {
                chain.sni.clear();
            } else if !chain.sni.is_empty() {
                // Envoy supports no other wildcards, and TLS server names have no trailing dot.
                for name in &mut chain.sni {
                    *name = name.trim_end_matches('.').to_ascii_lowercase();
                }
                chain.sni.retain(|name| !name.contains('*') || name.starts_with("*."));
                if chain.sni.is_empty() {
                    continue;
                }
            }
            for subnet in &mut chain.subnets {
                *subnet = canonical_address(subnet).to_string();
            }
            chain.sni = distinct(chain.sni);
            chain.subnets = distinct(chain.subnets);
            self.add_rest(chain);
        }
    }

    /// Adds the part of `chain` that no chain matches yet: the names that are still free, grouped by their remaining
    /// subnets.
    fn add_rest(&mut self, chain: Chain) {
        let mut taken: BTreeSet<(Option<String>, Option<String>)> = BTreeSet::new();
        for known in &self.chains {
            for name in or_any(&known.sni) {
                taken.extend(
                    or_any(&known.subnets).into_iter().map(|subnet| (name.clone(), subnet)),
                );
            }
        }
        let (names, subnets) = (or_any(&chain.sni), or_any(&chain.subnets));
        // Names with the same remaining subnets share a chain.
        let mut left: BTreeMap<Vec<Option<String>>, Vec<String>> = BTreeMap::new();
        for name in names {
            let free: Vec<_> = subnets
                .iter()
                .filter(|subnet| !taken.contains(&(name.clone(), (*subnet).clone())))
                .cloned()
                .collect();
            if !free.is_empty() {
                left.entry(free).or_default().extend(name);
            }
        }
        for (subnets, sni) in left {
            let subnets = subnets.into_iter().flatten().collect();
            self.chains.push(Chain { sni, subnets, ..chain.clone() });
        }
    }
}

/// The items of a list in which no item means any.
fn or_any(list: &[String]) -> Vec<Option<String>> {
    if list.is_empty() { vec![None] } else { list.iter().cloned().map(Some).collect() }
}

fn distinct(list: Vec<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    list.into_iter().filter(|item| seen.insert(item.clone())).collect()
}

/// The name of the route configuration that all services share at a port.
pub(crate) fn shared_routes(port: u16) -> String {
    port.to_string()
}

/// The name of the route configuration that a service has to itself at a port without a protocol.
pub(crate) fn own_routes(service: &Service, port: u16) -> String {
    format!("{}:{port}", service.host)
}

/// The wildcard address, for listeners without an address of their own.
pub(crate) fn any_address(families: Families) -> &'static str {
    if families == Families::V6 { "::" } else { "0.0.0.0" }
}

/// The listeners for what `view` sees, at all ports.
pub(crate) fn listeners(view: &ScopeView<'_>) -> Vec<ListenerPlan> {
    view.mesh.ports().into_iter().flat_map(|port| listeners_at(view, port)).collect()
}

/// The listeners at one port for what `view` sees. If two services want the same listener, the older one gets it. The
/// oldest service with plain HTTP stands for all of them, because the others add nothing.
pub(crate) fn listeners_at(view: &ScopeView<'_>, number: u16) -> Vec<ListenerPlan> {
    let mut found: BTreeMap<(Age, Host), VisibleService<'_>> = BTreeMap::new();
    for class in PortClass::ALL {
        let callable =
            view.mesh.hosts_at(number, class).filter_map(|host| view.callable_service(host));
        let here = callable.filter(|seen| {
            seen.known.service.alias_of.is_none()
                && seen
                    .ports()
                    .any(|port| port.number == number && PortClass::of(port.protocol) == class)
        });
        let count = if class == PortClass::Other { usize::MAX } else { 1 };
        found.extend(here.take(count).map(|seen| {
            let service = &seen.known.service;
            ((service.age, service.host.clone()), seen)
        }));
    }
    let mut plan = ListenerPlanner {
        view,
        default_cluster: super::default_cluster(view),
        found: BTreeMap::new(),
    };
    for seen in found.values() {
        for port in seen.ports().filter(|port| port.number == number) {
            plan.add(seen, port);
        }
    }
    let listeners = plan.found.into_values().map(Draft::finish);
    listeners.filter(|item| item.http.is_some() || !item.chains.is_empty()).collect()
}

/// A listener that is not complete yet.
struct Draft {
    listener: ListenerPlan,
    /// Whether some service may use HTTP here.
    takes_http: bool,
    /// The route configuration of the only service here; `None` once there are several.
    own_routes: Option<String>,
}

impl Draft {
    /// Requests are routed by their Host unless the address belongs to a single service, which then gets them whatever
    /// their Host. The wildcard address belongs to no service.
    fn finish(self) -> ListenerPlan {
        let Self { mut listener, takes_http, own_routes } = self;
        let own = own_routes.filter(|_| !listener.any_address);
        listener.http = takes_http.then(|| own.unwrap_or_else(|| shared_routes(listener.port)));
        listener
    }
}

struct ListenerPlanner<'a> {
    view: &'a ScopeView<'a>,
    default_cluster: String,
    found: BTreeMap<(String, u16), Draft>,
}

impl ListenerPlanner<'_> {
    fn add(&mut self, seen: &VisibleService<'_>, port: &Port) {
        let redirected = self.view.scope.interception == Interception::Redirect;
        // The addresses of the two listeners for redirected traffic are taken.
        if redirected && matches!(port.number, OUTBOUND_PORT | INBOUND_PORT) {
            return;
        }
        let any = any_address(self.view.scope.families);
        if port.protocol.is_http() {
            let draft = self.draft(any, port.number, None);
            let listener = &mut draft.listener;
            if !draft.takes_http {
                draft.takes_http = true;
                listener.only_http = listener.chains.is_empty();
            }
            listener.grpc_web |= port.protocol == Protocol::GrpcWeb;
            return;
        }
        let may_be_http = port.protocol == Protocol::Unknown;
        let own = may_be_http.then(|| own_routes(&seen.known.service, port.number));
        for (address, subnets) in self.addresses(seen, port) {
            let everywhere = address == any;
            let chains = tcp::chains(seen, port, &subnets, everywhere, self.view);
            let draft = self.draft(&address, port.number, own.clone());
            let listener = &mut draft.listener;
            // An older service keeps everything that is sent to its own address, HTTP or not.
            draft.takes_http |=
                may_be_http && (listener.chains.is_empty() || everywhere || listener.bind);
            listener.only_http = false;
            listener.add(chains);
        }
    }

    /// The addresses that clients connect to: one listener per address, or the wildcard address with the subnets to
    /// match.
    fn addresses(&self, seen: &VisibleService<'_>, port: &Port) -> Vec<(String, Vec<String>)> {
        let mut found = Vec::new();
        for service in seen.known.service.declaring(port.number) {
            for place in self.addresses_of(service, seen, port) {
                if !found.contains(&place) {
                    found.push(place);
                }
            }
        }
        found
    }

    /// The same for `service`, which is that of `seen` or one of those it was merged from.
    fn addresses_of(
        &self,
        service: &Service,
        seen: &VisibleService<'_>,
        port: &Port,
    ) -> Vec<(String, Vec<String>)> {
        let scope = self.view.scope;
        let any = any_address(scope.families).to_owned();
        let (subnets, plain): (Vec<_>, Vec<_>) = service
            .addresses
            .iter()
            .filter(|address| scope.families.reach(address))
            .map(ToString::to_string)
            .partition(|address| address.contains('/'));
        let mut found: Vec<(String, Vec<String>)> =
            plain.into_iter().map(|address| (address, Vec::new())).collect();
        if !subnets.is_empty() {
            found.push((any.clone(), subnets));
        }
        if !service.addresses.is_empty() {
            return found;
        }
        let members = seen.known.endpoints.list.iter().filter(|item| item.port_name == port.name);
        let of_pods: BTreeSet<&str> = members
            .flat_map(|endpoint| endpoint.addresses())
            .map(|address| &**address)
            .filter(|address| address.parse::<IpAddr>().is_ok())
            .collect();
        let no_pods = service.registry == Registry::ServiceEntry
            && of_pods.is_empty()
            && service.selector.is_empty();
        if service.resolution == Resolution::Passthrough && !no_pods {
            // A headless service is reached at its pod addresses; a pod calls itself without its proxy.
            let others = of_pods.into_iter().filter(|address| {
                scope.families.reach(address)
                    && !scope.headless.iter().any(|own| **own == **address)
            });
            return others.map(|address| (address.to_owned(), Vec::new())).collect();
        }
        vec![(any, Vec::new())]
    }

    /// The listener at an address and port, for one more service. `own_routes` is the route configuration that the service
    /// would have there if it were the only one.
    fn draft(&mut self, address: &str, port: u16, own_routes: Option<String>) -> &mut Draft {
        let bind = self.view.scope.interception == Interception::None;
        // Without redirection, clients connect to the loopback address.
        let address = match (bind, address.contains(':')) {
            (true, true) => "::1",
            (true, false) => "127.0.0.1",
            (false, _) => address,
        };
        let any_address = address == any_address(self.view.scope.families);
        let draft = self.found.entry((address.to_owned(), port)).or_insert_with(|| Draft {
            listener: ListenerPlan {
                address: address.to_owned(),
                port,
                bind,
                any_address,
                both_families: any_address && self.view.scope.families == Families::Both,
                http: None,
                only_http: false,
                grpc_web: false,
                chains: Vec::new(),
                default_cluster: self.default_cluster.clone(),
            },
            takes_http: false,
            own_routes: own_routes.clone(),
        });
        if draft.own_routes != own_routes {
            draft.own_routes = None;
        }
        draft
    }
}

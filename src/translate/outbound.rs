//! Which listeners there are for what a workload sends, and what each of them does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::listener::{INBOUND_PORT, OUTBOUND_PORT};
use super::tcp::{self, Chain};
use crate::api::Age;
use crate::mesh::{
    Families, Host, Interception, Port, PortClass, Protocol, Registry, Resolution, Seen, Service, View, one_form,
};

/// A listener for connections to one port, or to one address and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Outbound {
    /// The address.
    pub address: String,
    /// The port.
    pub port: u16,
    /// Whether it binds its port: traffic is not redirected.
    pub bind: bool,
    /// Whether the address is every address.
    pub any_address: bool,
    /// The route configuration for what is, or looks like, HTTP.
    pub http: Option<String>,
    /// Whether only HTTP can come: the port says so, and nothing is redirected.
    pub only_http: bool,
    /// Whether some of it is gRPC-Web.
    pub grpc_web: bool,
    /// Everything else.
    pub chains: Vec<Chain>,
    /// The cluster that what no chain takes goes to.
    pub rest: String,
}

impl Outbound {
    /// Its name.
    pub fn name(&self) -> String {
        format!("{}_{}", self.address, self.port)
    }

    /// Takes in chains for connections that none so far takes. Envoy refuses a listener of which two chains take the same
    /// connections: of two services the older gets them.
    fn add(&mut self, chains: Vec<Chain>) {
        for mut chain in chains {
            if chain.sni.iter().any(|name| name == "*") {
                chain.sni.clear();
            } else if !chain.sni.is_empty() {
                // Envoy knows no other wildcards, and names of TLS have no dot at their end.
                for name in &mut chain.sni {
                    *name = name.trim_end_matches('.').to_ascii_lowercase();
                }
                chain.sni.retain(|name| !name.contains('*') || name.starts_with("*."));
                if chain.sni.is_empty() {
                    continue;
                }
            }
            for subnet in &mut chain.subnets {
                *subnet = one_form(subnet).to_string();
            }
            chain.sni = distinct(chain.sni);
            chain.subnets = distinct(chain.subnets);
            self.add_rest(chain);
        }
    }

    /// What of `chain` no chain takes yet: its names without those that are taken everywhere, each kind of the others by
    /// itself.
    fn add_rest(&mut self, chain: Chain) {
        let any = |list: &[String]| if list.is_empty() { vec![None] } else { list.iter().cloned().map(Some).collect() };
        let mut taken: BTreeSet<(Option<String>, Option<String>)> = BTreeSet::new();
        for known in &self.chains {
            for name in any(&known.sni) {
                taken.extend(any(&known.subnets).into_iter().map(|subnet| (name.clone(), subnet)));
            }
        }
        let (names, subnets) = (any(&chain.sni), any(&chain.subnets));
        // Names that have the same subnets left stay together.
        let mut left: BTreeMap<Vec<Option<String>>, Vec<String>> = BTreeMap::new();
        for name in names {
            let free: Vec<_> =
                subnets.iter().filter(|subnet| !taken.contains(&(name.clone(), (*subnet).clone()))).cloned().collect();
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

fn distinct(list: Vec<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    list.into_iter().filter(|one| seen.insert(one.clone())).collect()
}

/// The name of the route configuration that all services share at a port.
pub fn shared_routes(port: u16) -> String {
    port.to_string()
}

/// The name of the route configuration that a service has to itself at a port without a protocol.
pub fn own_routes(service: &Service, port: u16) -> String {
    format!("{}:{port}", service.host)
}

/// Every address, for listeners that are not bound to one.
pub fn any_address(families: Families) -> &'static str {
    if families == Families::V6 { "::" } else { "0.0.0.0" }
}

/// The listeners for what `view` sees, at all ports.
pub fn listeners(view: &View<'_>) -> Vec<Outbound> {
    view.mesh.ports().into_iter().flat_map(|port| listeners_at(view, port)).collect()
}

/// The listeners at one port for what `view` sees, older services first where two want the same. Of plain HTTP the oldest
/// service speaks for all: each further one adds nothing.
pub fn listeners_at(view: &View<'_>, number: u16) -> Vec<Outbound> {
    let mut found: BTreeMap<(Age, Host), Seen<'_>> = BTreeMap::new();
    for class in PortClass::ALL {
        let has_class = |port: &&Port| port.number == number && PortClass::of(port.protocol) == class;
        let callable = view.mesh.hosts_at(number, class).filter_map(|host| view.callable_service(host));
        let here =
            callable.filter(|seen| seen.known.service.alias_of.is_none() && seen.ports().any(|port| has_class(&port)));
        let count = if class == PortClass::Other { usize::MAX } else { 1 };
        found.extend(here.take(count).map(|seen| {
            let service = &seen.known.service;
            ((service.age, service.host.clone()), seen)
        }));
    }
    let mut plan = Plan { view, rest: super::default_cluster(view), found: BTreeMap::new() };
    for seen in found.values() {
        for port in seen.ports().filter(|port| port.number == number) {
            plan.add(seen, port);
        }
    }
    let listeners = plan.found.into_values().map(Draft::finish);
    listeners.filter(|one| one.http.is_some() || !one.chains.is_empty()).collect()
}

/// A listener that is not complete yet.
struct Draft {
    listener: Outbound,
    /// Whether some service may speak HTTP here.
    takes_http: bool,
    /// The route configuration of the only service here; `None` once there are several.
    own_routes: Option<String>,
}

impl Draft {
    /// Requests are routed by their Host, unless the address belongs to a single service: a request that is sent there is
    /// meant for it whatever its Host. The wildcard address belongs to no service.
    fn finish(self) -> Outbound {
        let Self { mut listener, takes_http, own_routes } = self;
        let own = own_routes.filter(|_| !listener.any_address);
        listener.http = takes_http.then(|| own.unwrap_or_else(|| shared_routes(listener.port)));
        listener
    }
}

struct Plan<'a> {
    view: &'a View<'a>,
    rest: String,
    found: BTreeMap<(String, u16), Draft>,
}

impl Plan<'_> {
    fn add(&mut self, seen: &Seen<'_>, port: &Port) {
        let redirected = self.view.scope.interception == Interception::Redirect;
        // Envoy takes no second listener at the address of the two that redirected traffic enters by.
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
            draft.takes_http |= may_be_http && (listener.chains.is_empty() || everywhere || listener.bind);
            listener.only_http = false;
            listener.add(chains);
        }
    }

    /// Where clients connect to: an address each, or every address with the subnets that are meant.
    fn addresses(&self, seen: &Seen<'_>, port: &Port) -> Vec<(String, Vec<String>)> {
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

    /// The same for `service`, which is the whole of `seen` or one of those it was merged from.
    fn addresses_of(&self, service: &Service, seen: &Seen<'_>, port: &Port) -> Vec<(String, Vec<String>)> {
        let scope = self.view.scope;
        let any = any_address(scope.families).to_owned();
        let (subnets, plain): (Vec<_>, Vec<_>) = service
            .addresses
            .iter()
            .filter(|address| scope.families.reach(address))
            .map(ToString::to_string)
            .partition(|address| address.contains('/'));
        let mut found: Vec<(String, Vec<String>)> = plain.into_iter().map(|address| (address, Vec::new())).collect();
        if !subnets.is_empty() {
            found.push((any.clone(), subnets));
        }
        if !service.addresses.is_empty() {
            return found;
        }
        let members = seen.known.endpoints.list.iter().filter(|one| one.port_name == port.name);
        let of_pods: BTreeSet<&str> = members
            .flat_map(|endpoint| endpoint.addresses())
            .map(|address| &**address)
            .filter(|address| address.parse::<IpAddr>().is_ok())
            .collect();
        let no_pods = service.registry == Registry::ServiceEntry && of_pods.is_empty() && service.selector.is_empty();
        if service.resolution == Resolution::Passthrough && !no_pods {
            // The addresses of a headless service are those of its pods; a pod calls itself without its proxy.
            let others = of_pods.into_iter().filter(|address| {
                scope.families.reach(address) && !scope.headless.iter().any(|own| **own == **address)
            });
            return others.map(|address| (address.to_owned(), Vec::new())).collect();
        }
        vec![(any, Vec::new())]
    }

    /// The listener at an address and port, for one more service. `own_routes` is the route configuration that the service
    /// would have there if it were the only one.
    fn draft(&mut self, address: &str, port: u16, own_routes: Option<String>) -> &mut Draft {
        let bind = self.view.scope.interception == Interception::None;
        // What is not redirected is sent to the loopback address.
        let address = match (bind, address.contains(':')) {
            (true, true) => "::1",
            (true, false) => "127.0.0.1",
            (false, _) => address,
        };
        let any_address = address == any_address(self.view.scope.families);
        let draft = self.found.entry((address.to_owned(), port)).or_insert_with(|| Draft {
            listener: Outbound {
                address: address.to_owned(),
                port,
                bind,
                any_address,
                http: None,
                only_http: false,
                grpc_web: false,
                chains: Vec::new(),
                rest: self.rest.clone(),
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

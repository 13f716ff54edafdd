//! What the proxies of one scope see: services, with all or some of their ports, and the rules that count for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::host::{self, Host};
use super::sidecar::Egress;
use super::{DestinationRule, Mesh, OutboundPolicy, Port, Registered, Scope, VirtualServicesByHost};
use crate::api;

/// What the proxies of one scope see.
#[derive(Debug)]
pub struct View<'a> {
    /// The state of the mesh.
    pub mesh: &'a Mesh,
    /// The proxies.
    pub scope: &'a Scope,
    /// The VirtualServices that count for them at some port, by host.
    pub rules: VirtualServicesByHost,
    /// Those of the ports for which their Sidecar has an egress listener of its own, and those of all other ports.
    by_port: BTreeMap<u16, VirtualServicesByHost>,
    elsewhere: Option<VirtualServicesByHost>,
    /// What happens to their traffic for hosts that nobody knows.
    pub outbound: OutboundPolicy,
    services: BTreeMap<Host, Seen<'a>>,
    /// Those that clients may call themselves; `None` means all.
    callable: Option<BTreeMap<Host, Seen<'a>>>,
}

/// A service as it is seen.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// The service and its endpoints.
    pub known: &'a Registered,
    /// The only ports that are seen; `None` means all.
    only: Option<BTreeSet<u16>>,
}

impl<'a> Seen<'a> {
    /// The ports that are seen.
    pub fn ports(&self) -> impl Iterator<Item = &'a Port> {
        let only = self.only.clone();
        self.known.service.ports.iter().filter(move |port| only.as_ref().is_none_or(|only| only.contains(&port.number)))
    }

    /// The numbers of the ports, where not all are seen.
    pub fn only(&self) -> Option<&BTreeSet<u16>> {
        self.only.as_ref()
    }

    fn add(&mut self, ports: Option<BTreeSet<u16>>) {
        match (&mut self.only, ports) {
            (Some(only), Some(more)) => only.extend(more),
            (only, None) => *only = None,
            (None, Some(_)) => {}
        }
    }
}

impl<'a> View<'a> {
    /// What `scope` sees of `mesh`.
    pub fn new(mesh: &'a Mesh, scope: &'a Scope) -> Self {
        let sidecar = scope.sidecar.as_ref().and_then(|(key, _)| mesh.sidecars.get(key));
        let egress = sidecar.map_or(&[][..], |sidecar| sidecar.egress());
        let rules_of = |listeners: &mut dyn Iterator<Item = &Egress>| {
            let listeners: Vec<_> = listeners.collect();
            mesh.virtual_services.for_namespace(&scope.namespace, |rule| {
                listeners.iter().any(|listener| listener.has_rule(rule, &scope.namespace))
            })
        };
        let own_ports: BTreeSet<u16> = egress.iter().filter_map(|listener| listener.port).collect();
        let at_port = |port: u16| egress.iter().find(move |listener| listener.port == Some(port));
        let mut view = Self {
            mesh,
            scope,
            rules: match egress {
                [] => mesh.virtual_services.for_namespace(&scope.namespace, |_| true),
                _ => rules_of(&mut egress.iter()),
            },
            by_port: own_ports.iter().map(|port| (*port, rules_of(&mut at_port(*port).into_iter()))).collect(),
            elsewhere: (!own_ports.is_empty())
                .then(|| rules_of(&mut egress.iter().filter(|listener| listener.port.is_none()))),
            outbound: sidecar.and_then(|sidecar| sidecar.outbound).unwrap_or(mesh.config.outbound),
            services: BTreeMap::new(),
            callable: None,
        };
        let mut callable = BTreeMap::new();
        for (host, list) in mesh.services.iter() {
            if egress.is_empty() {
                if let Some(known) = mesh.pick(list, &scope.namespace, |_| true) {
                    view.services.insert(host.clone(), Seen { known, only: None });
                }
                continue;
            }
            for listener in egress {
                let seen = |one: &Registered| listener.has_service(&one.service.namespace, host, &scope.namespace);
                let Some(known) = mesh.pick(list, &scope.namespace, seen) else { continue };
                let ports = listener.port.map(|port| BTreeSet::from([port]));
                // Requests to a port that has a listener of its own are that one's alone.
                let taken = |port: &Port| port.protocol.may_be_http() && own_ports.contains(&port.number);
                let left = || known.service.ports.iter().filter(|port| !taken(port)).map(|port| port.number).collect();
                let callable_ports = ports.clone().or_else(|| (!own_ports.is_empty()).then(left));
                add(&mut callable, host, known, callable_ports);
                add(&mut view.services, host, known, ports);
            }
        }
        if !egress.is_empty() {
            view.callable = Some(callable);
            view.add_destinations();
        }
        view
    }

    /// The VirtualServices that count at a port, by host.
    pub fn rules_at(&self, port: u16) -> &VirtualServicesByHost {
        self.by_port.get(&port).or(self.elsewhere.as_ref()).unwrap_or(&self.rules)
    }

    /// Where their Sidecar has traffic for hosts that nobody knows go.
    pub fn egress_proxy(&self) -> Option<&'a api::Destination> {
        let (key, _) = self.scope.sidecar.as_ref()?;
        self.mesh.sidecars.get(key)?.egress_proxy.as_ref()
    }

    /// What a visible route sends to is seen as well, those ports alone.
    fn add_destinations(&mut self) {
        let domain = &self.mesh.config.domain;
        let mut wanted: BTreeMap<Host, Option<BTreeSet<u16>>> = BTreeMap::new();
        let rules: Vec<_> = self.rules.hosts().map(|(_, rule)| rule.clone()).collect();
        for rule in rules {
            let http = rule.http().flat_map(|http| {
                let namespace = http.key.namespace.clone();
                let routes = http.route.route.iter().filter_map(|one| one.destination.as_ref());
                let mirrors = http.route.mirrors.iter().filter_map(|one| one.destination.as_ref());
                let all: Vec<_> = routes.chain(mirrors).chain(&http.route.mirror).cloned().collect();
                all.into_iter().map(move |to| (to, namespace.clone()))
            });
            let (tcp, tls) = (rule.tcp().iter().map(|one| &one.route), rule.tls().iter().map(|one| &one.route));
            let streams = tcp.chain(tls).flatten().filter_map(|one| one.destination.clone());
            let all: Vec<(api::Destination, Arc<str>)> =
                http.chain(streams.map(|to| (to, rule.namespace().clone()))).collect();
            for (to, namespace) in all {
                let host = host::resolve(&to.host, &namespace, domain);
                let port = to.port.and_then(|port| u16::try_from(port.number).ok());
                let ports = wanted.entry(host).or_insert_with(|| Some(BTreeSet::new()));
                match port {
                    Some(port) => {
                        if let Some(ports) = ports {
                            ports.insert(port);
                        }
                    }
                    None => *ports = None,
                }
            }
        }
        if let Some(to) = self.egress_proxy() {
            wanted.insert(to.host.to_ascii_lowercase().into(), None);
        }
        for (host, ports) in wanted {
            let Some((host, list)) = self.mesh.services.get_key_value(&host) else { continue };
            let Some(known) = self.mesh.pick(list, &self.scope.namespace, |_| true) else { continue };
            let target = known.service.alias_of.as_ref().and_then(|target| self.mesh.services.get_key_value(target));
            if let Some((target, list)) = target
                && let Some(real) = self.mesh.pick(list, &self.scope.namespace, |_| true)
            {
                add(&mut self.services, target, real, ports.clone());
            }
            add(&mut self.services, host, known, ports);
        }
    }

    /// The services that clients may call themselves; what only a route leads to is not among them.
    pub fn callable(&self) -> impl Iterator<Item = &Seen<'a>> {
        self.callable.as_ref().unwrap_or(&self.services).values()
    }

    /// Every service that is seen, by host.
    pub fn services(&self) -> impl Iterator<Item = &Seen<'a>> {
        self.services.values()
    }

    /// The service of a host, where it is seen.
    pub fn service(&self, host: &str) -> Option<&Seen<'a>> {
        self.services.get(host)
    }

    /// The rule for what comes in at a workload of a host.
    pub fn inbound_rule(&self, host: &str) -> Option<&'a Arc<DestinationRule>> {
        let service = &self.service(host)?.known.service;
        let root = &self.mesh.config.root_namespace;
        self.mesh.destination_rules.find_inbound(&service.host, &service.namespace, root, &self.scope.namespace)
    }

    /// The limits that their Sidecar sets for what comes in.
    pub fn inbound_pool(&self) -> Option<&'a api::ConnectionPoolSettings> {
        let (key, _) = self.scope.sidecar.as_ref()?;
        self.mesh.sidecars.get(key)?.inbound_pool.as_ref()
    }

    /// The rule for a service.
    pub fn destination_rule(&self, known: &Registered) -> Option<&'a Arc<DestinationRule>> {
        let service = &known.service;
        self.mesh.destination_rules.find(
            &service.host,
            &service.namespace,
            &self.mesh.config.root_namespace,
            &self.scope.namespace,
            &self.scope.labels,
        )
    }
}

/// Adds a service, with those of `ports` that it has; `None` means all of them.
fn add<'a>(to: &mut BTreeMap<Host, Seen<'a>>, host: &Host, known: &'a Registered, ports: Option<BTreeSet<u16>>) {
    let fits = |port: &Port| ports.as_ref().is_none_or(|only| only.contains(&port.number));
    if ports.is_some() && known.service.alias_of.is_none() && !known.service.ports.iter().any(fits) {
        return;
    }
    to.entry(host.clone()).and_modify(|seen| seen.add(ports.clone())).or_insert_with(|| Seen { known, only: ports });
}

//! The view of one scope: the visible services with their visible ports, and the rules that apply.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::sidecar::Egress;
use super::{
    DestinationRule, HostServices, Mesh, OutboundPolicy, Port, RegisteredService, Scope,
    VisibleVirtualServices,
};
use crate::api;

/// The mesh as visible to the proxies of one scope. Evaluated lazily, so creating a view is cheap regardless of the
/// size of the mesh.
#[derive(Debug)]
pub struct ScopeView<'a> {
    /// The state of the mesh.
    pub mesh: &'a Mesh,
    /// The scope.
    pub scope: &'a Scope,
    /// The VirtualServices that apply at some port.
    pub rules: VisibleVirtualServices<'a>,
    /// The VirtualServices that apply at each port that has its own egress listener in the Sidecar, and at all others.
    by_port: BTreeMap<u16, VisibleVirtualServices<'a>>,
    elsewhere: Option<VisibleVirtualServices<'a>>,
    /// What happens to traffic for unknown hosts.
    pub outbound: OutboundPolicy,
    /// The Sidecar's egress listeners; without any, everything is visible.
    egress: &'a [Egress],
    /// The ports for which there is an egress listener.
    own_ports: BTreeSet<u16>,
}

/// A visible service.
#[derive(Clone, Debug)]
pub(crate) struct VisibleService<'a> {
    /// The service and its endpoints.
    pub known: &'a RegisteredService,
    /// The visible ports; `None` means all.
    only: Option<BTreeSet<u16>>,
}

impl<'a> VisibleService<'a> {
    /// The visible ports.
    pub(crate) fn ports(&self) -> impl Iterator<Item = &'a Port> {
        let only = self.only.clone();
        self.known
            .service
            .ports
            .iter()
            .filter(move |port| only.as_ref().is_none_or(|only| only.contains(&port.number)))
    }

    /// The visible port numbers, if not all are visible.
    pub(crate) fn only(&self) -> Option<&BTreeSet<u16>> {
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

impl<'a> ScopeView<'a> {
    /// Computes what `scope` sees of `mesh`.
    pub fn new(mesh: &'a Mesh, scope: &'a Scope) -> Self {
        let sidecar = scope.sidecar.as_ref().and_then(|(key, _)| mesh.sidecars.get(key));
        let egress = sidecar.map_or(&[][..], |sidecar| sidecar.egress());
        let (all, namespace) = (&*mesh.virtual_services, &*scope.namespace);
        let own_ports: BTreeSet<u16> = egress.iter().filter_map(|listener| listener.port).collect();
        let by_port = own_ports.iter().map(|port| {
            let listener = egress.iter().find(|listener| listener.port == Some(*port));
            let listeners = listener.into_iter().collect();
            (*port, VisibleVirtualServices::new(all, namespace, Some(listeners)))
        });
        let elsewhere = (!own_ports.is_empty()).then(|| {
            let listeners = egress.iter().filter(|listener| listener.port.is_none()).collect();
            VisibleVirtualServices::new(all, namespace, Some(listeners))
        });
        let listeners = (!egress.is_empty()).then(|| egress.iter().collect());
        Self {
            mesh,
            scope,
            rules: VisibleVirtualServices::new(all, namespace, listeners),
            by_port: by_port.collect(),
            elsewhere,
            outbound: sidecar.and_then(|sidecar| sidecar.outbound).unwrap_or(mesh.config.outbound),
            egress,
            own_ports,
        }
    }

    /// The VirtualServices that apply at a port.
    pub(crate) fn rules_at(&self, port: u16) -> &VisibleVirtualServices<'a> {
        self.by_port.get(&port).or(self.elsewhere.as_ref()).unwrap_or(&self.rules)
    }

    /// The Sidecar's destination for traffic to unknown hosts.
    pub(crate) fn egress_proxy(&self) -> Option<&'a api::Destination> {
        let (key, _) = self.scope.sidecar.as_ref()?;
        self.mesh.sidecars.get(key)?.egress_proxy.as_ref()
    }

    /// The service of a host, if clients may call it directly.
    pub(crate) fn callable_service(&self, host: &str) -> Option<VisibleService<'a>> {
        let list = self.mesh.services.get(host)?;
        if self.egress.is_empty() {
            let known = self.mesh.pick(list, &self.scope.namespace, |_| true)?;
            return Some(VisibleService { known, only: None });
        }
        let mut found = None;
        for listener in self.egress {
            let Some(known) = self.listed(listener, host, list) else {
                continue;
            };
            // A port with its own egress listener is handled by that listener alone.
            let ports = match listener.port {
                Some(port) => Some(BTreeSet::from([port])),
                None if self.own_ports.is_empty() => None,
                None => {
                    let left = known.service.ports.iter().filter(|port| {
                        !port.protocol.may_be_http() || !self.own_ports.contains(&port.number)
                    });
                    Some(left.map(|port| port.number).collect())
                }
            };
            add(&mut found, known, ports);
        }
        found
    }

    /// The visible service of a host.
    pub(crate) fn service(&self, host: &str) -> Option<VisibleService<'a>> {
        let list = self.mesh.services.get(host)?;
        if self.egress.is_empty() {
            return self.callable_service(host);
        }
        let mut found = None;
        for listener in self.egress {
            if let Some(known) = self.listed(listener, host, list) {
                add(&mut found, known, listener.port.map(|port| BTreeSet::from([port])));
            }
        }
        // Destinations of visible routes are visible on the ports they use, and so are ExternalName targets.
        let aliases =
            self.mesh.aliases_of(host).filter_map(|alias| Some((alias, self.routed(alias)?)));
        let aliases: Vec<_> = aliases.collect();
        let own = self.routed(host).into_iter();
        let through = aliases
            .into_iter()
            .filter(|(alias, _)| self.picks_alias(alias, host))
            .map(|(_, ports)| ports);
        for ports in own.chain(through) {
            if let Some(known) = self.mesh.pick(list, &self.scope.namespace, |_| true) {
                add(&mut found, known, ports);
            }
        }
        found
    }

    /// The service of a host that an egress listener of the Sidecar lists.
    fn listed(
        &self,
        listener: &Egress,
        host: &str,
        list: &'a HostServices,
    ) -> Option<&'a RegisteredService> {
        let namespace = &self.scope.namespace;
        self.mesh.pick(list, namespace, |known| {
            listener.has_service(&known.service.namespace, host, namespace)
        })
    }

    /// Whether the service visible for the host `alias` is an ExternalName for `target`.
    fn picks_alias(&self, alias: &str, target: &str) -> bool {
        let known = self
            .mesh
            .services
            .get(alias)
            .and_then(|list| self.mesh.pick(list, &self.scope.namespace, |_| true));
        known.is_some_and(|known| known.service.alias_of.as_deref() == Some(target))
    }

    /// The ports of a host that visible routes send to, `Some(None)` for all; `None` if no route sends to the host.
    fn routed(&self, host: &str) -> Option<Option<BTreeSet<u16>>> {
        if self.egress_proxy().is_some_and(|to| to.host.eq_ignore_ascii_case(host)) {
            return Some(None);
        }
        let mut ports: Option<Option<BTreeSet<u16>>> = None;
        for rules in
            self.mesh.virtual_services.routing_to(host).filter(|rules| self.rules.includes(rules))
        {
            for (_, port) in
                rules.destinations(&self.mesh.config.domain).filter(|(to, _)| **to == *host)
            {
                match (ports.get_or_insert_with(|| Some(BTreeSet::new())), port) {
                    (Some(ports), Some(port)) => drop(ports.insert(port)),
                    (all, _) => *all = None,
                }
            }
        }
        ports
    }

    /// The rule for inbound traffic at a workload of a host.
    pub(crate) fn inbound_rule(&self, host: &str) -> Option<&'a Arc<DestinationRule>> {
        let service = &self.service(host)?.known.service;
        let root = &self.mesh.config.root_namespace;
        self.mesh.destination_rules.find_inbound(
            &service.host,
            &service.namespace,
            root,
            &self.scope.namespace,
        )
    }

    /// The Sidecar's limits on inbound traffic.
    pub(crate) fn inbound_pool(&self) -> Option<&'a api::ConnectionPoolSettings> {
        let (key, _) = self.scope.sidecar.as_ref()?;
        self.mesh.sidecars.get(key)?.inbound_pool.as_ref()
    }

    /// The rule for a service.
    pub(crate) fn destination_rule(
        &self,
        known: &RegisteredService,
    ) -> Option<&'a Arc<DestinationRule>> {
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

/// Adds a service with `ports`, unless it has none of them; `None` means all.
fn add<'a>(
    to: &mut Option<VisibleService<'a>>,
    known: &'a RegisteredService,
    ports: Option<BTreeSet<u16>>,
) {
    if let Some(only) = &ports
        && known.service.alias_of.is_none()
        && !known.service.ports.iter().any(|port| only.contains(&port.number))
    {
        return;
    }
    match to {
        Some(seen) => seen.add(ports),
        None => *to = Some(VisibleService { known, only: ports }),
    }
}

//! Which hosts distinguish scopes: the resources of two scopes of one family differ only in these hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::scope::Touched;
use crate::mesh::{Host, Mesh, PortClass, Scope, Visibility, name_and_namespace};

/// The hosts that distinguish scopes in one state of the mesh.
#[derive(Debug, Default)]
pub(super) struct Sensitivity {
    /// Hosts for which the proxies of a namespace get other resources than those of other namespaces.
    by_namespace: BTreeMap<Arc<str>, BTreeSet<Host>>,
    /// Hosts whose rules depend on the source proxy.
    by_source: BTreeSet<Host>,
    /// Hosts whose endpoints depend on the client's locality.
    by_place: BTreeSet<Host>,
}

impl Sensitivity {
    pub(crate) fn new(mesh: &Mesh) -> Self {
        let mut this = Self::default();
        for (host, list) in &mesh.services {
            // In the namespace of its host, a service has a short name; so does the service that it is an alias of.
            if let Some((_, namespace)) = name_and_namespace(host, &mesh.config.domain) {
                let targets = list.iter().filter_map(|known| known.service.alias_of.clone());
                this.by_namespace
                    .entry(namespace.into())
                    .or_default()
                    .extend(targets.chain([host.clone()]));
            }
            for known in list.iter() {
                let service = &known.service;
                let hosts = [Some(host), service.alias_of.as_ref()];
                this.seen_by(
                    &service.visibility,
                    &service.namespace,
                    hosts.into_iter().flatten().cloned(),
                );
            }
            let rules = mesh.destination_rules.all(host);
            if list
                .iter()
                .any(|known| known.service.preference.is_some() || known.service.node_local)
                || rules.iter().any(|rule| rule.looks_at_locality())
            {
                this.by_place.insert(host.clone());
            }
        }
        for rules in mesh.virtual_services.iter() {
            let destinations = rules.destinations(&mesh.config.domain).map(|(host, _)| host);
            let hosts: BTreeSet<Host> = rules
                .hosts
                .iter()
                .flat_map(|host| mesh.hosts_covered_by(host))
                .chain(destinations)
                .collect();
            if rules.tells_sources_apart() {
                this.by_source.extend(hosts.iter().cloned());
            }
            this.seen_by(&rules.visibility, rules.namespace(), hosts);
        }
        for rule in mesh.destination_rules.iter() {
            let hosts = mesh.hosts_covered_by(&rule.host);
            if rule.selector.is_some() {
                this.by_source.extend(hosts.iter().cloned());
            }
            this.seen_by(&rule.visibility, &rule.namespace, hosts);
        }
        this
    }

    fn seen_by(
        &mut self,
        visibility: &Visibility,
        own: &Arc<str>,
        hosts: impl IntoIterator<Item = Host>,
    ) {
        let hosts: Vec<Host> = hosts.into_iter().collect();
        let mut namespaces = BTreeSet::from([own.clone()]);
        if let Visibility::Namespaces(named) = visibility {
            namespaces.extend(named.iter().cloned());
        }
        for namespace in namespaces {
            self.by_namespace.entry(namespace).or_default().extend(hosts.iter().cloned());
        }
    }

    /// What may differ between two scopes of one family.
    pub(crate) fn between(&self, mesh: &Mesh, a: &Scope, b: &Scope) -> Touched {
        let mut hosts: BTreeSet<Host> = BTreeSet::new();
        if a.namespace != b.namespace {
            let own =
                [a, b].into_iter().filter_map(|scope| self.by_namespace.get(&scope.namespace));
            hosts.extend(own.flatten().cloned());
        }
        if a.namespace != b.namespace || a.labels != b.labels {
            hosts.extend(self.by_source.iter().cloned());
        }
        if (&a.labels, &a.locality, &a.node) != (&b.labels, &b.locality, &b.node) {
            hosts.extend(self.by_place.iter().cloned());
        }
        let rules = hosts.iter().flat_map(|host| {
            mesh.virtual_services.routing_to(host).chain(mesh.virtual_services.naming(host))
        });
        let users: Vec<Host> = rules
            .flat_map(|rules| &rules.hosts)
            .flat_map(|host| mesh.hosts_covered_by(host))
            .collect();
        hosts.extend(users);
        let mut ports = BTreeSet::new();
        for list in hosts.iter().filter_map(|host| mesh.services.get(host)) {
            for service in list.iter().map(|known| &known.service) {
                // The scopes may see different services for the same host. A Sidecar that refers to the proxy's own
                // namespace may also select different ones.
                let all_differ = a.sidecar.is_some()
                    || list.len() > 1
                    || service.visibility != Visibility::Public;
                let differing = service
                    .ports
                    .iter()
                    .filter(|port| all_differ || PortClass::of(port.protocol) == PortClass::Other);
                ports.extend(differing.map(|port| port.number));
            }
        }
        if a.headless != b.headless {
            for known in
                a.headless.iter().chain(&b.headless).flat_map(|address| mesh.services_at(address))
            {
                ports.extend(known.service.ports.iter().map(|port| port.number));
            }
        }
        Touched { hosts, ports }
    }
}

//! The services of a host that several objects declare: compatible ServiceEntries are merged, and a chain of
//! ExternalName services is followed to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::endpoint::{Endpoint, EndpointSet};
use super::host::Host;
use super::service::{Port, Registry, Resolution, Service};
use super::{Name, RegisteredService};
use crate::revision::Revision;

/// The services as each object declares them.
#[derive(Debug, Default)]
pub(super) struct Declared {
    /// By host, in order of precedence.
    by_host: BTreeMap<Host, Vec<RegisteredService>>,
    /// ExternalName services, each with its target.
    aliases: BTreeMap<Host, Host>,
    aliases_changed: bool,
}

impl RegisteredService {
    fn new(service: Service, endpoints: EndpointSet) -> Self {
        Self {
            service: Arc::new(service),
            service_revision: Revision::fresh(),
            endpoints: Arc::new(endpoints),
            endpoints_revision: Revision::fresh(),
        }
    }

    /// Keeps the service and the endpoints of `before`, with their revisions, where they are equal.
    fn unless_same_as(mut self, before: Option<&Self>) -> Self {
        if let Some(before) = before.filter(|before| before.service == self.service) {
            (self.service, self.service_revision) =
                (before.service.clone(), before.service_revision);
        }
        if let Some(before) = before.filter(|before| before.endpoints == self.endpoints) {
            (self.endpoints, self.endpoints_revision) =
                (before.endpoints.clone(), before.endpoints_revision);
        }
        self
    }
}

impl Declared {
    /// Replaces the service that the object of this registry and name declares for `host`, or removes it.
    pub(crate) fn put(
        &mut self,
        host: &Host,
        registry: Registry,
        name: &Name,
        new: Option<(Service, EndpointSet)>,
    ) {
        let list = self.by_host.entry(host.clone()).or_default();
        let at = list.iter().position(|known| known.service.is_from(registry, &name.0, &name.1));
        let old = at.map(|at| list.remove(at));
        if registry == Registry::Kubernetes {
            let target = new.as_ref().and_then(|(service, _)| service.alias_of.clone());
            let before = match &target {
                Some(target) => self.aliases.insert(host.clone(), target.clone()),
                None => self.aliases.remove(host),
            };
            self.aliases_changed |= before != target;
        }
        list.extend(new.map(|(service, set)| {
            RegisteredService::new(service, set).unless_same_as(old.as_ref())
        }));
        list.sort_by(|a, b| a.service.rank().cmp(&b.service.rank()));
        if list.is_empty() {
            self.by_host.remove(host);
        }
    }

    /// The services of a host as clients see them, in order of precedence. Those that are the same as in `before` keep
    /// their revisions.
    pub(crate) fn services(
        &self,
        host: &Host,
        before: &[RegisteredService],
    ) -> Vec<RegisteredService> {
        let declared = self.by_host.get(host).map(Vec::as_slice).unwrap_or_default();
        let mut groups: Vec<Vec<&RegisteredService>> = Vec::new();
        for known in declared {
            let group = groups.iter_mut().find(|group| {
                group.first().is_some_and(|first| can_merge(&first.service, &known.service))
            });
            match group {
                Some(group) => group.push(known),
                None => groups.push(vec![known]),
            }
        }
        let merged = groups.iter().filter_map(|group| merge(group, declared)).map(|known| {
            let known = self.with_end(known);
            let own = &known.service;
            let before = before
                .iter()
                .find(|old| old.service.is_from(own.registry, &own.namespace, &own.name));
            known.unless_same_as(before)
        });
        merged.collect()
    }

    /// Whether an ExternalName service was added, removed or given another target since the last call.
    pub(crate) fn take_aliases_changed(&mut self) -> bool {
        std::mem::take(&mut self.aliases_changed)
    }

    /// ExternalName services, each with the host at the end of its chain.
    pub(crate) fn aliases(&self) -> impl Iterator<Item = (&Host, &Host)> {
        self.aliases.keys().filter_map(|alias| Some((alias, self.end(alias)?)))
    }

    /// The host at the end of a chain of ExternalName services. A service in a loop keeps its own target.
    fn end(&self, alias: &Host) -> Option<&Host> {
        let first = self.aliases.get(alias)?;
        let (mut end, mut seen) = (first, BTreeSet::from([alias]));
        while let Some(next) = self.aliases.get(end) {
            if !seen.insert(end) {
                return Some(first);
            }
            end = next;
        }
        Some(end)
    }

    fn with_end(&self, mut known: RegisteredService) -> RegisteredService {
        let Some(end) = known.service.alias_of.as_ref().and_then(|_| self.end(&known.service.host))
        else {
            return known;
        };
        if known.service.alias_of.as_ref() != Some(end) {
            known.service_revision = Revision::fresh();
            known.service =
                Arc::new(Service { alias_of: Some(end.clone()), ..(*known.service).clone() });
        }
        known
    }
}

/// Whether the ports of a younger ServiceEntry are added to those of an older one. Source: Istio's `canMergeServices`.
fn can_merge(first: &Service, younger: &Service) -> bool {
    first.registry == Registry::ServiceEntry
        && younger.registry == Registry::ServiceEntry
        && first.namespace == younger.namespace
        && first.resolution == younger.resolution
        && first.is_external == younger.is_external
        && first.labels == younger.labels
        && first.selector == younger.selector
        && first.visibility == younger.visibility
}

/// Merges the services of `group`. The endpoints are those that all objects of the namespace declare for the host.
fn merge(
    group: &[&RegisteredService],
    declared: &[RegisteredService],
) -> Option<RegisteredService> {
    let mut merged = (*group.first()?).clone();
    let namespace = merged.service.namespace.clone();
    let neighbours: Vec<_> =
        declared.iter().filter(|known| known.service.namespace == namespace).collect();
    if neighbours.len() == 1 {
        return Some(merged);
    }
    if group.len() > 1 {
        merged.service = Arc::new(merge_services(group, &merged.service));
        merged.service_revision = Revision::fresh();
    }
    merged.endpoints = Arc::new(merge_endpoints(&merged.service, &neighbours));
    merged.endpoints_revision = Revision::fresh();
    Some(merged)
}

fn merge_services(group: &[&RegisteredService], first: &Service) -> Service {
    let mut merged = first.clone();
    for younger in group.iter().skip(1).map(|known| &known.service) {
        for port in younger.ports.iter().filter(|port| first.port(port.number).is_none()) {
            if merged.port(port.number).is_none() {
                let name = unused_name(&merged.ports, port);
                merged.ports.push(Port { name, ..port.clone() });
            }
        }
        let addresses =
            younger.addresses.iter().filter(|address| !first.addresses.contains(address));
        for address in addresses {
            if !merged.addresses.contains(address) {
                merged.addresses.push(address.clone());
            }
        }
        for name in &younger.subject_alt_names {
            if !merged.subject_alt_names.contains(name) {
                merged.subject_alt_names.push(name.clone());
            }
        }
    }
    merged.merged_from = group.iter().map(|known| known.service.clone()).collect();
    merged
}

/// The name by which endpoints refer to a port that is added to `ports`. Two entries may give the same name to different
/// numbers.
fn unused_name(ports: &[Port], added: &Port) -> Arc<str> {
    if ports.iter().all(|port| port.name != added.name) {
        return added.name.clone();
    }
    // A port name in an object cannot contain a colon.
    format!("{}:{}", added.name, added.number).into()
}

/// The endpoints of `services`, all in one namespace, for the ports of `merged`. ServiceEntry ports match each other by
/// number. A ServiceEntry port matches a Kubernetes Service port by name, as the ports of an EndpointSlice do.
fn merge_endpoints(merged: &Service, services: &[&RegisteredService]) -> EndpointSet {
    let mut list = Vec::new();
    let mut taken: BTreeSet<u16> = BTreeSet::new();
    for known in services {
        let service = &known.service;
        let by_name = [service.registry, merged.registry].contains(&Registry::Kubernetes);
        let mut own = BTreeSet::new();
        for endpoint in &known.endpoints.list {
            let Some(port) = service.ports.iter().find(|port| port.name == endpoint.port_name)
            else {
                continue;
            };
            // A LOGICAL_DNS cluster has one endpoint: that of the oldest entry.
            if service.resolution == Resolution::DnsRoundRobin && taken.contains(&port.number) {
                continue;
            }
            own.insert(port.number);
            let to = merged
                .ports
                .iter()
                .find(|to| if by_name { to.name == port.name } else { to.number == port.number });
            if let Some(to) = to {
                list.push(Endpoint { port_name: to.name.clone(), ..endpoint.clone() });
            }
        }
        taken.append(&mut own);
    }
    let mut seen = BTreeSet::new();
    list.retain(|endpoint: &Endpoint| {
        seen.insert((endpoint.address.clone(), endpoint.port_name.clone(), endpoint.port))
    });
    EndpointSet::new(list)
}

//! What several objects make of one host: ServiceEntries are merged where they agree, and chains of ExternalName services
//! lead to where they end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::endpoint::{Endpoint, EndpointSet};
use super::host::Host;
use super::service::{Port, Registry, Resolution, Service};
use super::{Name, Registered};

/// The service that each object gives its hosts.
#[derive(Debug, Default)]
pub(super) struct Declared {
    /// By host, the service that counts first where all are seen.
    by_host: BTreeMap<Host, Vec<Registered>>,
    /// The targets of ExternalName services.
    aliases: BTreeMap<Host, Host>,
    aliases_changed: bool,
}

impl Declared {
    /// Puts a service in the place of the one that the object of this registry and name has for `host`, or takes that
    /// away. `revision` counts the changes of services and endpoints.
    pub fn put(
        &mut self,
        host: &Host,
        registry: Registry,
        name: &Name,
        new: Option<(Service, EndpointSet)>,
        revision: &mut u64,
    ) {
        let list = self.by_host.entry(host.clone()).or_default();
        let same = |known: &Registered| {
            let service = &known.service;
            service.registry == registry && service.namespace == name.0 && service.name == name.1
        };
        let old = list.iter().position(same).map(|at| list.remove(at));
        if registry == Registry::Kubernetes {
            let target = new.as_ref().and_then(|(service, _)| service.alias_of.clone());
            let before = match &target {
                Some(target) => self.aliases.insert(host.clone(), target.clone()),
                None => self.aliases.remove(host),
            };
            self.aliases_changed |= before != target;
        }
        list.extend(new.map(|(service, set)| {
            let (endpoints_revision, endpoints) = match &old {
                Some(old) if *old.endpoints == set => (old.endpoints_revision, old.endpoints.clone()),
                _ => {
                    *revision += 1;
                    (*revision, Arc::new(set))
                }
            };
            let (service_revision, service) = match &old {
                Some(old) if *old.service == service => (old.service_revision, old.service.clone()),
                _ => {
                    *revision += 1;
                    (*revision, Arc::new(service))
                }
            };
            Registered { service, service_revision, endpoints, endpoints_revision }
        }));
        list.sort_by(|a, b| {
            let rank = |known: &Registered| {
                let service = &known.service;
                (service.registry, service.age, service.namespace.clone(), service.name.clone())
            };
            rank(a).cmp(&rank(b))
        });
        if list.is_empty() {
            self.by_host.remove(host);
        }
    }

    /// The services of a host as clients see them, the one that counts first where all are seen.
    pub fn services(&self, host: &Host) -> Vec<Registered> {
        let declared = self.by_host.get(host).map(Vec::as_slice).unwrap_or_default();
        let mut groups: Vec<Vec<&Registered>> = Vec::new();
        for known in declared {
            let fits = |group: &&mut Vec<&Registered>| {
                group.first().is_some_and(|first| can_merge(&first.service, &known.service))
            };
            match groups.iter_mut().find(fits) {
                Some(group) => group.push(known),
                None => groups.push(vec![known]),
            }
        }
        let merged = groups.iter().filter_map(|group| merge(group, declared));
        merged.map(|known| self.with_end(known)).collect()
    }

    /// Whether an ExternalName service came, went or changed its target since this was asked last.
    pub fn take_aliases_changed(&mut self) -> bool {
        std::mem::take(&mut self.aliases_changed)
    }

    /// The ExternalName services, each with the host that it stands for in the end.
    pub fn aliases(&self) -> impl Iterator<Item = (&Host, &Host)> {
        self.aliases.keys().filter_map(|alias| Some((alias, self.end(alias)?)))
    }

    /// Where a chain of ExternalName services ends. One that goes round in circles leads nowhere, and stays as it is.
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

    fn with_end(&self, mut known: Registered) -> Registered {
        let Some(end) = known.service.alias_of.as_ref().and_then(|_| self.end(&known.service.host)) else {
            return known;
        };
        if known.service.alias_of.as_ref() != Some(end) {
            let revision = known.service_revision.to_le_bytes();
            known.service_revision = xxh3_64(&[revision.as_slice(), end.as_bytes()].concat());
            known.service = Arc::new(Service { alias_of: Some(end.clone()), ..(*known.service).clone() });
        }
        known
    }
}

/// Whether a younger ServiceEntry's ports are added to those of an older one. Source: `canMergeServices` in Istio's code.
fn can_merge(first: &Service, younger: &Service) -> bool {
    first.registry == Registry::ServiceEntry
        && younger.registry == Registry::ServiceEntry
        && first.namespace == younger.namespace
        && first.resolution == younger.resolution
        && first.labels == younger.labels
        && first.selector == younger.selector
        && first.visibility == younger.visibility
}

/// One service of those of `group`, with the endpoints that all objects of its namespace give the host.
fn merge(group: &[&Registered], declared: &[Registered]) -> Option<Registered> {
    let mut merged = (*group.first()?).clone();
    let namespace = merged.service.namespace.clone();
    let neighbours: Vec<_> = declared.iter().filter(|known| known.service.namespace == namespace).collect();
    if neighbours.len() == 1 {
        return Some(merged);
    }
    if group.len() > 1 {
        merged.service = Arc::new(merge_services(group, &merged.service));
        merged.service_revision = hash(group.iter().map(|known| known.service_revision));
    }
    merged.endpoints = Arc::new(merge_endpoints(&merged.service, &neighbours));
    // Which port an endpoint belongs to is said by the services.
    let revisions = neighbours.iter().flat_map(|known| [known.service_revision, known.endpoints_revision]);
    merged.endpoints_revision = hash(revisions);
    Some(merged)
}

fn hash(revisions: impl Iterator<Item = u64>) -> u64 {
    xxh3_64(&revisions.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())
}

fn merge_services(group: &[&Registered], first: &Service) -> Service {
    let mut merged = first.clone();
    for younger in group.iter().skip(1).map(|known| &known.service) {
        for port in younger.ports.iter().filter(|port| first.port(port.number).is_none()) {
            if merged.port(port.number).is_none() {
                let name = unused_name(&merged.ports, port);
                merged.ports.push(Port { name, ..port.clone() });
            }
        }
        let addresses = younger.addresses.iter().filter(|address| !first.addresses.contains(address));
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

/// The name by which endpoints refer to a port that is added to `ports`: two entries may give one name to two numbers.
fn unused_name(ports: &[Port], added: &Port) -> Arc<str> {
    if ports.iter().all(|port| port.name != added.name) {
        return added.name.clone();
    }
    // No object can give a port such a name.
    format!("{}:{}", added.name, added.number).into()
}

/// The endpoints that the services of one namespace, the oldest first, have for the ports of `merged`. Between
/// ServiceEntries the port's number says which port is meant, towards a Kubernetes Service its name, as it does for
/// EndpointSlices.
fn merge_endpoints(merged: &Service, services: &[&Registered]) -> EndpointSet {
    let mut list = Vec::new();
    let mut taken: BTreeSet<u16> = BTreeSet::new();
    for known in services {
        let service = &known.service;
        let by_name = [service.registry, merged.registry].contains(&Registry::Kubernetes);
        let mut own = BTreeSet::new();
        for endpoint in &known.endpoints.list {
            let Some(port) = service.ports.iter().find(|port| port.name == endpoint.port_name) else { continue };
            // Such a cluster has a single endpoint: the oldest entry's.
            if service.resolution == Resolution::DnsRoundRobin && taken.contains(&port.number) {
                continue;
            }
            own.insert(port.number);
            let means = |to: &&Port| if by_name { to.name == port.name } else { to.number == port.number };
            if let Some(to) = merged.ports.iter().find(means) {
                list.push(Endpoint { port_name: to.name.clone(), ..endpoint.clone() });
            }
        }
        taken.append(&mut own);
    }
    let mut seen = BTreeSet::new();
    list.retain(|one| seen.insert((one.address.clone(), one.port_name.clone(), one.port)));
    EndpointSet::new(list)
}

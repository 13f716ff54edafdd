//! The difference between two states of the mesh, in terms of the inputs of proxy resources.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::host::Host;
use super::{Mesh, PortClass, RegisteredService, Resolution, diff};

/// The difference between two states of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshChange {
    /// Hosts of services and VirtualServices, including wildcards, whose clusters, endpoints or virtual hosts may
    /// differ for some proxy.
    pub hosts: BTreeSet<Host>,
    /// Those of them that differ in more than their endpoints.
    pub reshaped: BTreeSet<Host>,
    /// Ports whose listeners may differ for some proxy.
    pub ports: BTreeSet<u16>,
    /// Addresses whose endpoints changed, which may affect the inbound configuration of proxies there.
    pub addresses: BTreeSet<Arc<str>>,
    /// Whether the scope of any proxy may differ.
    pub scopes: bool,
}

impl MeshChange {
    /// Computes the difference from `old` to `new`, in time proportional to the difference if `new` was derived from
    /// `old`.
    pub(crate) fn between(old: &Mesh, new: &Mesh) -> Self {
        let mut change = Self {
            scopes: !Arc::ptr_eq(&old.sidecars, &new.sidecars)
                || !Arc::ptr_eq(&old.peer_authentications, &new.peer_authentications)
                || !Arc::ptr_eq(&old.scope_attributes, &new.scope_attributes)
                || !Arc::ptr_eq(&old.nodes, &new.nodes)
                || old.network != new.network
                || !old.pod_topologies.ptr_eq(&new.pod_topologies),
            ..Self::default()
        };
        // Hosts that differ in more than their endpoints.
        let mut reshaped: BTreeSet<Host> = BTreeSet::new();
        change.services(old, new, &mut reshaped);
        change.virtual_services(old, new, &mut reshaped);
        change.destination_rules(old, new, &mut reshaped);
        // A change of an ExternalName service or of its target affects both.
        let aliases: Vec<Host> = reshaped
            .iter()
            .flat_map(|host| [old, new].map(|mesh| alias_relations(mesh, host)))
            .flatten()
            .collect();
        reshaped.extend(aliases);
        for host in &reshaped {
            for known in [old, new]
                .iter()
                .filter_map(|mesh| mesh.services.get(host))
                .flat_map(|list| list.iter())
            {
                change.ports.extend(ports(known, |class| class == PortClass::Other));
            }
        }
        change.hosts.extend(reshaped.iter().cloned());
        change.reshaped = reshaped;
        change
    }

    /// Whether there is no difference.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn services(&mut self, old: &Mesh, new: &Mesh, reshaped: &mut BTreeSet<Host>) {
        diff(&old.services, &new.services, |host, before, after| {
            self.hosts.insert(host.clone());
            let (before, after) =
                (before.map_or(&[][..], |list| list), after.map_or(&[][..], |list| list));
            let moved = before.iter().filter(|known| !after.contains(known));
            let moved: Vec<_> =
                moved.chain(after.iter().filter(|known| !before.contains(known))).collect();
            for known in &moved {
                self.addresses.extend(
                    known.endpoints.list.iter().flat_map(|endpoint| endpoint.addresses().cloned()),
                );
                if known.service.resolution == Resolution::Passthrough {
                    // Its listeners are at the addresses of its endpoints.
                    self.ports.extend(ports(known, |class| class == PortClass::Other));
                }
            }
            let same_shape = before.len() == after.len()
                && before
                    .iter()
                    .zip(after)
                    .all(|(before, after)| before.service_revision == after.service_revision);
            if same_shape {
                return;
            }
            reshaped.insert(host.clone());
            // The unchanged services of the host may become visible in place of others, or hidden by them.
            for known in before.iter().chain(after) {
                self.ports.extend(ports(known, |_| true));
                reshaped.extend(known.service.alias_of.clone());
            }
            for mesh in [old, new] {
                let rules = mesh
                    .virtual_services
                    .naming(host)
                    .chain(mesh.virtual_services.routing_to(host));
                rules
                    .flat_map(|rules| &rules.hosts)
                    .for_each(|host| reshaped.extend(mesh.hosts_covered_by(host)));
            }
        });
    }

    fn virtual_services(&mut self, old: &Mesh, new: &Mesh, reshaped: &mut BTreeSet<Host>) {
        diff(old.virtual_services.by_key(), new.virtual_services.by_key(), |_, before, after| {
            for (mesh, rules) in [(old, before), (new, after)] {
                let Some(rules) = rules else { continue };
                rules.hosts.iter().for_each(|host| reshaped.extend(mesh.hosts_covered_by(host)));
                // A route's destinations are visible wherever a Sidecar admits the route.
                reshaped.extend(rules.destinations(&mesh.config.domain).map(|(host, _)| host));
            }
        });
    }

    fn destination_rules(&mut self, old: &Mesh, new: &Mesh, reshaped: &mut BTreeSet<Host>) {
        old.destination_rules.diff(&new.destination_rules, |before, after| {
            for rule in before.into_iter().chain(after).flat_map(|rules| rules.iter()) {
                let hosts = new.hosts_covered_by(&rule.host);
                for host in &hosts {
                    // Routes hash requests by the rule of their destination.
                    let users = new.virtual_services.routing_to(host);
                    users
                        .flat_map(|rules| &rules.hosts)
                        .for_each(|host| reshaped.extend(new.hosts_covered_by(host)));
                }
                reshaped.extend(hosts);
            }
        });
    }
}

/// The targets of the ExternalName services of a host, the ExternalName services that stand for it, and the hosts whose
/// routes have these as destinations.
fn alias_relations(mesh: &Mesh, host: &Host) -> Vec<Host> {
    let list = mesh.services.get(host).into_iter().flat_map(|list| list.iter());
    let targets = list.filter_map(|known| known.service.alias_of.clone());
    let mut found: BTreeSet<Host> = targets.collect();
    for alias in mesh.aliases_of(host) {
        found.insert(alias.clone());
        for rules in mesh.virtual_services.routing_to(alias) {
            rules.hosts.iter().for_each(|host| found.extend(mesh.hosts_covered_by(host)));
        }
    }
    found.into_iter().collect()
}

fn ports(
    known: &RegisteredService,
    which: impl Fn(PortClass) -> bool,
) -> impl Iterator<Item = u16> {
    known
        .service
        .ports
        .iter()
        .filter(move |port| which(PortClass::of(port.protocol)))
        .map(|port| port.number)
}

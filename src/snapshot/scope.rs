//! The resources of one scope, updated host by host: the cost is proportional to the change, and a scope that differs
//! from another in a few hosts is derived from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;

use super::domains::{Claim, Domains, Rank};
use super::parts::{CachedVirtualHost, Encoded, Parts, VirtualHostInput, head};
use super::validator::OmittedResources;
use super::{
    EncodedVirtualHost, NameTable, OmittedResource, Resource, ResourceType, Resources, RouteTable,
    Snapshot,
};
use crate::mesh::{
    Host, Mesh, Protocol, Scope, ScopeView, VirtualService, VisibleService, covers, is_wildcard,
};
use crate::revision::MeshRevision;
use crate::translate::listener_plan::{own_routes, shared_routes};
use crate::translate::route::{has_routes, rules_at};
use crate::translate::{default_cluster, names, virtual_host};

/// The resources that one host contributes to a scope.
#[derive(Debug, Default)]
struct HostResources {
    clusters: Arc<Encoded>,
    endpoints: Arc<Encoded>,
    virtual_hosts: Vec<Placed>,
}

/// A virtual host and its route configuration.
#[derive(Clone, Debug)]
struct Placed {
    configuration: Arc<str>,
    rank: Rank,
    part: Arc<CachedVirtualHost>,
}

/// A route configuration that is being kept up to date.
#[derive(Clone, Debug)]
struct Configuration {
    domains: Domains,
    table: RouteTable,
    catch_all: Option<Arc<EncodedVirtualHost>>,
}

/// What an update must examine again.
#[derive(Clone, Debug, Default)]
pub(super) struct Touched {
    pub hosts: BTreeSet<Host>,
    pub ports: BTreeSet<u16>,
}

/// What the proxies of one scope get. Cheap to clone; a changed copy shares what did not change.
#[derive(Clone, Debug, Default)]
pub(super) struct ScopeResources {
    hosts: OrdMap<Host, Arc<HostResources>>,
    configurations: OrdMap<Arc<str>, Configuration>,
    /// How many listeners reference each route configuration.
    asked_for: OrdMap<Arc<str>, usize>,
    /// The listeners at each port; those of redirected traffic have the key `None`.
    listeners: OrdMap<Option<u16>, Arc<[Arc<Encoded>]>>,
    inbound: Vec<Arc<Encoded>>,
    /// The cluster for requests to unknown hosts.
    default_cluster: String,
    /// What was omitted, by owner.
    omitted: OrdMap<String, OmittedResources>,
    resources: [Resources; 4],
    /// The table of names, if a proxy has asked for it.
    names: Option<NameTable>,
}

impl ScopeResources {
    /// Builds the configuration of `scope` for this state of the mesh.
    pub(crate) fn build(mesh: &Mesh, scope: &Scope, parts: &mut Parts) -> Self {
        let mut this = Self {
            default_cluster: default_cluster(&ScopeView::new(mesh, scope)),
            ..Self::default()
        };
        let fixed = parts.fixed_clusters(scope.families);
        this.replace("fixed", &Arc::default(), &fixed, ResourceType::Cluster);
        let touched = Touched {
            hosts: mesh.services.keys().chain(mesh.virtual_services.hosts()).cloned().collect(),
            ports: mesh.ports(),
        };
        this.update(mesh, scope, &touched, parts);
        this.update_own(mesh, scope, parts);
        parts.counts.scopes_built += 1;
        this
    }

    /// Updates what is touched.
    pub(crate) fn update(
        &mut self,
        mesh: &Mesh,
        scope: &Scope,
        touched: &Touched,
        parts: &mut Parts,
    ) {
        let view = ScopeView::new(mesh, scope);
        if self.default_cluster != default_cluster(&view) {
            // Every route configuration's last virtual host references it.
            let had_names = self.names.is_some();
            *self = Self::build(mesh, scope, parts);
            if had_names {
                self.build_names(mesh, scope, parts);
            }
            return;
        }
        for host in &touched.hosts {
            self.update_host(&view, host, parts);
        }
        self.update_names(&view, &touched.hosts, parts);
        for port in &touched.ports {
            let new: Arc<[Arc<Encoded>]> = parts.listeners_at(&view, *port).into();
            self.replace_listeners(&view, Some(*port), new);
        }
        if scope.inbound.iter().any(|port| touched.hosts.contains(&port.host)) {
            self.update_inbound(&view, parts);
        }
        parts.counts.scope_hosts += touched.hosts.len() as u64;
        parts.counts.scope_ports += touched.ports.len() as u64;
    }

    /// Updates what belongs to the proxies themselves.
    pub(crate) fn update_own(&mut self, mesh: &Mesh, scope: &Scope, parts: &mut Parts) {
        let view = ScopeView::new(mesh, scope);
        self.replace_listeners(&view, None, parts.redirected_listeners(&view).into());
        self.update_inbound(&view, parts);
    }

    /// The table of names, if it is kept up to date.
    pub(crate) fn names(&self) -> Option<&NameTable> {
        self.names.as_ref()
    }

    /// Keeps the table of names up to date from now on. It is made from scratch.
    pub(crate) fn build_names(&mut self, mesh: &Mesh, scope: &Scope, parts: &mut Parts) {
        let hosts = mesh.services.keys().cloned().collect();
        self.derive_names(NameTable::default(), &hosts, (mesh, scope), parts);
    }

    /// The same with the `table` of a scope for which only these hosts have other names.
    pub(crate) fn derive_names(
        &mut self,
        table: NameTable,
        hosts: &BTreeSet<Host>,
        (mesh, scope): (&Mesh, &Scope),
        parts: &mut Parts,
    ) {
        self.names = Some(table);
        self.update_names(&ScopeView::new(mesh, scope), hosts, parts);
    }

    fn update_names(&mut self, view: &ScopeView<'_>, hosts: &BTreeSet<Host>, parts: &mut Parts) {
        let Some(table) = &mut self.names else {
            return;
        };
        for host in hosts {
            table.set(host, names::encoded(view, host));
        }
        parts.counts.hosts_named += hosts.len() as u64;
    }

    /// Whether proxies get the same from both, a cheap check; `false` if unknown.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.resources.iter().zip(&other.resources).all(|(own, other)| own.ptr_eq(other))
            && self.names == other.names
    }

    /// The snapshot of this state.
    pub(crate) fn snapshot(&self, revision: MeshRevision) -> Snapshot {
        let mut snapshot = Snapshot::new(revision, self.resources.clone());
        let omitted: BTreeSet<&OmittedResource> =
            self.omitted.values().flat_map(|left| left.iter()).collect();
        snapshot.omitted = omitted.into_iter().cloned().collect();
        snapshot.names = self.names.clone().map(Resource::names);
        snapshot
    }

    fn update_inbound(&mut self, view: &ScopeView<'_>, parts: &mut Parts) {
        let new = parts.inbound_clusters(view);
        let old = std::mem::replace(&mut self.inbound, new.clone());
        let count = old.len().max(new.len());
        // Removals come first, so that a cluster of the same name that is added at another place stays.
        for at in 0..count {
            let gone = old.get(at).cloned().unwrap_or_default();
            self.replace(&format!("inbound {at}"), &gone, &Arc::default(), ResourceType::Cluster);
        }
        for (at, part) in new.iter().enumerate() {
            self.replace(&format!("inbound {at}"), &Arc::default(), part, ResourceType::Cluster);
        }
    }

    fn replace_listeners(
        &mut self,
        view: &ScopeView<'_>,
        port: Option<u16>,
        new: Arc<[Arc<Encoded>]>,
    ) {
        let old = self.listeners.get(&port).cloned().unwrap_or_default();
        let owner = format!("listeners {port:?}");
        self.replace(
            &owner,
            &Arc::new(merged(&old)),
            &Arc::new(merged(&new)),
            ResourceType::Listener,
        );
        self.ask(view, &asked_configurations(&old), &asked_configurations(&new));
        if new.is_empty() {
            self.listeners.remove(&port);
        } else {
            self.listeners.insert(port, new);
        }
    }

    /// Counts the listeners that reference route configurations: proxies do not get those that no listener references.
    fn ask(&mut self, view: &ScopeView<'_>, old: &[Arc<str>], new: &[Arc<str>]) {
        for name in new {
            *self.asked_for.entry(name.clone()).or_default() += 1;
        }
        for name in old {
            if let Some(count) = self.asked_for.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    self.asked_for.remove(name);
                }
            }
        }
        for name in old.iter().chain(new).collect::<BTreeSet<_>>() {
            let [.., routes] = &self.resources;
            if self.asked_for.contains_key(name) != routes.contains_key(name) {
                let known = self.configurations.get(name).cloned();
                self.publish(name, known.unwrap_or_else(|| Configuration::new(view, name)));
            }
        }
    }

    /// Replaces the resources of `old` with those of `new`.
    fn replace(&mut self, owner: &str, old: &Arc<Encoded>, new: &Arc<Encoded>, kind: ResourceType) {
        if Arc::ptr_eq(old, new) {
            return;
        }
        let Some(resources) = self.resources.get_mut(kind.index()) else {
            return;
        };
        let names: BTreeSet<&Arc<str>> =
            new.resources.iter().map(|resource| &resource.name).collect();
        for gone in old.resources.iter().filter(|resource| !names.contains(&resource.name)) {
            resources.remove(&gone.name);
        }
        new.resources.iter().for_each(|resource| resources.insert(resource.clone()));
        self.note_left_out(owner, &old.left, &new.left);
    }

    fn note_left_out(&mut self, owner: &str, old: &OmittedResources, new: &OmittedResources) {
        if !new.is_empty() {
            self.omitted.insert(owner.to_owned(), new.clone());
        } else if !old.is_empty() {
            self.omitted.remove(owner);
        }
    }

    fn update_host(&mut self, view: &ScopeView<'_>, host: &Host, parts: &mut Parts) {
        let old = self.hosts.get(host).cloned().unwrap_or_default();
        let mut new = HostResources {
            virtual_hosts: virtual_hosts(view, host, parts),
            ..HostResources::default()
        };
        if let Some(seen) = view.service(host).filter(|seen| seen.known.service.alias_of.is_none())
        {
            (new.clusters, new.endpoints) = parts.service(view, &seen);
        }
        self.replace(
            &format!("clusters {host}"),
            &old.clusters,
            &new.clusters,
            ResourceType::Cluster,
        );
        self.replace(
            &format!("endpoints {host}"),
            &old.endpoints,
            &new.endpoints,
            ResourceType::Endpoints,
        );
        self.replace_virtual_hosts(view, host, &old.virtual_hosts, &new.virtual_hosts);
        let is_empty = new.clusters.resources.is_empty() && new.endpoints.resources.is_empty();
        if is_empty && new.virtual_hosts.is_empty() {
            self.hosts.remove(host);
        } else {
            self.hosts.insert(host.clone(), Arc::new(new));
        }
    }

    fn replace_virtual_hosts(
        &mut self,
        view: &ScopeView<'_>,
        host: &Host,
        old: &[Placed],
        new: &[Placed],
    ) {
        let mut configurations: BTreeSet<&Arc<str>> =
            old.iter().map(|placed| &placed.configuration).collect();
        configurations.extend(new.iter().map(|placed| &placed.configuration));
        for name in configurations {
            let before = old.iter().find(|placed| placed.configuration == *name);
            let after = new.iter().find(|placed| placed.configuration == *name);
            let same = before.zip(after).is_some_and(|(before, after)| {
                Arc::ptr_eq(&before.part, &after.part) && before.rank == after.rank
            });
            if same {
                continue;
            }
            let mut configuration = self
                .configurations
                .get(name)
                .cloned()
                .unwrap_or_else(|| Configuration::new(view, name));
            configuration.replace(before, after);
            let [left_before, left_after] = [before, after]
                .map(|placed| placed.map(|placed| placed.part.left.clone()).unwrap_or_default());
            self.note_left_out(&format!("routes {name} {host}"), &left_before, &left_after);
            self.publish(name, configuration);
        }
    }

    /// Stores a route configuration, and its resource if any listener references it.
    fn publish(&mut self, name: &Arc<str>, configuration: Configuration) {
        let [.., routes] = &mut self.resources;
        if self.asked_for.contains_key(name) {
            routes.insert(Resource::routes(name.clone(), configuration.table.clone()));
        } else {
            routes.remove(name);
        }
        if configuration.is_empty() {
            self.configurations.remove(name);
        } else {
            self.configurations.insert(name.clone(), configuration);
        }
    }
}

impl Configuration {
    fn new(view: &ScopeView<'_>, name: &str) -> Self {
        let catch_all = name.parse::<u16>().is_ok().then(|| {
            let host = virtual_host::catch_all(view.outbound, &default_cluster(view));
            Arc::new(EncodedVirtualHost::new(host, Arc::default()))
        });
        let mut table = RouteTable::new(head(name));
        table.set_catch_all(catch_all.clone());
        Self { domains: Domains::default(), table, catch_all }
    }

    fn replace(&mut self, old: Option<&Placed>, new: Option<&Placed>) {
        let claim = new.and_then(|placed| {
            Some(Claim { rank: placed.rank.clone(), host: placed.part.encoded.clone()? })
        });
        let name = claim.as_ref().map(|claim| claim.host.name.clone());
        let old_name = old.and_then(|placed| Some(placed.part.encoded.as_ref()?.name.clone()));
        if let Some(gone) = old_name.filter(|old| Some(old) != name.as_ref()) {
            self.domains.set(&gone, None, &mut self.table);
        }
        if let Some(name) = name {
            self.domains.set(&name, claim, &mut self.table);
        }
        let catch_all = self.catch_all.clone().filter(|_| !self.domains.has("*"));
        if catch_all != self.table.catch_all().cloned() {
            self.table.set_catch_all(catch_all);
        }
    }

    fn is_empty(&self) -> bool {
        self.domains.is_empty()
    }
}

/// The virtual hosts of a host, at every port that has one.
fn virtual_hosts(view: &ScopeView<'_>, host: &Host, parts: &mut Parts) -> Vec<Placed> {
    let mut found = Vec::new();
    let mut served = BTreeSet::new();
    if let Some(seen) = view.callable_service(host) {
        let is_alias = seen.known.service.alias_of.is_some();
        let aliases = if is_alias { Vec::new() } else { aliases(view, host) };
        for port in seen.ports().filter(|port| port.protocol.may_be_http()) {
            served.insert(port.number);
            let rule = rules_at(view, host, port.number).map(|rule| &**rule);
            // Without a VirtualService of its own an alias is a domain of its target's virtual host.
            if is_alias && rule.is_none() {
                continue;
            }
            let wanted = VirtualHostInput { view, port: port.number, rule };
            let rank = match rule {
                Some(rule) => Rank::Ruled(view.rules_at(port.number).precedence(rule), true),
                None => Rank::Plain,
            };
            let own = (port.protocol == Protocol::Unknown)
                .then(|| (own_routes(&seen.known.service, port.number), true));
            for (configuration, any_name) in
                [(shared_routes(port.number), false)].into_iter().chain(own)
            {
                let configuration = configuration.into();
                let part = parts.service_host(&wanted, &seen, port, any_name, &aliases);
                found.push(Placed { configuration, rank: rank.clone(), part });
            }
        }
    }
    other_hosts(view, host, &served, parts, &mut found);
    found
}

/// The visible ExternalName services that are aliases of a host.
fn aliases<'a>(view: &ScopeView<'a>, host: &Host) -> Vec<VisibleService<'a>> {
    let seen = view.mesh.aliases_of(host).filter_map(|alias| view.callable_service(alias));
    seen.filter(|alias| alias.known.service.alias_of.as_ref() == Some(host)).collect()
}

/// The virtual hosts of a VirtualService's host at ports where it is not a service: at the port of plain HTTP, and at
/// other ports where the VirtualService also names a service.
fn other_hosts(
    view: &ScopeView<'_>,
    host: &Host,
    served: &BTreeSet<u16>,
    parts: &mut Parts,
    found: &mut Vec<Placed>,
) {
    let mut by_port: BTreeMap<u16, Vec<&Arc<VirtualService>>> = BTreeMap::new();
    let named = view.rules.naming_exactly(host);
    for rule in named {
        let ports = rule.hosts.iter().flat_map(|name| ports_of(view, name)).chain([80]);
        for port in ports.collect::<BTreeSet<u16>>() {
            by_port.entry(port).or_default().push(rule);
        }
    }
    for (port, rules) in by_port {
        if served.contains(&port) || (is_wildcard(host) && ports_of(view, host).contains(&port)) {
            continue;
        }
        let rules = rules.into_iter().filter(|rule| {
            view.rules_at(port).includes(rule) && has_routes(rule, view.scope, port)
        });
        let mut made: Option<Placed> = None;
        for rule in rules {
            let wanted = VirtualHostInput { view, port, rule: Some(rule) };
            let part = parts.other_host(&wanted, host, rule);
            let is_made = part.encoded.is_some();
            if is_made || made.is_none() {
                let rank = Rank::Ruled(view.rules_at(port).precedence(rule), false);
                made = Some(Placed { configuration: shared_routes(port).into(), rank, part });
            }
            if is_made {
                break;
            }
        }
        found.extend(made);
    }
}

/// The HTTP ports of the services of a host, or of the hosts that a wildcard covers.
fn ports_of(view: &ScopeView<'_>, name: &Host) -> BTreeSet<u16> {
    if is_wildcard(name) {
        let covered = view.mesh.services.keys().filter(|known| covers(name, known));
        covered.filter_map(|host| view.callable_service(host)).flat_map(http_ports).collect()
    } else {
        view.callable_service(name).into_iter().flat_map(http_ports).collect()
    }
}

fn http_ports(seen: VisibleService<'_>) -> Vec<u16> {
    seen.ports().filter(|port| port.protocol.may_be_http()).map(|port| port.number).collect()
}

/// All that the parts have together, except the route configurations that they ask for.
fn merged(parts: &[Arc<Encoded>]) -> Encoded {
    Encoded {
        resources: parts.iter().flat_map(|part| part.resources.iter().cloned()).collect(),
        left: parts.iter().flat_map(|part| part.left.iter().cloned()).collect(),
        asks_for: None,
    }
}

/// The route configurations that listeners ask for.
fn asked_configurations(listeners: &[Arc<Encoded>]) -> Vec<Arc<str>> {
    listeners.iter().filter_map(|part| part.asks_for.clone()).collect()
}

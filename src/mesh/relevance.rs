//! The proxy attributes that some rule or service reads; others cannot affect the configuration. Reference counted, so
//! that updates are incremental.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{
    DestinationRule, Host, Mesh, Service, VirtualService, Visibility, diff, name_and_namespace,
};

/// The proxy attributes that some rule or service reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ScopeAttributes {
    /// The names of labels.
    pub labels: BTreeSet<String>,
    /// Whether their locality is read.
    pub locality: bool,
    /// The namespaces that see services with node-local endpoints.
    pub node: BTreeSet<Visibility>,
    /// The namespaces that an object is in or names. Proxies in all others share one configuration, so clients cannot
    /// create scopes by inventing namespaces.
    pub namespaces: BTreeSet<Arc<str>>,
}

impl ScopeAttributes {
    /// Adds the namespaces that an object is in, is exported to, or names by its hosts.
    fn add_namespaces<'a>(
        &mut self,
        own: &Arc<str>,
        visibility: &Visibility,
        hosts: impl IntoIterator<Item = &'a Host>,
        domain: &str,
    ) {
        self.namespaces.insert(own.clone());
        if let Visibility::Namespaces(named) = visibility {
            self.namespaces.extend(named.iter().cloned());
        }
        let of_hosts = hosts.into_iter().filter_map(|host| name_and_namespace(host, domain));
        self.namespaces.extend(of_hosts.map(|(_, namespace)| Arc::from(namespace)));
    }
}

/// The number of objects that read each attribute.
#[derive(Debug, Default)]
pub(super) struct Counts {
    labels: BTreeMap<String, usize>,
    locality: usize,
    node: BTreeMap<Visibility, usize>,
    namespaces: BTreeMap<Arc<str>, usize>,
}

impl Counts {
    /// Applies the difference between two states. Returns whether the set of attributes may have changed.
    pub(crate) fn follow(&mut self, old: &Mesh, new: &Mesh) -> bool {
        let domain = &new.config.domain;
        let mut changed = false;
        // Additions come first, so that replacing an object never removes its attributes temporarily.
        diff(old.virtual_services.by_key(), new.virtual_services.by_key(), |_, before, after| {
            for (rules, comes) in [(after, true), (before, false)] {
                if let Some(rules) = rules {
                    changed |= self.add(&of_virtual_service(rules, domain), comes);
                }
            }
        });
        old.destination_rules.diff(&new.destination_rules, |before, after| {
            for (rules, comes) in [(after, true), (before, false)] {
                for rule in rules.into_iter().flat_map(|rules| rules.iter()) {
                    changed |= self.add(&of_rule(rule, domain), comes);
                }
            }
        });
        diff(&old.services, &new.services, |_, before, after| {
            for (list, comes) in [(after, true), (before, false)] {
                for known in list.into_iter().flat_map(|list| list.iter()) {
                    changed |= self.add(&of_service(&known.service, domain), comes);
                }
            }
        });
        changed
    }

    /// All attributes that are read.
    pub(crate) fn all(&self) -> ScopeAttributes {
        ScopeAttributes {
            labels: self.labels.keys().cloned().collect(),
            locality: self.locality > 0,
            node: self.node.keys().cloned().collect(),
            namespaces: self.namespaces.keys().cloned().collect(),
        }
    }

    /// Adds or removes the attributes that an object reads. Returns whether the set of attributes changed.
    fn add(&mut self, object: &ScopeAttributes, comes: bool) -> bool {
        let mut changed = count_all(&mut self.labels, &object.labels, comes);
        changed |= count_all(&mut self.node, &object.node, comes);
        changed |= count_all(&mut self.namespaces, &object.namespaces, comes);
        if object.locality {
            let before = self.locality > 0;
            self.locality = if comes { self.locality + 1 } else { self.locality.saturating_sub(1) };
            changed |= before != (self.locality > 0);
        }
        changed
    }
}

/// Counts every key once more or once less. Returns whether a key appeared or disappeared.
fn count_all<K: Ord + Clone>(
    counts: &mut BTreeMap<K, usize>,
    keys: &BTreeSet<K>,
    comes: bool,
) -> bool {
    let mut changed = false;
    for key in keys {
        let count = counts.entry(key.clone()).or_default();
        changed |= *count == 0;
        *count = if comes { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            counts.remove(key);
            changed = true;
        }
    }
    changed
}

fn of_virtual_service(rules: &VirtualService, domain: &str) -> ScopeAttributes {
    let mut found = ScopeAttributes::default();
    let spec = rules.spec();
    let http = spec.http.iter().flat_map(|route| &route.matches);
    let http = http.map(|wanted| (&wanted.source_labels, &wanted.source_namespace));
    let tls = spec.tls.iter().flat_map(|route| &route.matches);
    let tls = tls.map(|wanted| (&wanted.source_labels, &wanted.source_namespace));
    let tcp = spec.tcp.iter().flat_map(|route| &route.matches);
    let tcp = tcp.map(|wanted| (&wanted.source_labels, &wanted.source_namespace));
    for (labels, namespace) in http.chain(tls).chain(tcp) {
        found.labels.extend(labels.keys().cloned());
        if !namespace.is_empty() {
            found.namespaces.insert(namespace.as_str().into());
        }
    }
    found.add_namespaces(rules.namespace(), &rules.visibility, &rules.hosts, domain);
    found
}

fn of_rule(rule: &DestinationRule, domain: &str) -> ScopeAttributes {
    let mut found = ScopeAttributes::default();
    found.add_namespaces(&rule.namespace, &rule.visibility, [&rule.host], domain);
    found.labels.extend(rule.selector.iter().flat_map(|labels| labels.keys().cloned()));
    for place in rule.locality_inputs() {
        found.locality |= place.locality;
        let names = place.failover_priority.iter().filter_map(|label| label.split('=').next());
        found.labels.extend(names.map(str::to_owned));
    }
    found
}

fn of_service(service: &Service, domain: &str) -> ScopeAttributes {
    let ranked = service.preference.into_iter().flat_map(|preference| preference.labels());
    let mut found = ScopeAttributes {
        labels: ranked.map(|label| (*label).to_owned()).collect(),
        node: service.node_local.then(|| service.visibility.clone()).into_iter().collect(),
        ..ScopeAttributes::default()
    };
    let hosts = std::iter::once(&service.host).chain(&service.alias_of);
    found.add_namespaces(&service.namespace, &service.visibility, hosts, domain);
    found
}

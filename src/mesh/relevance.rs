//! The proxy attributes that some rule or service reads; others cannot affect the configuration. Reference counted, so
//! that updates are incremental.

use std::collections::{BTreeMap, BTreeSet};

use super::{DestinationRule, Mesh, Service, VirtualService, Visibility, diff};

/// The proxy attributes that some rule or service reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ScopeAttributes {
    /// The names of labels.
    pub labels: BTreeSet<String>,
    /// Whether their locality counts.
    pub locality: bool,
    /// The namespaces that see services with node-local endpoints.
    pub node: BTreeSet<Visibility>,
}

/// The number of objects that read each attribute.
#[derive(Debug, Default)]
pub(super) struct Counts {
    labels: BTreeMap<String, usize>,
    locality: usize,
    node: BTreeMap<Visibility, usize>,
}

impl Counts {
    /// Applies the difference between two states. Returns whether the set of attributes changed.
    pub fn follow(&mut self, old: &Mesh, new: &Mesh) -> bool {
        let before = self.all();
        diff(old.virtual_services.by_key(), new.virtual_services.by_key(), |_, before, after| {
            before.into_iter().for_each(|rules| self.add(&of_virtual_service(rules), false));
            after.into_iter().for_each(|rules| self.add(&of_virtual_service(rules), true));
        });
        old.destination_rules.diff(&new.destination_rules, |before, after| {
            before
                .into_iter()
                .flat_map(|rules| rules.iter())
                .for_each(|rule| self.add(&of_rule(rule), false));
            after
                .into_iter()
                .flat_map(|rules| rules.iter())
                .for_each(|rule| self.add(&of_rule(rule), true));
        });
        diff(&old.services, &new.services, |_, before, after| {
            let list = |list: Option<&super::HostServices>| {
                list.map(|list| list.to_vec()).unwrap_or_default()
            };
            list(before).iter().for_each(|known| self.add(&of_service(&known.service), false));
            list(after).iter().for_each(|known| self.add(&of_service(&known.service), true));
        });
        before != self.all()
    }

    /// All attributes that are read.
    pub fn all(&self) -> ScopeAttributes {
        ScopeAttributes {
            labels: self.labels.keys().cloned().collect(),
            locality: self.locality > 0,
            node: self.node.keys().cloned().collect(),
        }
    }

    fn add(&mut self, object: &ScopeAttributes, comes: bool) {
        object.labels.iter().for_each(|label| count(&mut self.labels, label, comes));
        object.node.iter().for_each(|visibility| count(&mut self.node, visibility, comes));
        if object.locality {
            self.locality = if comes { self.locality + 1 } else { self.locality.saturating_sub(1) };
        }
    }
}

fn count<K: Ord + Clone>(counts: &mut BTreeMap<K, usize>, key: &K, comes: bool) {
    let count = counts.entry(key.clone()).or_default();
    *count = if comes { *count + 1 } else { count.saturating_sub(1) };
    if *count == 0 {
        counts.remove(key);
    }
}

fn of_virtual_service(rules: &VirtualService) -> ScopeAttributes {
    let spec = rules.spec();
    let http =
        spec.http.iter().flat_map(|route| route.matches.iter().map(|wanted| &wanted.source_labels));
    let tls =
        spec.tls.iter().flat_map(|route| route.matches.iter().map(|wanted| &wanted.source_labels));
    let tcp =
        spec.tcp.iter().flat_map(|route| route.matches.iter().map(|wanted| &wanted.source_labels));
    ScopeAttributes {
        labels: http.chain(tls).chain(tcp).flat_map(|labels| labels.keys().cloned()).collect(),
        ..ScopeAttributes::default()
    }
}

fn of_rule(rule: &DestinationRule) -> ScopeAttributes {
    let mut found = ScopeAttributes::default();
    found.labels.extend(rule.selector.iter().flat_map(|labels| labels.keys().cloned()));
    for place in rule.locality_inputs() {
        found.locality |= place.locality;
        let names = place.failover_priority.iter().filter_map(|label| label.split('=').next());
        found.labels.extend(names.map(str::to_owned));
    }
    found
}

fn of_service(service: &Service) -> ScopeAttributes {
    let ranked = service.preference.into_iter().flat_map(|preference| preference.labels());
    ScopeAttributes {
        labels: ranked.map(|label| (*label).to_owned()).collect(),
        locality: false,
        node: service.node_local.then(|| service.visibility.clone()).into_iter().collect(),
    }
}

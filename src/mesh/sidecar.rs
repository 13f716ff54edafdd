//! Sidecar objects: which hosts the proxies of some workloads get to see.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::host::{self, Host};
use super::{OutboundPolicy, VirtualService};
use crate::api::{self, Age, Labels, Object, ObjectKey, OutboundMode, Spec};

/// A Sidecar with its hosts taken apart.
#[derive(Debug)]
pub struct Sidecar {
    /// Its key.
    pub key: ObjectKey,
    /// Changes whenever its content does.
    pub revision: u64,
    /// What happens to traffic for hosts that nobody knows; `None` leaves that to the mesh.
    pub outbound: Option<OutboundPolicy>,
    age: Age,
    selector: Labels,
    egress: Vec<Egress>,
}

/// The hosts of one egress listener.
#[derive(Debug)]
pub(super) struct Egress {
    /// The only port; `None` means all.
    pub port: Option<u16>,
    hosts: Vec<Pattern>,
}

#[derive(Debug)]
struct Pattern {
    excluded: bool,
    /// `None` means every namespace.
    namespace: Option<Arc<str>>,
    host: Host,
}

impl Sidecar {
    fn new(revision: u64, object: &Object, spec: &api::Sidecar) -> Self {
        let own = &object.meta.namespace;
        let egress = spec.egress.iter().map(|listener| Egress {
            port: listener.port.as_ref().and_then(|port| u16::try_from(port.number).ok()).filter(|port| *port > 0),
            hosts: listener.hosts.iter().filter_map(|text| Pattern::new(text, own)).collect(),
        });
        Self {
            key: object.key(),
            revision,
            outbound: spec.outbound_traffic_policy.as_ref().map(|policy| match policy.mode {
                OutboundMode::AllowAny => OutboundPolicy::AllowAny,
                OutboundMode::RegistryOnly => OutboundPolicy::RegistryOnly,
            }),
            age: object.meta.age,
            selector: spec.workload_selector.as_ref().map(|selector| selector.labels.clone()).unwrap_or_default(),
            egress: egress.collect(),
        }
    }

    /// Its egress listeners; none means that it leaves everything visible.
    pub(super) fn egress(&self) -> &[Egress] {
        &self.egress
    }
}

impl Pattern {
    fn new(text: &str, own: &Arc<str>) -> Option<Self> {
        let (namespace, host) = text.split_once('/')?;
        let (excluded, namespace) = match namespace.strip_prefix('~') {
            // `~/*` means no host at all.
            Some("") => return None,
            _ => match namespace.strip_prefix('!') {
                Some("") => (true, "*"),
                Some(rest) => (true, rest),
                None => (false, namespace),
            },
        };
        let namespace = match namespace {
            "*" => None,
            "." => Some(own.clone()),
            name => Some(Arc::from(name)),
        };
        Some(Self { excluded, namespace, host: host.to_ascii_lowercase().into() })
    }

    fn is_in(&self, namespace: &str) -> bool {
        self.namespace.as_ref().is_none_or(|own| **own == *namespace)
    }
}

impl Egress {
    /// Whether a service is among the hosts.
    pub fn has_service(&self, namespace: &str, name: &str) -> bool {
        let fits = |pattern: &&Pattern| pattern.is_in(namespace) && host::covers(&pattern.host, name);
        !self.hosts.iter().filter(|one| one.excluded).any(|one| fits(&one))
            && self.hosts.iter().filter(|one| !one.excluded).any(|one| fits(&one))
    }

    /// Whether a VirtualService speaks for any of the hosts.
    pub fn has_rule(&self, rule: &VirtualService) -> bool {
        let included = self.hosts.iter().filter(|one| !one.excluded && one.is_in(rule.namespace()));
        included.into_iter().any(|pattern| {
            rule.hosts.iter().any(|name| host::covers(&pattern.host, name) || host::covers(name, &pattern.host))
        })
    }
}

/// All Sidecars.
#[derive(Clone, Debug, Default)]
pub struct Sidecars {
    by_namespace: BTreeMap<Arc<str>, Vec<Arc<Sidecar>>>,
}

impl Sidecars {
    /// Sorts `objects`, each with its revision.
    pub(super) fn new<'a>(objects: impl Iterator<Item = (u64, &'a Arc<Object>)>) -> Self {
        let mut by_namespace: BTreeMap<Arc<str>, Vec<Arc<Sidecar>>> = BTreeMap::new();
        for (revision, object) in objects {
            if let Spec::Sidecar(spec) = &object.spec {
                let one = Arc::new(Sidecar::new(revision, object, spec));
                by_namespace.entry(object.meta.namespace.clone()).or_default().push(one);
            }
        }
        for list in by_namespace.values_mut() {
            list.sort_by(|a, b| (a.age, &a.key).cmp(&(b.age, &b.key)));
        }
        Self { by_namespace }
    }

    /// One Sidecar.
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Sidecar>> {
        self.by_namespace.get(&key.namespace)?.iter().find(|one| one.key == *key)
    }

    /// The one that counts for a proxy: one of its namespace that selects it, else its namespace's own, else the root
    /// namespace's; of several the oldest. Source: Istio's Sidecar, "workloadSelector".
    pub fn find(&self, namespace: &str, labels: &Labels, root: &str) -> Option<&Arc<Sidecar>> {
        let own = || self.by_namespace.get(namespace).into_iter().flatten();
        own()
            .find(|one| !one.selector.is_empty() && api::selects(&one.selector, labels))
            .or_else(|| own().find(|one| one.selector.is_empty()))
            .or_else(|| self.by_namespace.get(root).into_iter().flatten().find(|one| one.selector.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(hosts: &[&str]) -> Egress {
        let own: Arc<str> = "shop".into();
        Egress { port: None, hosts: hosts.iter().filter_map(|text| Pattern::new(text, &own)).collect() }
    }

    #[test]
    fn hosts_are_chosen_by_namespace_and_name() {
        let listener = egress(&["./web.shop.svc.cluster.local", "pay/*", "*/*.example.com"]);
        assert!(listener.has_service("shop", "web.shop.svc.cluster.local"));
        assert!(!listener.has_service("shop", "cart.shop.svc.cluster.local"));
        assert!(listener.has_service("pay", "billing.pay.svc.cluster.local"));
        assert!(listener.has_service("any", "api.example.com"));
        assert!(!egress(&["~/*"]).has_service("shop", "web.shop.svc.cluster.local"));
    }
}

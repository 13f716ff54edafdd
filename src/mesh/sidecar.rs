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
    /// Where traffic for hosts that nobody knows goes instead of where it wants to.
    pub egress_proxy: Option<api::Destination>,
    /// Limits of what comes in.
    pub inbound_pool: Option<api::ConnectionPoolSettings>,
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
    namespace: Place,
    host: Host,
}

#[derive(Debug)]
enum Place {
    Any,
    /// The proxy's, which is not the Sidecar's where that stands in the root namespace.
    Own,
    Named(Arc<str>),
}

impl Sidecar {
    fn new(revision: u64, object: &Object, spec: &api::Sidecar) -> Self {
        let egress = spec.egress.iter().map(|listener| Egress {
            port: listener.port.as_ref().and_then(|port| u16::try_from(port.number).ok()).filter(|port| *port > 0),
            hosts: listener.hosts.iter().filter_map(|text| Pattern::new(text)).collect(),
        });
        Self {
            key: object.key(),
            revision,
            outbound: spec.outbound_traffic_policy.as_ref().map(|policy| match policy.mode {
                OutboundMode::AllowAny => OutboundPolicy::AllowAny,
                OutboundMode::RegistryOnly => OutboundPolicy::RegistryOnly,
            }),
            egress_proxy: spec.outbound_traffic_policy.as_ref().and_then(|policy| policy.egress_proxy.clone()),
            inbound_pool: spec.inbound_connection_pool.clone(),
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
    /// Reads `NAMESPACE/HOST`; with `~` before the namespace it takes hosts away, in all namespaces where none is named.
    fn new(text: &str) -> Option<Self> {
        let (namespace, host) = text.split_once('/')?;
        let (excluded, namespace) = match namespace.strip_prefix('~') {
            Some(rest) => (true, rest),
            None => (false, namespace),
        };
        let namespace = match namespace {
            "*" | "" => Place::Any,
            "." => Place::Own,
            name => Place::Named(name.into()),
        };
        Some(Self { excluded, namespace, host: host.to_ascii_lowercase().into() })
    }

    fn is_in(&self, namespace: &str, own: &str) -> bool {
        match &self.namespace {
            Place::Any => true,
            Place::Own => namespace == own,
            Place::Named(name) => **name == *namespace,
        }
    }
}

impl Egress {
    /// Whether a service is among the hosts for proxies of the namespace `own`.
    pub fn has_service(&self, namespace: &str, name: &str, own: &str) -> bool {
        self.includes(namespace, own, |host| host::covers(host, name)) && !self.excludes(namespace, name, own)
    }

    /// Whether a VirtualService speaks for any of the hosts for proxies of the namespace `own`.
    pub fn has_rule(&self, rule: &VirtualService, own: &str) -> bool {
        rule.hosts.iter().any(|name| {
            let either = |host: &str| host::covers(host, name) || host::covers(name, host);
            self.includes(rule.namespace(), own, either) && !self.excludes(rule.namespace(), name, own)
        })
    }

    fn includes(&self, namespace: &str, own: &str, fits: impl Fn(&str) -> bool) -> bool {
        self.hosts.iter().any(|one| !one.excluded && one.is_in(namespace, own) && fits(&one.host))
    }

    fn excludes(&self, namespace: &str, name: &str, own: &str) -> bool {
        self.hosts.iter().any(|one| one.excluded && one.is_in(namespace, own) && host::covers(&one.host, name))
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
    /// namespace's; of several the oldest. `has` says whether the proxy has the labels of a selector. Source: Istio's Sidecar, "workloadSelector".
    pub fn find(&self, namespace: &str, has: impl Fn(&Labels) -> bool, root: &str) -> Option<&Arc<Sidecar>> {
        let own = || self.by_namespace.get(namespace).into_iter().flatten();
        own()
            .find(|one| !one.selector.is_empty() && has(&one.selector))
            .or_else(|| own().find(|one| one.selector.is_empty()))
            .or_else(|| self.by_namespace.get(root).into_iter().flatten().find(|one| one.selector.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(hosts: &[&str]) -> Egress {
        Egress { port: None, hosts: hosts.iter().filter_map(|text| Pattern::new(text)).collect() }
    }

    #[test]
    fn hosts_are_chosen_by_namespace_and_name() {
        let listener = egress(&["./web.shop.svc.cluster.local", "pay/*", "*/*.example.com"]);
        assert!(listener.has_service("shop", "web.shop.svc.cluster.local", "shop"));
        assert!(!listener.has_service("shop", "cart.shop.svc.cluster.local", "shop"));
        assert!(listener.has_service("pay", "billing.pay.svc.cluster.local", "shop"));
        assert!(listener.has_service("any", "api.example.com", "shop"));
        assert!(!egress(&["~/*"]).has_service("shop", "web.shop.svc.cluster.local", "shop"));
    }

    #[test]
    fn own_is_the_proxys_namespace() {
        let listener = egress(&["./*"]);
        assert!(listener.has_service("shop", "web.shop.svc.cluster.local", "shop"));
        assert!(!listener.has_service("pay", "billing.pay.svc.cluster.local", "shop"));
        assert!(!listener.has_service("istio-system", "istiod.istio-system.svc.cluster.local", "shop"));
    }

    #[test]
    fn a_tilde_takes_hosts_away() {
        let listener = egress(&["*/*", "~pay/*", "~/*.example.com", "~./secret.shop.svc.cluster.local"]);
        assert!(listener.has_service("shop", "web.shop.svc.cluster.local", "shop"));
        assert!(!listener.has_service("pay", "billing.pay.svc.cluster.local", "shop"));
        assert!(!listener.has_service("any", "api.example.com", "shop"));
        assert!(!listener.has_service("shop", "secret.shop.svc.cluster.local", "shop"));
    }
}

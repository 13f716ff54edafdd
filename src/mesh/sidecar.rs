//! Sidecar objects: which hosts are visible to the proxies of some workloads.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::host::{self, Host};
use super::{OutboundPolicy, VirtualService};
use crate::api::{self, Age, Labels, Object, ObjectKey, OutboundMode, Spec};
use crate::revision::Revision;

/// A Sidecar with its hosts parsed.
#[derive(Debug)]
pub(crate) struct Sidecar {
    /// Its key.
    pub key: ObjectKey,
    /// Identifies its content.
    pub revision: Revision,
    /// What happens to traffic for unknown hosts; `None` uses the mesh-wide setting.
    pub outbound: Option<OutboundPolicy>,
    /// The destination of traffic for unknown hosts.
    pub egress_proxy: Option<api::Destination>,
    /// Limits on inbound traffic.
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
    hosts: Vec<EgressHost>,
}

#[derive(Debug)]
struct EgressHost {
    excluded: bool,
    namespace: NamespacePattern,
    host: Host,
}

#[derive(Debug)]
enum NamespacePattern {
    Any,
    /// The proxy's namespace, which differs from the Sidecar's if the Sidecar is in the root namespace.
    ProxyNamespace,
    Named(Arc<str>),
}

impl Sidecar {
    fn new(revision: Revision, object: &Object, spec: &api::Sidecar) -> Self {
        let egress = spec.egress.iter().map(|listener| Egress {
            port: listener
                .port
                .as_ref()
                .and_then(|port| u16::try_from(port.number).ok())
                .filter(|port| *port > 0),
            hosts: listener.hosts.iter().filter_map(|text| EgressHost::new(text)).collect(),
        });
        Self {
            key: object.key(),
            revision,
            outbound: spec.outbound_traffic_policy.as_ref().map(|policy| match policy.mode {
                OutboundMode::AllowAny => OutboundPolicy::AllowAny,
                OutboundMode::RegistryOnly => OutboundPolicy::RegistryOnly,
            }),
            egress_proxy: spec
                .outbound_traffic_policy
                .as_ref()
                .and_then(|policy| policy.egress_proxy.clone()),
            inbound_pool: spec.inbound_connection_pool.clone(),
            age: object.meta.age,
            selector: spec
                .workload_selector
                .as_ref()
                .map(|selector| selector.labels.clone())
                .unwrap_or_default(),
            egress: egress.collect(),
        }
    }

    /// Its egress listeners; without any, everything is visible.
    pub(super) fn egress(&self) -> &[Egress] {
        &self.egress
    }
}

impl EgressHost {
    /// Parses `NAMESPACE/HOST`. A `~` before the namespace excludes hosts; without a namespace it excludes them in all
    /// namespaces.
    fn new(text: &str) -> Option<Self> {
        let (namespace, host) = text.split_once('/')?;
        let (excluded, namespace) = match namespace.strip_prefix('~') {
            Some(rest) => (true, rest),
            None => (false, namespace),
        };
        let namespace = match namespace {
            "*" | "" => NamespacePattern::Any,
            "." => NamespacePattern::ProxyNamespace,
            name => NamespacePattern::Named(name.into()),
        };
        Some(Self { excluded, namespace, host: host.to_ascii_lowercase().into() })
    }

    fn is_in(&self, namespace: &str, own: &str) -> bool {
        match &self.namespace {
            NamespacePattern::Any => true,
            NamespacePattern::ProxyNamespace => namespace == own,
            NamespacePattern::Named(name) => **name == *namespace,
        }
    }
}

impl Egress {
    /// Whether a service is among the hosts for proxies in namespace `own`.
    pub(crate) fn has_service(&self, namespace: &str, name: &str, own: &str) -> bool {
        self.includes(namespace, own, |host| host::covers(host, name))
            && !self.excludes(namespace, name, own)
    }

    /// Whether a VirtualService applies to any of the hosts for proxies in namespace `own`.
    pub(crate) fn has_rule(&self, rule: &VirtualService, own: &str) -> bool {
        rule.hosts.iter().any(|name| {
            self.includes(rule.namespace(), own, |host| {
                host::covers(host, name) || host::covers(name, host)
            }) && !self.excludes(rule.namespace(), name, own)
        })
    }

    fn includes(&self, namespace: &str, own: &str, fits: impl Fn(&str) -> bool) -> bool {
        self.hosts
            .iter()
            .any(|host| !host.excluded && host.is_in(namespace, own) && fits(&host.host))
    }

    fn excludes(&self, namespace: &str, name: &str, own: &str) -> bool {
        self.hosts.iter().any(|host| {
            host.excluded && host.is_in(namespace, own) && host::covers(&host.host, name)
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
    pub(super) fn new<'a>(objects: impl Iterator<Item = (Revision, &'a Arc<Object>)>) -> Self {
        let mut by_namespace: BTreeMap<Arc<str>, Vec<Arc<Sidecar>>> = BTreeMap::new();
        for (revision, object) in objects {
            if let Spec::Sidecar(spec) = &object.spec {
                let sidecar = Arc::new(Sidecar::new(revision, object, spec));
                by_namespace.entry(object.meta.namespace.clone()).or_default().push(sidecar);
            }
        }
        for list in by_namespace.values_mut() {
            list.sort_by(|a, b| (a.age, &a.key).cmp(&(b.age, &b.key)));
        }
        Self { by_namespace }
    }

    /// A Sidecar by key.
    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&Arc<Sidecar>> {
        self.by_namespace.get(&key.namespace)?.iter().find(|sidecar| sidecar.key == *key)
    }

    /// The Sidecar that applies to a proxy: one of its namespace that selects it, else one of its namespace without a
    /// selector, else one of the root namespace without a selector; the oldest if there are several. `has` says whether
    /// the proxy has the labels of a selector. Source: Istio's Sidecar, "workloadSelector".
    pub(crate) fn find(
        &self,
        namespace: &str,
        has: impl Fn(&Labels) -> bool,
        root: &str,
    ) -> Option<&Arc<Sidecar>> {
        let own = self.of_namespace(namespace);
        own.iter().find(|sidecar| !sidecar.selector.is_empty() && has(&sidecar.selector)).or_else(
            || {
                let mut candidates = own.iter().chain(self.of_namespace(root));
                candidates.find(|sidecar| sidecar.selector.is_empty())
            },
        )
    }

    /// Those of a namespace, the oldest first.
    fn of_namespace(&self, namespace: &str) -> &[Arc<Sidecar>] {
        self.by_namespace.get(namespace).map(Vec::as_slice).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(hosts: &[&str]) -> Egress {
        Egress {
            port: None,
            hosts: hosts.iter().filter_map(|text| EgressHost::new(text)).collect(),
        }
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
    fn a_dot_means_the_proxys_namespace() {
        let listener = egress(&["./*"]);
        assert!(listener.has_service("shop", "web.shop.svc.cluster.local", "shop"));
        assert!(!listener.has_service("pay", "billing.pay.svc.cluster.local", "shop"));
        assert!(!listener.has_service(
            "istio-system",
            "istiod.istio-system.svc.cluster.local",
            "shop"
        ));
    }

    #[test]
    fn a_tilde_excludes_hosts() {
        let listener =
            egress(&["*/*", "~pay/*", "~/*.example.com", "~./secret.shop.svc.cluster.local"]);
        assert!(listener.has_service("shop", "web.shop.svc.cluster.local", "shop"));
        assert!(!listener.has_service("pay", "billing.pay.svc.cluster.local", "shop"));
        assert!(!listener.has_service("any", "api.example.com", "shop"));
        assert!(!listener.has_service("shop", "secret.shop.svc.cluster.local", "shop"));
    }
}

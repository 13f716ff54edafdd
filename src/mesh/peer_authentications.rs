//! PeerAuthentications: which connections the proxies of a workload accept.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::{Age, Labels, MutualTlsMode, Object, ObjectKey, Spec, selects};

/// Which connections a port accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Accepts {
    /// Plain text; TLS goes to the application as it is.
    PlainText,
    /// Mutual TLS and plain text.
    #[default]
    Both,
    /// Only mutual TLS.
    MutualTls,
}

impl Accepts {
    fn of(mode: MutualTlsMode) -> Option<Self> {
        match mode {
            MutualTlsMode::Unset => None,
            MutualTlsMode::Disable => Some(Self::PlainText),
            MutualTlsMode::Permissive => Some(Self::Both),
            MutualTlsMode::Strict => Some(Self::MutualTls),
        }
    }
}

/// What the ports of a workload accept, and which objects say so.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerPolicy {
    /// Ports that have no setting of their own.
    pub default: Accepts,
    /// Ports that have one, by number.
    pub ports: BTreeMap<u16, Accepts>,
    /// The objects that decide, in order of precedence.
    pub objects: Vec<ObjectKey>,
}

impl PeerPolicy {
    /// What a port of the workload accepts.
    pub(crate) fn at(&self, port: u16) -> Accepts {
        self.ports.get(&port).copied().unwrap_or(self.default)
    }
}

/// A PeerAuthentication.
#[derive(Debug)]
struct Policy {
    key: ObjectKey,
    age: Age,
    selector: Labels,
    mode: Option<Accepts>,
    /// `None` for ports as the rest of the workload.
    ports: BTreeMap<u16, Option<Accepts>>,
}

/// All PeerAuthentications.
#[derive(Clone, Debug, Default)]
pub struct PeerAuthentications {
    /// Those of each namespace, the oldest first.
    by_namespace: BTreeMap<Arc<str>, Vec<Arc<Policy>>>,
}

impl PeerAuthentications {
    pub(super) fn new<'a>(objects: impl Iterator<Item = &'a Arc<Object>>) -> Self {
        let mut by_namespace: BTreeMap<Arc<str>, Vec<Arc<Policy>>> = BTreeMap::new();
        for object in objects {
            let Spec::PeerAuthentication(spec) = &object.spec else {
                continue;
            };
            let selector = spec.labels();
            // Ports are those of a workload.
            let ports = spec.port_level_mtls.iter().filter(|_| !selector.is_empty());
            let ports = ports.filter_map(|(port, mtls)| {
                let port = port.parse().ok().filter(|port| *port > 0)?;
                Some((port, Accepts::of(mtls.mode)))
            });
            let policy = Policy {
                key: object.key(),
                age: object.meta.age,
                mode: spec.mtls.as_ref().and_then(|mtls| Accepts::of(mtls.mode)),
                ports: ports.collect(),
                selector,
            };
            by_namespace.entry(object.meta.namespace.clone()).or_default().push(Arc::new(policy));
        }
        for list in by_namespace.values_mut() {
            list.sort_by(|a, b| (a.age, &a.key).cmp(&(b.age, &b.key)));
        }
        Self { by_namespace }
    }

    /// What the ports of a workload with these labels accept. The policy that selects the workload comes before that of
    /// its namespace, and that before the one of the root namespace; of several for the same the oldest counts. Source:
    /// Istio's documentation of PeerAuthentication.
    pub(crate) fn of_workload(&self, namespace: &str, labels: &Labels, root: &str) -> PeerPolicy {
        if self.by_namespace.is_empty() {
            return PeerPolicy::default();
        }
        let own = self.of_namespace(namespace).iter();
        let is_for_all = |policy: &&Arc<Policy>| policy.selector.is_empty();
        let workload = self.that_select(namespace, labels, root).next();
        let of_namespace = own.clone().filter(|_| namespace != root).find(is_for_all);
        let of_mesh = self.of_namespace(root).iter().find(is_for_all);
        let chain: Vec<&Arc<Policy>> =
            [workload, of_namespace, of_mesh].into_iter().flatten().collect();
        let decides = chain.iter().position(|policy| policy.mode.is_some());
        let default = decides.and_then(|at| chain.get(at)?.mode).unwrap_or_default();
        let ports = workload.map(|policy| &policy.ports).into_iter().flatten();
        let ports: BTreeMap<u16, Accepts> = ports
            .map(|(port, accepts)| (*port, accepts.unwrap_or(default)))
            .filter(|(_, accepts)| *accepts != default)
            .collect();
        let objects = chain.iter().enumerate().filter(|(at, policy)| {
            Some(*at) == decides || (!ports.is_empty() && !policy.ports.is_empty())
        });
        let objects = objects.map(|(_, policy)| policy.key.clone()).collect();
        PeerPolicy { default, ports, objects }
    }

    /// The policies whose selectors select a workload with these labels, in order of precedence: only the first counts.
    pub(crate) fn selecting<'a>(
        &'a self,
        namespace: &str,
        labels: &'a Labels,
        root: &str,
    ) -> impl Iterator<Item = &'a ObjectKey> + use<'a> {
        self.that_select(namespace, labels, root).map(|policy| &policy.key)
    }

    fn that_select<'a>(
        &'a self,
        namespace: &str,
        labels: &'a Labels,
        root: &str,
    ) -> impl Iterator<Item = &'a Arc<Policy>> + use<'a> {
        // In the root namespace there are no policies for single workloads.
        let own = if namespace == root { &[] } else { self.of_namespace(namespace) };
        let own = own.iter().filter(|policy| !policy.selector.is_empty());
        own.filter(move |policy| selects(&policy.selector, labels))
    }

    fn of_namespace(&self, namespace: &str) -> &[Arc<Policy>] {
        self.by_namespace.get(namespace).map(Vec::as_slice).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api;

    const ROOT: &str = "istio-system";

    fn policies(list: &[(&str, &str, Value)]) -> PeerAuthentications {
        let objects = list.iter().enumerate().map(|(order, (namespace, name, spec))| {
            let document = json!({
                "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
                "metadata": {"name": name, "namespace": namespace}, "spec": spec,
            });
            let api::Identity::Known(key) = api::identify(&document).unwrap() else {
                panic!("the kind is not read");
            };
            Arc::new(api::parse(&key, document, order as u64).unwrap().object)
        });
        let objects: Vec<_> = objects.collect();
        PeerAuthentications::new(objects.iter())
    }

    fn mode(mode: &str) -> Value {
        json!({"mtls": {"mode": mode}})
    }

    fn for_web(mode: &str, ports: Value) -> Value {
        let selector = json!({"matchLabels": {"app": "web"}});
        json!({"selector": selector, "mtls": {"mode": mode}, "portLevelMtls": ports})
    }

    fn web(all: &PeerAuthentications) -> PeerPolicy {
        all.of_workload("shop", &Labels::from([("app".into(), "web".into())]), ROOT)
    }

    fn names(policy: &PeerPolicy) -> Vec<&str> {
        policy.objects.iter().map(|key| &*key.name).collect()
    }

    #[test]
    fn without_a_policy_both_are_accepted() {
        assert_eq!(web(&policies(&[])), PeerPolicy::default());
        assert_eq!(web(&policies(&[("pay", "a", mode("STRICT"))])).default, Accepts::Both);
    }

    #[test]
    fn the_narrower_policy_counts_and_unset_is_inherited() {
        let all = policies(&[
            (ROOT, "mesh", mode("STRICT")),
            ("shop", "shop", mode("UNSET")),
            ("shop", "web", for_web("UNSET", json!({}))),
        ]);
        assert_eq!((web(&all).default, names(&web(&all))), (Accepts::MutualTls, vec!["mesh"]));
        let all = policies(&[
            (ROOT, "mesh", mode("STRICT")),
            ("shop", "shop", mode("DISABLE")),
            ("shop", "web", for_web("PERMISSIVE", json!({}))),
        ]);
        assert_eq!((web(&all).default, names(&web(&all))), (Accepts::Both, vec!["web"]));
        let other = all.of_workload("shop", &Labels::new(), ROOT);
        assert_eq!((other.default, names(&other)), (Accepts::PlainText, vec!["shop"]));
        assert_eq!(all.of_workload("pay", &Labels::new(), ROOT).default, Accepts::MutualTls);
    }

    #[test]
    fn ports_have_modes_of_their_own() {
        let ports = json!({"80": {"mode": "DISABLE"}, "81": {"mode": "UNSET"}, "82": {"mode": "STRICT"}, "0": {"mode": "DISABLE"}, "http": {"mode": "DISABLE"}});
        let all =
            policies(&[("shop", "web", for_web("UNSET", ports)), (ROOT, "m", mode("STRICT"))]);
        let found = web(&all);
        let at = [80, 81, 82, 83].map(|port| found.at(port));
        let strict = Accepts::MutualTls;
        assert_eq!(at, [Accepts::PlainText, strict, strict, strict]);
        assert_eq!(names(&found), ["web", "m"]);
        assert_eq!(found.ports, [(80, Accepts::PlainText)].into());
    }

    #[test]
    fn of_several_for_the_same_the_oldest_counts() {
        let all = policies(&[("shop", "b", mode("STRICT")), ("shop", "a", mode("DISABLE"))]);
        assert_eq!((web(&all).default, names(&web(&all))), (Accepts::MutualTls, vec!["b"]));
    }

    #[test]
    fn in_the_root_namespace_no_policy_is_for_single_workloads() {
        let all = policies(&[(ROOT, "web", for_web("STRICT", json!({})))]);
        let labels = Labels::from([("app".into(), "web".into())]);
        assert_eq!(all.of_workload(ROOT, &labels, ROOT), PeerPolicy::default());
        assert_eq!(web(&all), PeerPolicy::default());
    }
}

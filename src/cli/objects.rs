//! Loads objects from files for one-shot commands and prints their problems to standard error.

use std::collections::BTreeSet;
use std::path::Path;

use super::usage;
use crate::api;
use crate::mesh::{
    Certificates, Locality, Mesh, MeshBuilder, MeshConfig, NodeMetadata, Proxy, TLS_MODE,
    TLS_MODE_ISTIO,
};
use crate::rollout_guard::{HeldChange, RolloutGuard};
use crate::source;
use crate::store::Store;

/// Objects and the mesh built from them.
#[derive(Debug)]
pub struct Objects {
    /// The objects.
    pub store: Store,
    /// The effective mesh of a `weir serve` started with these objects.
    pub mesh: Mesh,
    /// The changes that are held back.
    pub held: Vec<HeldChange>,
    /// The number of problems, without warnings.
    pub problems: usize,
}

impl Objects {
    /// Reads a file or folder.
    ///
    /// # Errors
    /// It cannot be read at all.
    pub fn load(path: &Path, config: MeshConfig) -> anyhow::Result<Self> {
        let (mut store, mut dirty) = (Store::default(), BTreeSet::new());
        let changes = source::directory::load_revision(path, config.revision.clone())
            .map_err(|error| usage(error.to_string()))?;
        for change in changes {
            store.apply(change, &mut dirty);
        }
        let mut problems = 0;
        for (key, list) in store.rejected() {
            list.iter().for_each(|item| eprintln!("{}: {key}: {}", item.origin, item.problem));
            problems += list.len();
        }
        for (_, list) in store.source_problems() {
            list.iter().for_each(|item| eprintln!("{item}"));
            problems += list.len();
        }
        for (key, list) in store.warnings() {
            list.iter()
                .for_each(|item| eprintln!("{}: {key}: warning: {}", item.origin, item.problem));
        }
        let wanted = MeshBuilder::new(config).update(&store, &dirty);
        let (mesh, held) = RolloutGuard::default().apply(wanted);
        Ok(Self { store, mesh, held, problems })
    }

    /// The proxy of a pod, `NAMESPACE/POD`; if `known`, the pod must be among the objects.
    ///
    /// # Errors
    /// The name is malformed or the pod does not exist.
    pub fn proxy(&self, name: &str, known: bool) -> anyhow::Result<Proxy> {
        let Some((namespace, pod)) = name
            .split_once('/')
            .filter(|(namespace, pod)| !namespace.is_empty() && !pod.is_empty())
        else {
            return Err(usage(format!("`{name}`: expected NAMESPACE/POD")));
        };
        let key = api::ObjectKey::new(api::Kind::Pod, namespace, pod);
        let object = self.store.get(&key).map(|entry| &entry.object);
        if object.is_none() && known {
            anyhow::bail!("{key} is not among the objects");
        }
        let mut addresses = match object.map(|object| &object.spec) {
            Some(api::Spec::Pod(pod)) => pod.ips.clone(),
            _ => Vec::new(),
        };
        if addresses.is_empty() {
            addresses = self.pod_addresses(namespace, pod);
        }
        let address = addresses.first().map_or("127.0.0.1", String::as_str);
        let id = format!(
            "sidecar~{address}~{pod}.{namespace}~{namespace}.svc.{}",
            self.mesh.config.domain
        );
        let labels = object.map(|object| (*object.meta.labels).clone()).unwrap_or_default();
        let metadata = NodeMetadata { labels, instance_ips: addresses, ..Default::default() };
        let certificates = match metadata.labels.get(TLS_MODE) {
            Some(mode) if mode == TLS_MODE_ISTIO => Certificates::Ads,
            _ if self.mesh.config.identities => Certificates::Ads,
            _ => Certificates::None,
        };
        Ok(Proxy { certificates, ..Proxy::new(&id, metadata, Locality::default())? })
    }

    /// Whether a pod, `NAMESPACE/POD`, is among the objects.
    pub(crate) fn has_pod(&self, name: &str) -> bool {
        let parts = name.split_once('/');
        parts.is_some_and(|(ns, pod)| {
            self.store.get(&api::ObjectKey::new(api::Kind::Pod, ns, pod)).is_some()
        })
    }

    /// A pod's addresses according to its EndpointSlices: the first of each family, IPv4 first.
    fn pod_addresses(&self, namespace: &str, pod: &str) -> Vec<String> {
        let slices = self
            .store
            .all(api::Kind::EndpointSlice)
            .filter(|entry| *entry.object.meta.namespace == *namespace);
        let endpoints = slices.flat_map(|entry| match &entry.object.spec {
            api::Spec::EndpointSlice(slice) => slice.endpoints.as_slice(),
            _ => &[],
        });
        let own = endpoints.filter(|endpoint| {
            endpoint
                .target_ref
                .as_ref()
                .is_some_and(|target| target.kind == "Pod" && target.name == pod)
        });
        let addresses: Vec<&String> =
            own.filter_map(|endpoint| endpoint.addresses.first()).collect();
        let families = [false, true].into_iter();
        families
            .filter_map(|v6| addresses.iter().find(|address| address.contains(':') == v6))
            .map(|address| (*address).clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(objects: &str, pod: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("objects.yaml");
        std::fs::write(&file, objects).unwrap();
        let objects = Objects::load(&file, MeshConfig::default()).unwrap();
        let proxy = objects.proxy(pod, false).unwrap();
        assert_eq!(proxy.id.split('~').nth(1), Some(&*proxy.addresses[0]));
        proxy.addresses.iter().map(ToString::to_string).collect()
    }

    fn pod(status: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web-0, namespace: shop}}\nstatus: {{{status}}}\n"
        )
    }

    fn slice(name: &str, family: &str, address: &str) -> String {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
             addressType: {family}\n\
             endpoints: [{{addresses: ['{address}'], targetRef: {{kind: Pod, name: web-0}}}}]\n"
        )
    }

    #[test]
    fn a_proxy_has_all_addresses_of_its_pod() {
        let slices = slice("a", "IPv6", "fd00:1::1")
            + &slice("b", "IPv4", "10.1.1.1")
            + &slice("c", "IPv4", "10.1.1.1");
        for (status, slices, expected) in [
            ("", "", &["127.0.0.1"][..]),
            ("podIP: 10.1.7.1", "", &["10.1.7.1"]),
            (
                "podIP: 10.1.7.1, podIPs: [{ip: 10.1.7.1}, {ip: 'fd00:7::1'}]",
                "",
                &["10.1.7.1", "fd00:7::1"],
            ),
            (
                "podIP: 'fd00:7::1', podIPs: [{ip: 'fd00:7::1'}, {ip: 10.1.7.1}]",
                "",
                &["fd00:7::1", "10.1.7.1"],
            ),
            ("podIPs: [{ip: 10.1.7.1}, {ip: 'fd00:7::1'}, {}]", "", &["10.1.7.1", "fd00:7::1"]),
            ("podIP: 10.1.7.1", slices.as_str(), &["10.1.7.1"]),
            ("", slices.as_str(), &["10.1.1.1", "fd00:1::1"]),
        ] {
            assert_eq!(
                addresses(&format!("{}{slices}", pod(status)), "shop/web-0"),
                expected,
                "{status}"
            );
        }
    }
}

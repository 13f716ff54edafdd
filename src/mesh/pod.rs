//! The proxy of a pod that is known from objects alone, without a connection.

use super::{
    Certificates, Locality, MeshConfig, NodeMetadata, Proxy, ProxyError, TLS_MODE, TLS_MODE_ISTIO,
};
use crate::api::{Kind, ObjectKey, Spec};
use crate::store::Store;

/// The namespace and the name in `NAMESPACE/POD`.
///
/// # Errors
/// What is expected instead.
pub(crate) fn pod_name(name: &str) -> Result<(&str, &str), String> {
    let parts = name.split_once('/').filter(|(ns, pod)| !ns.is_empty() && !pod.is_empty());
    parts.ok_or_else(|| format!("`{name}`: expected NAMESPACE/POD"))
}

/// The proxy of a pod. A pod that is not among the objects has no labels, and its addresses are those of its
/// EndpointSlices, or 127.0.0.1.
///
/// # Errors
/// No node id can have this name or address.
pub(crate) fn proxy_of_pod(
    store: &Store,
    config: &MeshConfig,
    namespace: &str,
    pod: &str,
) -> Result<Proxy, ProxyError> {
    let entry = store.get(&ObjectKey::new(Kind::Pod, namespace, pod));
    let object = entry.map(|entry| &entry.object);
    let mut addresses = match object.map(|object| &object.spec) {
        Some(Spec::Pod(pod)) => pod.ips.clone(),
        _ => Vec::new(),
    };
    if addresses.is_empty() {
        addresses = addresses_in_slices(store, namespace, pod);
    }
    let address = addresses.first().map_or("127.0.0.1", String::as_str);
    let id = format!("sidecar~{address}~{pod}.{namespace}~{namespace}.svc.{}", config.domain);
    let labels = object.map(|object| (*object.meta.labels).clone()).unwrap_or_default();
    let metadata = NodeMetadata { labels, instance_ips: addresses, ..Default::default() };
    let certificates = match metadata.labels.get(TLS_MODE) {
        Some(mode) if mode == TLS_MODE_ISTIO => Certificates::Ads,
        _ if config.identities => Certificates::Ads,
        _ => Certificates::None,
    };
    Ok(Proxy { certificates, ..Proxy::new(&id, metadata, Locality::default())? })
}

/// A pod's addresses according to its EndpointSlices: the first of each family, IPv4 first.
fn addresses_in_slices(store: &Store, namespace: &str, pod: &str) -> Vec<String> {
    let slices =
        store.all(Kind::EndpointSlice).filter(|entry| *entry.object.meta.namespace == *namespace);
    let endpoints = slices.flat_map(|entry| match &entry.object.spec {
        Spec::EndpointSlice(slice) => slice.endpoints.as_slice(),
        _ => &[],
    });
    let own = endpoints.filter(|endpoint| {
        endpoint
            .target_ref
            .as_ref()
            .is_some_and(|target| target.kind == "Pod" && target.name == pod)
    });
    let addresses: Vec<&String> = own.filter_map(|endpoint| endpoint.addresses.first()).collect();
    let families = [false, true].into_iter();
    families
        .filter_map(|v6| addresses.iter().find(|address| address.contains(':') == v6))
        .map(|address| (*address).clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(objects: &str, pod: &str) -> Vec<String> {
        let (namespace, pod) = pod_name(pod).unwrap();
        let store = crate::analyze::tests::store(objects);
        let proxy = proxy_of_pod(&store, &MeshConfig::default(), namespace, pod).unwrap();
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

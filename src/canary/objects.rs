//! The objects of a canary: the service `my-app` with the subsets `v1` and `v2`.

use std::fmt::Write as _;

/// The namespace where none is asked for.
pub const NAMESPACE: &str = "shop";

/// The ports of the service and of its backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// What clients connect to.
    pub service: u16,
    /// What backends listen on.
    pub backend: u16,
}

/// Backends of a version: three, on 127.0.VERSION.1 to 3.
pub(crate) fn addresses(version: u8) -> [String; 3] {
    [1, 2, 3].map(|n| format!("127.0.{version}.{n}"))
}

/// The fully qualified host of the service.
pub(crate) fn host(namespace: &str) -> String {
    format!("my-app.{namespace}.svc.cluster.local")
}

/// The Service.
pub fn service(namespace: &str, ports: Ports) -> String {
    let Ports { service, backend } = ports;
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: my-app, namespace: {namespace}}}\nspec:\n  clusterIP: \
         10.96.0.10\n  selector: {{app: my-app}}\n  ports: [{{name: http, port: {service}, targetPort: {backend}}}]\n"
    )
}

/// The EndpointSlice with the backends of these versions, and their pods.
pub fn endpoints(namespace: &str, ports: Ports, versions: &[u8]) -> String {
    let all: Vec<(u8, usize, String)> = versions
        .iter()
        .flat_map(|version| {
            (1..).zip(addresses(*version)).map(|(n, address)| (*version, n, address))
        })
        .collect();
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: my-app-1, namespace: {namespace}, labels: \
         {{kubernetes.io/service-name: my-app}}}}\naddressType: IPv4\nendpoints:\n"
    );
    // Writing to a String cannot fail.
    for (version, n, address) in &all {
        let _ = writeln!(
            text,
            "- {{addresses: [{address}], conditions: {{ready: true}}, \
             targetRef: {{kind: Pod, name: my-app-v{version}-{n}}}}}"
        );
    }
    let _ = writeln!(text, "ports: [{{name: http, port: {}, protocol: TCP}}]", ports.backend);
    for (version, n, _) in &all {
        let _ = writeln!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: my-app-v{version}-{n}, namespace: {namespace}, labels: \
             {{app: my-app, version: v{version}}}}}"
        );
    }
    text
}

/// A ServiceEntry for the service with the backends of these versions. A Kubernetes API refuses addresses of loopback in
/// an EndpointSlice, and accepts them here.
pub fn service_entry(namespace: &str, ports: Ports, versions: &[u8]) -> String {
    let Ports { service, backend } = ports;
    let mut text = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: my-app, namespace: {namespace}}}\nspec:\n  \
         hosts: [{}]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  ports: [{{name: http, number: {service}, \
         protocol: HTTP, targetPort: {backend}}}]\n  endpoints:\n",
        host(namespace)
    );
    for version in versions {
        for address in addresses(*version) {
            let _ = writeln!(
                text,
                "  - {{address: {address}, labels: {{app: my-app, version: v{version}}}}}"
            );
        }
    }
    text
}

/// The DestinationRule with these subsets, each of which selects the version after it.
pub fn rule(namespace: &str, subsets: &[(&str, &str)]) -> String {
    let subsets: Vec<String> = subsets
        .iter()
        .map(|(name, version)| format!("{{name: {name}, labels: {{version: {version}}}}}"))
        .collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: my-app, namespace: {namespace}}}\n\
         spec:\n  host: my-app\n  subsets: [{}]\n",
        subsets.join(", ")
    )
}

/// The VirtualService with these weights of subsets.
pub fn route(namespace: &str, weights: &[(&str, u32)]) -> String {
    let mut text = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: my-app, namespace: {namespace}}}\n\
         spec:\n  hosts: [my-app]\n  http:\n  - route:\n"
    );
    for (subset, weight) in weights {
        let _ = writeln!(
            text,
            "    - {{destination: {{host: my-app, subset: {subset}}}, weight: {weight}}}"
        );
    }
    text
}

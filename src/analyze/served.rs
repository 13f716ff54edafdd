//! The ports on which sidecars route VirtualService hosts that are not services, derived from the actual sidecar
//! configuration.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::index::{Index, IndexedVirtualService, is_name};
use super::{Findings, all_of, any_of, code};
use crate::api::Labels;
use crate::mesh::{Locality, Mesh, NodeMetadata, Proxy, Scope, Visibility};
use crate::snapshot::{ResourceType, SnapshotBuilder};

/// The ports on which each name is answered.
type Ports = HashMap<String, BTreeSet<u16>>;

/// The configuration of sidecars, computed on demand.
pub(super) struct Served<'a> {
    mesh: &'a Mesh,
    snapshot_builder: SnapshotBuilder,
    by_scope: BTreeMap<Scope, Ports>,
}

impl<'a> Served<'a> {
    pub(crate) fn new(mesh: &'a Mesh) -> Self {
        Self { mesh, snapshot_builder: SnapshotBuilder::default(), by_scope: BTreeMap::new() }
    }

    /// The ports on which sidecars with these labels in `namespace` have routes for `host`.
    fn ports(&mut self, namespace: &str, labels: &Labels, host: &str) -> BTreeSet<u16> {
        let id = format!(
            "sidecar~127.0.0.1~analyze.{namespace}~{namespace}.svc.{}",
            self.mesh.config.domain
        );
        let metadata = NodeMetadata { labels: labels.clone(), ..NodeMetadata::default() };
        let Ok(proxy) = Proxy::new(&id, metadata, Locality::default()) else {
            return BTreeSet::new();
        };
        let (mesh, snapshot_builder, scope) =
            (self.mesh, &mut self.snapshot_builder, self.mesh.scope(&proxy));
        let ports = self.by_scope.entry(scope).or_insert_with_key(|scope| {
            let mut ports = Ports::new();
            for routes in snapshot_builder.snapshot(mesh, scope).get(ResourceType::Route).values() {
                let Ok(port) = routes.name.parse::<u16>() else {
                    continue;
                };
                for domain in routes
                    .table()
                    .into_iter()
                    .flat_map(|table| table.iter())
                    .flat_map(|host| host.domains.iter())
                {
                    ports.entry(domain.to_ascii_lowercase()).or_default().insert(port);
                }
            }
            ports
        });
        ports.get(host).cloned().unwrap_or_default()
    }
}

pub(super) fn check(
    virtual_service: &IndexedVirtualService<'_>,
    index: &Index<'_>,
    served: &mut Served<'_>,
    found: &mut Findings,
) {
    if !virtual_service.is_for_mesh() {
        return;
    }
    for (n, host) in virtual_service.hosts.iter().enumerate() {
        if !is_name(host) || index.is_known(host) || index.is_rejected_host(host) {
            continue;
        }
        let mut ports = BTreeSet::new();
        for namespace in clients(virtual_service) {
            for labels in client_labels(virtual_service) {
                ports.extend(served.ports(&namespace, labels, host));
            }
        }
        let path = format!("spec.hosts[{n}]");
        let spelling = match index.similar(host).as_slice() {
            [] => None,
            similar => {
                Some(format!("check its spelling and namespace; known hosts: {}", any_of(similar)))
            }
        };
        let numbers: Vec<_> = ports.iter().map(ToString::to_string).collect();
        if numbers.is_empty() {
            let message = format!(
                "`{host}` is not a known service, and no port has routes for it: no request gets \
                here"
            );
            let advice =
                spelling.unwrap_or_else(|| "add a Service or ServiceEntry for it".to_owned());
            found.add(&code::NO_EFFECT, virtual_service.entry, path, message, advice);
        } else {
            let (noun, intended) = match numbers.len() {
                1 => ("port", "this port is intended"),
                _ => ("the ports", "these ports are intended"),
            };
            let message = format!(
                "`{host}` is not a known service: requests to it are routed on {noun} {}",
                all_of(&numbers)
            );
            let advice = spelling.unwrap_or_else(|| {
                format!("add a Service or ServiceEntry for it, unless {intended}")
            });
            found.add(&code::UNKNOWN_HOST, virtual_service.entry, path, message, advice);
        }
    }
}

/// The namespaces whose clients may use it: its own, unless it is not exported there, and those that it names.
fn clients(virtual_service: &IndexedVirtualService<'_>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    match &virtual_service.visibility {
        Visibility::Public => {
            found.insert(virtual_service.namespace().to_string());
        }
        Visibility::Namespaces(names) => found.extend(names.iter().map(ToString::to_string)),
    }
    let named = virtual_service
        .spec
        .http
        .iter()
        .flat_map(|route| &route.matches)
        .map(|matched| &matched.source_namespace);
    found.extend(
        named.filter(|name| !name.is_empty() && virtual_service.visibility.includes(name)).cloned(),
    );
    found
}

/// The sets of client labels in its matches, and an empty set for all other clients.
fn client_labels<'a>(
    virtual_service: &'a IndexedVirtualService<'_>,
) -> impl Iterator<Item = &'a Labels> {
    static NONE: Labels = Labels::new();
    let matches = virtual_service.spec.http.iter().flat_map(|route| &route.matches);
    std::iter::once(&NONE)
        .chain(matches.map(|matched| &matched.source_labels).filter(|labels| !labels.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::super::analyze;
    use super::super::tests::{found_in_virtual_service as spec, store};
    use crate::mesh::MeshConfig;

    /// The findings about the hosts of a VirtualService in `shop`, besides a Service `api` with these ports.
    fn said(ports: &str, fields: &str) -> Vec<(&'static str, String)> {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: api, namespace: shop}}\n\
             spec: {{clusterIP: 10.0.0.9, ports: [{ports}]}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: shop}}\n\
             spec: {{{fields}}}\n"
        );
        let findings = analyze(&store(&text), &MeshConfig::default());
        let of_hosts =
            findings.into_iter().filter(|finding| finding.path.starts_with("spec.hosts"));
        of_hosts.map(|item| (item.code.id, item.message)).collect()
    }

    const TO: &str = "route: [{destination: {host: api, port: {number: 8080}}}]";

    fn routed(on: &str) -> Vec<(&'static str, String)> {
        vec![(
            "WEIR0110",
            format!("`shop.example` is not a known service: requests to it are routed on {on}"),
        )]
    }

    fn for_hosts(names: &str) -> String {
        format!("hosts: [{names}], http: [{{{TO}}}]")
    }

    fn matching(fields: &str) -> String {
        format!("hosts: [api, shop.example], http: [{{match: [{{{fields}}}], {TO}}}]")
    }

    #[test]
    fn a_host_without_a_service_is_reported_with_the_ports_that_route_it() {
        let nowhere = vec![(
            "WEIR0203",
            "`shop.example` is not a known service, and no port has routes for it: no request gets here".to_owned(),
        )];
        let (http, with_80) = (
            "{name: http, port: 8080}, {name: grpc, port: 9090}",
            "{name: http-a, port: 80}, {name: http, port: 8080}",
        );
        assert_eq!(said(http, &for_hosts("api, shop.example")), routed("the ports 8080 and 9090"));
        assert_eq!(said(http, &for_hosts("shop.example")), nowhere, "no service has port 80");
        assert_eq!(said(with_80, &for_hosts("shop.example")), routed("port 80"));
        assert_eq!(said(with_80, &for_hosts("api, Shop.Example")), routed("the ports 80 and 8080"));
        assert_eq!(said(with_80, &matching("port: 8080")), routed("port 8080"));
        assert_eq!(
            said(with_80, &matching("sourceLabels: {app: x}")),
            routed("the ports 80 and 8080")
        );
        assert_eq!(
            said(with_80, &matching("sourceNamespace: pay")),
            routed("the ports 80 and 8080")
        );
        let tls = "hosts: [shop.example], tls: [{match: [{sniHosts: [shop.example]}], route: [{destination: {host: api, port: {number: 80}}}]}]";
        assert_eq!(said(with_80, tls), nowhere);
        assert_eq!(
            said(with_80, &format!("exportTo: [pay], {}", for_hosts("shop.example"))),
            routed("port 80")
        );
    }

    #[test]
    fn wildcards_addresses_and_gateway_hosts_are_not_checked() {
        let to = "http: [{route: [{destination: {host: web}}]}]";
        assert_eq!(spec(&format!("hosts: [nobody], {to}")), [("WEIR0110", "spec.hosts[0]".into())]);
        assert_eq!(
            spec(&format!("hosts: [nobody], gateways: [gw], {to}")),
            [("WEIR0201", "spec.gateways".into())]
        );
        assert_eq!(spec(&format!("hosts: [10.0.0.77], {to}")), []);
    }
}

//! The effect of workloads' locations on the endpoints, clusters and routes of proxies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::mesh::{Families, Locality, Mesh, MeshBuilder, MeshConfig, NodeMetadata, Proxy};
use crate::snapshot::{ResourceType, Snapshot, SnapshotBuilder};
use crate::source::loader::{Content, Loader};
use crate::store::Store;

/// Files that change, the resulting mesh, and the previous results.
struct World {
    loader: Loader,
    store: Store,
    builder: MeshBuilder,
    snapshot_builder: SnapshotBuilder,
}

impl World {
    fn new() -> Self {
        Self {
            loader: Loader::new(),
            store: Store::default(),
            builder: MeshBuilder::new(MeshConfig::default()),
            snapshot_builder: SnapshotBuilder::default(),
        }
    }

    fn write(&mut self, file: &str, text: &str) -> Mesh {
        let mut dirty = BTreeSet::new();
        for change in
            self.loader.update([(PathBuf::from(file), Content::Bytes(text.as_bytes().to_vec()))])
        {
            self.store.apply(change, &mut dirty);
        }
        let wrong: Vec<_> = self.store.rejected().collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        let wrong: Vec<_> = self.store.source_problems().collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        self.builder.update(&self.store, &dirty)
    }

    fn snapshot(&mut self, mesh: &Mesh, proxy: &Proxy) -> Snapshot {
        self.snapshot_builder.snapshot(mesh, &mesh.scope(proxy))
    }

    /// The addresses of a cluster's endpoints.
    fn endpoints(&mut self, mesh: &Mesh, proxy: &Proxy, cluster: &str) -> Vec<String> {
        addresses(&self.snapshot(mesh, proxy), cluster)
    }
}

fn mesh(text: &str) -> Mesh {
    World::new().write("mesh.yaml", text)
}

fn seen_by(mesh: &Mesh, proxy: &Proxy) -> Snapshot {
    SnapshotBuilder::default().snapshot(mesh, &mesh.scope(proxy))
}

/// The proxy of a pod in `shop` at this address.
fn proxy(pod: &str, address: &str, metadata: Value) -> Proxy {
    let id = format!("sidecar~{address}~{pod}.shop~shop.svc.cluster.local");
    Proxy::new(&id, NodeMetadata::from_json(&metadata), Locality::default()).unwrap()
}

/// A proxy with a known name and no other attributes.
fn client() -> Proxy {
    proxy("client-0", "10.9.0.1", json!({}))
}

fn on_node(node: &str) -> Proxy {
    proxy("client-0", "10.9.0.1", json!({ "NODE_NAME": node }))
}

fn resources(snapshot: &Snapshot, kind: ResourceType) -> Vec<Value> {
    crate::cli::translate::to_json(snapshot, kind).unwrap()
}

/// The endpoints of a cluster, each with the priority of its locality.
fn lb_endpoints(snapshot: &Snapshot, cluster: &str) -> Vec<(u64, Value)> {
    let all = resources(snapshot, ResourceType::Endpoints);
    let found = all
        .iter()
        .find(|item| item["clusterName"] == cluster)
        .unwrap_or_else(|| panic!("no {cluster}"));
    let localities = found["endpoints"].as_array().into_iter().flatten();
    let members = localities.flat_map(|locality| {
        let priority = locality["priority"].as_u64().unwrap_or(0);
        locality["lbEndpoints"]
            .as_array()
            .into_iter()
            .flatten()
            .map(move |item| (priority, item["endpoint"].clone()))
    });
    members.collect()
}

fn address(endpoint: &Value) -> String {
    endpoint["address"]["socketAddress"]["address"].as_str().unwrap().to_owned()
}

fn addresses(snapshot: &Snapshot, cluster: &str) -> Vec<String> {
    let mut all: Vec<_> =
        lb_endpoints(snapshot, cluster).iter().map(|(_, endpoint)| address(endpoint)).collect();
    all.sort();
    all
}

/// The priority of each address.
fn priorities(snapshot: &Snapshot, cluster: &str) -> BTreeMap<String, u64> {
    lb_endpoints(snapshot, cluster)
        .iter()
        .map(|(priority, endpoint)| (address(endpoint), *priority))
        .collect()
}

/// Every address of every endpoint.
fn all_addresses(snapshot: &Snapshot, cluster: &str) -> Vec<Vec<String>> {
    let mut all: Vec<Vec<String>> = lb_endpoints(snapshot, cluster)
        .iter()
        .map(|(_, endpoint)| {
            let more = endpoint["additionalAddresses"].as_array().into_iter().flatten();
            std::iter::once(address(endpoint)).chain(more.map(address)).collect()
        })
        .collect();
    all.sort();
    all
}

/// The timeouts of the routes of a virtual host on port 80.
fn timeouts(snapshot: &Snapshot, host: &str) -> Vec<String> {
    let tables = resources(snapshot, ResourceType::Route);
    let table = tables.iter().find(|table| table["name"] == "80").unwrap();
    let hosts = table["virtualHosts"].as_array().unwrap();
    let host = hosts
        .iter()
        .find(|item| item["name"] == format!("{host}.shop.svc.cluster.local:80"))
        .unwrap();
    let routes = host["routes"].as_array().unwrap().iter();
    routes.map(|route| route["route"]["timeout"].as_str().unwrap_or_default().to_owned()).collect()
}

/// A file without objects.
const NOTHING: &str = "# nothing\n";

/// Two nodes in two zones of one region.
const NODES: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-a, topology.istio.io/subzone: r1}}
---
apiVersion: v1
kind: Node
metadata: {name: n2, labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-b}}
---
";

/// The service `web` in `shop`, with a pod on each node.
fn web(spec: &str) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{clusterIP: 10.96.1.1, selector: {{app: web}}, ports: [{{name: http, port: 80}}], {spec}}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n\
         - {{addresses: [10.1.1.1], nodeName: n1, zone: eu-a, targetRef: {{kind: Pod, name: web-0}}}}\n\
         - {{addresses: [10.1.1.2], nodeName: n2, zone: eu-b, targetRef: {{kind: Pod, name: web-1}}}}\n---\n"
    );
    for n in [0, 1] {
        text += &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web-{n}, namespace: shop, labels: {{app: web, version: v{n}}}}}\n---\n"
        );
    }
    text
}

fn rule(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n---\n"
    )
}

/// A DestinationRule for `host` with a subset for each of these label sets, by name.
fn subsets(host: &str, subsets: &[(&str, &str)]) -> String {
    let all: Vec<_> = subsets
        .iter()
        .map(|(name, labels)| format!("{{name: {name}, labels: {{{labels}}}}}"))
        .collect();
    rule("DestinationRule", "subsets", &format!("{{host: {host}, subsets: [{}]}}", all.join(", ")))
}

fn cluster(subset: &str) -> String {
    format!("outbound|80|{subset}|web.shop.svc.cluster.local")
}

const SUBSETS: [(&str, &str, &[&str]); 9] = [
    ("za", "topology.kubernetes.io/zone: eu-a", &["10.1.1.1"]),
    ("zb", "topology.kubernetes.io/zone: eu-b", &["10.1.1.2"]),
    ("zb1", "topology.kubernetes.io/zone: eu-b, version: v1", &["10.1.1.2"]),
    ("zb0", "topology.kubernetes.io/zone: eu-b, version: v0", &[]),
    ("region", "topology.kubernetes.io/region: eu", &["10.1.1.1", "10.1.1.2"]),
    ("rack", "topology.istio.io/subzone: r1", &["10.1.1.1"]),
    ("cluster", "topology.istio.io/cluster: Kubernetes", &["10.1.1.1", "10.1.1.2"]),
    ("far", "topology.istio.io/cluster: other", &[]),
    ("node", "kubernetes.io/hostname: n1", &["10.1.1.1"]),
];

#[test]
fn a_subset_may_select_by_location() {
    let labels = SUBSETS.map(|(name, labels, _)| (name, labels));
    let mut world = World::new();
    let mesh = world.write("mesh.yaml", &(NODES.to_owned() + &web("") + &subsets("web", &labels)));
    for (name, labels, expected) in SUBSETS {
        assert_eq!(world.endpoints(&mesh, &client(), &cluster(name)), expected, "{labels}");
    }
}

#[test]
fn without_a_node_object_the_slice_determines_zone_and_node() {
    let labels = SUBSETS.map(|(name, labels, _)| (name, labels));
    let mesh = mesh(&(web("") + &subsets("web", &labels)));
    let snapshot = seen_by(&mesh, &client());
    for (name, labels, expected) in SUBSETS {
        let expected = if matches!(name, "region" | "rack") { &[] } else { expected };
        assert_eq!(addresses(&snapshot, &cluster(name)), expected, "{labels}");
    }
}

#[test]
fn endpoints_move_between_subsets_with_their_node() {
    let mut world = World::new();
    let subsets = subsets(
        "web",
        &[("a", "topology.kubernetes.io/region: eu"), ("b", "topology.kubernetes.io/region: us")],
    );
    world.write("mesh.yaml", &(web("") + &subsets));
    let mesh = world.write("nodes.yaml", NODES);
    assert_eq!(world.endpoints(&mesh, &client(), &cluster("a")), ["10.1.1.1", "10.1.1.2"]);
    let moved = NODES.replacen("region: eu", "region: us", 1);
    let mesh = world.write("nodes.yaml", &moved);
    assert_eq!(world.endpoints(&mesh, &client(), &cluster("a")), ["10.1.1.2"]);
    assert_eq!(world.endpoints(&mesh, &client(), &cluster("b")), ["10.1.1.1"]);
}

#[test]
fn entries_have_their_own_locality() {
    let entry = "{hosts: [out.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [\
                 {address: 192.0.2.1, locality: eu/eu-a/r1}, {address: 192.0.2.2, network: far}, \
                 {address: 192.0.2.3, labels: {istio-locality: us.us-a, topology.istio.io/network: own}, network: far}]}";
    let namespace = "apiVersion: v1\nkind: Namespace\n\
                     metadata: {name: istio-system, labels: {topology.istio.io/network: near}}\n---\n";
    let wanted: [(&str, &str, &[&str]); 6] = [
        ("eu", "topology.kubernetes.io/region: eu", &["192.0.2.1"]),
        ("rack", "topology.istio.io/subzone: r1", &["192.0.2.1"]),
        ("us", "topology.kubernetes.io/zone: us-a", &["192.0.2.3"]),
        ("near", "topology.istio.io/network: near", &["192.0.2.1"]),
        ("far", "topology.istio.io/network: far", &["192.0.2.2"]),
        ("own", "topology.istio.io/network: own", &["192.0.2.3"]),
    ];
    let labels = wanted.map(|(name, labels, _)| (name, labels));
    let mut world = World::new();
    world.write(
        "mesh.yaml",
        &(rule("ServiceEntry", "out", entry) + &subsets("out.example", &labels)),
    );
    let mesh = world.write("namespaces.yaml", namespace);
    for (name, labels, expected) in wanted {
        let cluster = format!("outbound|80|{name}|out.example");
        assert_eq!(world.endpoints(&mesh, &client(), &cluster), expected, "{labels}");
    }
    let mesh = world.write("namespaces.yaml", NOTHING);
    assert!(world.endpoints(&mesh, &client(), "outbound|80|near|out.example").is_empty());
}

/// A route with 5 s for clients with these labels, and another for the rest.
fn for_sources(labels: &str) -> String {
    let to = "route: [{destination: {host: web}}]";
    let http = format!("{{match: [{{sourceLabels: {{{labels}}}}}], timeout: 5s, {to}}}, {{{to}}}");
    rule("VirtualService", "web", &format!("{{hosts: [web], http: [{http}]}}"))
}

const IN_ZONE: &str = "topology.kubernetes.io/zone: eu-a";

#[test]
fn source_labels_may_select_by_location() {
    let pods = "apiVersion: v1\nkind: Pod\nmetadata: {name: placed-0, namespace: shop}\nspec: {nodeName: n1}\n---\n";
    let text = NODES.to_owned() + pods + &web("");
    let placed = proxy("placed-0", "10.9.0.2", json!({}));
    let of_web = proxy("web-0", "10.1.1.1", json!({}));
    let own =
        proxy("client-0", "10.9.0.1", json!({"LABELS": {"topology.kubernetes.io/zone": "eu-a"}}));
    let in_cluster = proxy("client-0", "10.9.0.1", json!({"CLUSTER_ID": "east", "NETWORK": "net"}));
    for (labels, proxy, matches) in [
        (IN_ZONE, &placed, true),
        (IN_ZONE, &of_web, true),
        (IN_ZONE, &own, true),
        (IN_ZONE, &client(), false),
        (IN_ZONE, &on_node("n1"), true),
        (IN_ZONE, &on_node("n2"), false),
        ("topology.kubernetes.io/region: eu", &placed, true),
        ("topology.istio.io/subzone: r1", &of_web, true),
        ("topology.istio.io/subzone: r2", &of_web, false),
        ("kubernetes.io/hostname: n1", &on_node("n1"), true),
        ("kubernetes.io/hostname: n1", &on_node("n2"), false),
        ("kubernetes.io/hostname: n1", &placed, true),
        ("kubernetes.io/hostname: n1", &of_web, true),
        ("topology.istio.io/cluster: Kubernetes", &client(), true),
        ("topology.istio.io/cluster: east", &in_cluster, true),
        ("topology.istio.io/network: net", &in_cluster, true),
        ("topology.istio.io/network: net", &client(), false),
    ] {
        let snapshot = seen_by(&mesh(&(text.clone() + &for_sources(labels))), proxy);
        let expected: &[&str] = if matches { &["5s"] } else { &["0s"] };
        assert_eq!(timeouts(&snapshot, "web"), expected, "{labels} {proxy:?}");
    }
}

fn names(snapshot: &Snapshot, kind: ResourceType) -> Vec<String> {
    let all = resources(snapshot, kind);
    all.iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
}

/// Whether connections to `db` go to its subset `near`, and to its subset `far`.
fn tcp_routes_to_near_and_far(snapshot: &Snapshot) -> [bool; 2] {
    let all = resources(snapshot, ResourceType::Listener);
    let listener = all.into_iter().find(|item| item["name"] == "10.96.1.9_81").unwrap().to_string();
    ["near", "far"].map(|subset| listener.contains(&format!("outbound|81|{subset}|db")))
}

#[test]
fn tcp_routes_and_selectors_match_by_location() {
    let tcp = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\n\
               spec: {clusterIP: 10.96.1.9, ports: [{name: tcp, port: 81}]}\n---\n";
    let route = format!(
        "{{hosts: [db], tcp: [{{match: [{{sourceLabels: {{{IN_ZONE}}}}}], \
         route: [{{destination: {{host: db, subset: near}}}}]}}, \
         {{route: [{{destination: {{host: db, subset: far}}}}]}}]}}"
    );
    let text = NODES.to_owned()
        + &web("")
        + tcp
        + &rule("VirtualService", "db", &route)
        + &rule("DestinationRule", "db", "{host: db, subsets: [{name: near}, {name: far}]}")
        + &rule(
            "DestinationRule",
            "web",
            &format!(
                "{{host: web, workloadSelector: {{matchLabels: {{{IN_ZONE}}}}}, subsets: [{{name: mine}}]}}"
            ),
        )
        + &rule(
            "Sidecar",
            "near",
            &format!(
                "{{workloadSelector: {{labels: {{{IN_ZONE}}}}}, egress: [{{hosts: ['./web.shop.svc.cluster.local', './db.shop.svc.cluster.local']}}]}}"
            ),
        )
        + &rule("ServiceEntry", "out", "{hosts: [out.example], ports: [{number: 80, name: http}]}");
    let mesh = mesh(&text);
    let near = seen_by(&mesh, &proxy("web-0", "10.1.1.1", json!({})));
    let far = seen_by(&mesh, &proxy("web-1", "10.1.1.2", json!({})));
    assert_eq!(tcp_routes_to_near_and_far(&near), [true, false]);
    assert_eq!(tcp_routes_to_near_and_far(&far), [false, true]);
    let [near, far] = [near, far].map(|seen| names(&seen, ResourceType::Cluster));
    let (mine, out) = (cluster("mine"), "outbound|80||out.example".to_owned());
    assert!(near.contains(&mine) && !far.contains(&mine));
    assert!(!near.contains(&out) && far.contains(&out));
}

/// How many scopes clients on three nodes in two zones have.
fn scope_count(text: &str) -> usize {
    let mesh = mesh(&(NODES.to_owned() + text));
    let names = [("n1", "eu-a"), ("n2", "eu-b"), ("n3", "eu-b")];
    let proxies = names.map(|(node, zone)| {
        let labels =
            json!({"topology.kubernetes.io/zone": zone, "topology.kubernetes.io/region": "eu"});
        proxy("client-0", "10.9.0.1", json!({"NODE_NAME": node, "LABELS": labels}))
    });
    proxies.iter().map(|proxy| mesh.scope(proxy)).collect::<BTreeSet<_>>().len()
}

#[test]
fn only_attributes_that_a_rule_reads_split_scopes() {
    let hidden = "apiVersion: v1\nkind: Service\nmetadata: {name: hidden, namespace: pay, annotations: {networking.istio.io/exportTo: .}}\n\
                  spec: {clusterIP: 10.96.2.1, internalTrafficPolicy: Local, ports: [{name: http, port: 80}]}\n---\n";
    for (text, expected) in [
        (web(""), 1),
        (web("") + &subsets("web", &[("za", IN_ZONE), ("node", "kubernetes.io/hostname: n1")]), 1),
        (web("") + &for_sources("topology.kubernetes.io/region: eu"), 1),
        (web("") + &for_sources(IN_ZONE), 2),
        (web("") + &for_sources("kubernetes.io/hostname: n1"), 3),
        (web("trafficDistribution: PreferClose"), 2),
        (web("trafficDistribution: PreferSameNode"), 3),
        (web("internalTrafficPolicy: Cluster"), 1),
        (web("internalTrafficPolicy: Local"), 3),
        (web("") + hidden, 1),
        (
            web("")
                + &rule(
                    "DestinationRule",
                    "w",
                    "{host: web, subsets: [{name: x, trafficPolicy: \
                     {loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}]}}}}]}",
                ),
            2,
        ),
    ] {
        assert_eq!(scope_count(&text), expected, "{text}");
    }
}

#[test]
fn a_node_local_service_has_only_endpoints_on_the_clients_node() {
    let headless = "apiVersion: v1\nkind: Service\nmetadata: {name: other, namespace: shop}\n\
                    spec: {clusterIP: 10.96.1.2, ports: [{name: http, port: 80}]}\n---\n\
                    apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                    metadata: {name: other-1, namespace: shop, labels: {kubernetes.io/service-name: other}}\n\
                    addressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints:\n\
                    - {addresses: [10.1.2.1], nodeName: n1}\n- {addresses: [10.1.2.2], nodeName: n2}\n---\n";
    let pods = "apiVersion: v1\nkind: Pod\nmetadata: {name: placed-0, namespace: shop}\nspec: {nodeName: n2}\n---\n";
    let local = web("internalTrafficPolicy: Local")
        + headless
        + pods
        + &subsets("web", &[("v0", "version: v0")]);
    // Node objects are not needed: slices name their nodes.
    for nodes in ["", NODES] {
        let mut world = World::new();
        let mesh = world.write("mesh.yaml", &(nodes.to_owned() + &local));
        let of_web = proxy("web-1", "10.1.1.2", json!({}));
        let other = "outbound|80||other.shop.svc.cluster.local";
        for (proxy, all, v0) in [
            (on_node("n1"), &["10.1.1.1"][..], &["10.1.1.1"][..]),
            (on_node("n2"), &["10.1.1.2"], &[]),
            (on_node("n3"), &[], &[]),
            (of_web, &["10.1.1.2"], &[]),
            (proxy("placed-0", "10.9.0.2", json!({})), &["10.1.1.2"], &[]),
            (client(), &[], &[]),
        ] {
            assert_eq!(world.endpoints(&mesh, &proxy, &cluster("")), all, "{proxy:?}");
            assert_eq!(world.endpoints(&mesh, &proxy, &cluster("v0")), v0, "{proxy:?}");
            assert_eq!(world.endpoints(&mesh, &proxy, other), ["10.1.2.1", "10.1.2.2"]);
        }
        // Only the endpoints of that service are rebuilt for another node.
        let [n1, n2] = ["n1", "n2"].map(|node| {
            let snapshot = world.snapshot_builder.snapshot(&mesh, &mesh.scope(&on_node(node)));
            snapshot.get(ResourceType::Endpoints).clone()
        });
        assert!(Arc::ptr_eq(n1.get(other).unwrap(), n2.get(other).unwrap()));
        assert!(!Arc::ptr_eq(n1.get(&cluster("")).unwrap(), n2.get(&cluster("")).unwrap()));
    }
}

#[test]
fn a_service_becomes_node_local_and_back() {
    let mut world = World::new();
    for (policy, expected) in [("Cluster", 2), ("Local", 1), ("Cluster", 2)] {
        let mesh = world.write("mesh.yaml", &web(&format!("internalTrafficPolicy: {policy}")));
        assert_eq!(
            world.endpoints(&mesh, &on_node("n1"), &cluster("")).len(),
            expected,
            "{policy}"
        );
    }
}

/// A slice of `web` with one endpoint of pod `web-0` and more fields.
fn slice(name: &str, family: &str, endpoints: &[(&str, &str)]) -> String {
    let all: Vec<_> = endpoints
        .iter()
        .map(|(address, more)| format!("{{addresses: ['{address}'], {more}}}"))
        .collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: {family}\nports: [{{name: http, port: 8080}}]\nendpoints: [{}]\n---\n",
        all.join(", ")
    )
}

fn dual_stack(service: &str, v4: &[(&str, &str)], v6: &[(&str, &str)]) -> Mesh {
    mesh(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{{service}, ports: [{{name: http, port: 80}}]}}\n---\n{}{}",
        slice("web-4", "IPv4", v4),
        slice("web-6", "IPv6", v6)
    ))
}

fn of_family(families: Families) -> Proxy {
    match families {
        Families::V4 => proxy("client-0", "10.9.0.1", json!({})),
        Families::V6 => proxy("client-0", "fd00:9::1", json!({})),
        Families::Both => {
            proxy("client-0", "10.9.0.1", json!({"INSTANCE_IPS": "10.9.0.1,fd00:9::1"}))
        }
    }
}

const POD: &str = "targetRef: {kind: Pod, name: web-0, namespace: shop, uid: a}";

#[test]
fn a_pod_with_two_addresses_is_one_endpoint() {
    let mesh = dual_stack(
        "clusterIP: 10.96.1.1",
        &[("10.1.1.1", POD)],
        &[("fd00:1::1", POD), ("fd00:1::2", "")],
    );
    for (families, expected) in [
        (Families::V4, vec![vec!["10.1.1.1"]]),
        (Families::V6, vec![vec!["fd00:1::1"], vec!["fd00:1::2"]]),
        (Families::Both, vec![vec!["10.1.1.1", "fd00:1::1"], vec!["fd00:1::2"]]),
    ] {
        let proxy = of_family(families);
        assert_eq!(mesh.scope(&proxy).families, families);
        assert_eq!(all_addresses(&seen_by(&mesh, &proxy), &cluster("")), expected, "{families:?}");
    }
}

#[test]
fn the_services_first_family_is_tried_first() {
    for (service, expected) in [
        ("clusterIP: 10.96.1.1, clusterIPs: [10.96.1.1, 'fd00:96::1']", ["10.1.1.1", "fd00:1::1"]),
        (
            "clusterIP: 'fd00:96::1', clusterIPs: ['fd00:96::1', 10.96.1.1]",
            ["fd00:1::1", "10.1.1.1"],
        ),
    ] {
        let mesh = dual_stack(service, &[("10.1.1.1", POD)], &[("fd00:1::1", POD)]);
        assert_eq!(
            all_addresses(&seen_by(&mesh, &of_family(Families::Both)), &cluster("")),
            [expected]
        );
    }
}

#[test]
fn only_addresses_of_one_pod_become_one_endpoint() {
    let other_pod = "targetRef: {kind: Pod, name: web-1, namespace: shop, uid: a}";
    let later = "targetRef: {kind: Pod, name: web-0, namespace: shop, uid: b}";
    let no_pod = "targetRef: {kind: Node, name: web-0, uid: a}";
    for other in [other_pod, later, no_pod, ""] {
        let mesh =
            dual_stack("clusterIP: 10.96.1.1", &[("10.1.1.1", POD)], &[("fd00:1::1", other)]);
        let all = all_addresses(&seen_by(&mesh, &of_family(Families::Both)), &cluster(""));
        assert_eq!(all, [["10.1.1.1"], ["fd00:1::1"]], "{other}");
    }
    // Two addresses of one family are never one endpoint.
    let mesh = dual_stack("clusterIP: 10.96.1.1", &[("10.1.1.1", POD), ("10.1.1.2", POD)], &[]);
    let all = all_addresses(&seen_by(&mesh, &of_family(Families::Both)), &cluster(""));
    assert_eq!(all, [["10.1.1.1"], ["10.1.1.2"]]);
}

#[test]
fn a_pod_is_ready_when_both_its_slices_say_so() {
    let not = format!("conditions: {{ready: false, serving: false, terminating: false}}, {POD}");
    for (v4, v6, healthy) in [(POD, POD, true), (&not, POD, false), (POD, &not, false)] {
        let mesh = dual_stack("clusterIP: 10.96.1.1", &[("10.1.1.1", v4)], &[("fd00:1::1", v6)]);
        let snapshot = seen_by(&mesh, &of_family(Families::Both));
        let all = resources(&snapshot, ResourceType::Endpoints);
        let all = all.iter().find(|item| item["clusterName"] == cluster("")).unwrap();
        let status = &all["endpoints"][0]["lbEndpoints"][0]["healthStatus"];
        assert_eq!(status == "HEALTHY", healthy, "{status}");
    }
}

fn web_pod(status: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web-0, namespace: shop, labels: {{app: web}}}}\n\
         spec: {{nodeName: n1}}\nstatus: {status}\n---\n"
    )
}

#[test]
fn a_pod_that_an_entry_selects_has_both_its_addresses() {
    let entry = rule(
        "ServiceEntry",
        "out",
        "{hosts: [out.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, \
         workloadSelector: {labels: {app: web}}}",
    );
    let by_status = web_pod("{podIP: 10.1.1.1, podIPs: [{ip: 10.1.1.1}, {ip: 'fd00:1::1'}]}");
    let by_slices = web_pod("{}")
        + &slice("web-6", "IPv6", &[("fd00:1::1", POD)])
        + &slice("web-4", "IPv4", &[("10.1.1.1", POD)]);
    for pods in [by_status, by_slices] {
        let mesh = mesh(&(entry.clone() + &pods));
        let snapshot = seen_by(&mesh, &of_family(Families::Both));
        assert_eq!(
            all_addresses(&snapshot, "outbound|80||out.example"),
            [["10.1.1.1", "fd00:1::1"]],
            "{pods}"
        );
        let snapshot = seen_by(&mesh, &of_family(Families::V6));
        assert_eq!(all_addresses(&snapshot, "outbound|80||out.example"), [["fd00:1::1"]], "{pods}");
    }
}

#[test]
fn a_workload_is_found_by_either_of_its_addresses() {
    let mesh = dual_stack("clusterIP: 10.96.1.1", &[("10.1.1.1", POD)], &[("fd00:1::1", POD)]);
    let both = json!({"INSTANCE_IPS": "10.1.1.1,fd00:1::1"});
    for own in [
        proxy("web-0", "10.1.1.1", json!({})),
        proxy("web-0", "fd00:1::1", json!({})),
        proxy("web-0", "10.1.1.1", both),
    ] {
        let inbound: Vec<u16> = mesh.scope(&own).inbound.iter().map(|port| port.target).collect();
        assert_eq!(inbound, [8080], "{own:?}");
    }
}

#[test]
fn a_headless_service_has_a_listener_for_each_address() {
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{clusterIP: None, ports: [{{name: http, port: 8080, appProtocol: tcp}}]}}\n---\n{}{}",
        slice("web-4", "IPv4", &[("10.1.1.1", POD)]),
        slice("web-6", "IPv6", &[("fd00:1::1", POD)])
    );
    let mesh = mesh(&text);
    let own = proxy("web-0", "10.1.1.1", json!({"INSTANCE_IPS": "10.1.1.1,fd00:1::1"}));
    for (proxy, expected) in [
        (of_family(Families::V4), &["10.1.1.1_8080"][..]),
        (of_family(Families::V6), &["fd00:1::1_8080"]),
        (of_family(Families::Both), &["10.1.1.1_8080", "fd00:1::1_8080"]),
        // A pod calls itself without its proxy, by either address.
        (own, &[]),
    ] {
        let mut listeners = names(&seen_by(&mesh, &proxy), ResourceType::Listener);
        listeners.retain(|name| name.ends_with("_8080"));
        assert_eq!(listeners, expected, "{proxy:?}");
    }
}

/// The rest of an object's metadata.
fn distribution_annotation(value: &str) -> String {
    format!(", annotations: {{networking.istio.io/traffic-distribution: {value}}}")
}

fn shop_namespace(annotations: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop{annotations}}}\n---\n")
}

fn annotated_web(annotations: &str, spec: &str) -> String {
    web(spec).replacen(
        "{name: web, namespace: shop",
        &format!("{{name: web, namespace: shop{annotations}"),
        1,
    )
}

#[test]
fn traffic_distribution_is_the_services_else_its_namespaces() {
    let [zone, upper_case_zone, node, any] =
        ["PreferClose", "PREFERSAMEZONE", "prefersamenode", "Any"].map(distribution_annotation);
    let spec = "trafficDistribution: PreferSameZone";
    // Three nodes, the first two in one zone: the rank of an endpoint in the client's zone, and on its node.
    let nodes = NODES.to_owned()
        + "apiVersion: v1\nkind: Node\nmetadata: {name: n3, labels: {topology.kubernetes.io/region: eu, \
           topology.kubernetes.io/zone: eu-a, topology.istio.io/subzone: r1}}\n---\n";
    for (namespaces, services, zones, on_nodes) in [
        (shop_namespace(""), annotated_web("", ""), false, false),
        (shop_namespace(&zone), annotated_web("", ""), true, false),
        (shop_namespace(&node), annotated_web("", ""), true, true),
        (shop_namespace(&upper_case_zone), annotated_web("", ""), true, false),
        (shop_namespace(&node), annotated_web(&zone, ""), true, false),
        (shop_namespace(&zone), annotated_web(&any, ""), false, false),
        (shop_namespace(&any), annotated_web("", ""), false, false),
        (shop_namespace(&node), annotated_web("", spec), true, false),
        (shop_namespace(""), annotated_web(&node, spec), true, false),
        (String::new(), annotated_web(&zone, ""), true, false),
    ] {
        let mesh = mesh(&(nodes.clone() + &namespaces + &services));
        let [n1, n3] = ["n1", "n3"].map(|client| {
            let priorities = priorities(&seen_by(&mesh, &on_node(client)), &cluster(""));
            ["10.1.1.1", "10.1.1.2"].map(|address| priorities[address])
        });
        let text = format!("{namespaces}{services}");
        assert_eq!(n1, [0, u64::from(zones)], "{text}");
        // 10.1.1.1 is in the zone of n3, and on another node.
        assert_eq!(n3[0], 0, "{text}");
        let labels = mesh.scope(&on_node("n3")).labels;
        assert_eq!(labels.contains_key("kubernetes.io/hostname"), on_nodes, "{text}");
    }
}

#[test]
fn a_namespaces_annotation_is_added_and_removed() {
    let annotated = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {networking.istio.io/traffic-distribution: PreferClose}}\n";
    let entry = "{hosts: [out.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [\
                 {address: 192.0.2.1, locality: eu/eu-a}, {address: 192.0.2.2, locality: eu/eu-b}]}";
    let mut world = World::new();
    world.write("mesh.yaml", &(NODES.to_owned() + &web("") + &rule("ServiceEntry", "out", entry)));
    let client = on_node("n1");
    for (text, expected) in [(annotated, 1), (NOTHING, 0), (annotated, 1)] {
        let mesh = world.write("namespace.yaml", text);
        let snapshot = world.snapshot(&mesh, &client);
        assert_eq!(priorities(&snapshot, &cluster(""))["10.1.1.2"], expected, "{text}");
        assert_eq!(
            priorities(&snapshot, "outbound|80||out.example")["192.0.2.2"],
            expected,
            "{text}"
        );
    }
}

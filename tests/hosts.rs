//! Which requests and connections are a host's, seen in what proxies get: hosts that share a port, that several objects
//! name, that stand for others, and that are addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::{Value, json};
use weir::mesh::{Locality, Mesh, MeshBuilder, MeshConfig, NodeMetadata, Proxy};
use weir::snapshot::{ResourceType, SnapshotBuilder};
use weir::source::loader::{Content, Loader};
use weir::store::Store;

mod aliases;

/// An object; `minute` says when it was created.
fn object(kind: &str, name: &str, namespace: &str, minute: u32, spec: &str) -> String {
    let group = if kind == "Service" { "v1" } else { "networking.istio.io/v1" };
    format!(
        "---\napiVersion: {group}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}, \
         creationTimestamp: '2026-01-01T00:{minute:02}:00Z'}}\nspec: {{{spec}}}\n"
    )
}

/// A ServiceEntry in `shop`.
fn entry(name: &str, minute: u32, spec: &str) -> String {
    object("ServiceEntry", name, "shop", minute, spec)
}

/// The service `api` in `shop` on port 8080, which speaks HTTP.
fn api(minute: u32) -> String {
    object(
        "Service",
        "api",
        "shop",
        minute,
        "clusterIP: 10.96.0.11, ports: [{name: http, port: 8080}]",
    )
}

/// The addresses of a service's only port, by EndpointSlice.
fn slice(service: &str, port: &str, addresses: &[&str]) -> String {
    let all = addresses
        .iter()
        .map(|address| format!("{{addresses: [{address}]}}"))
        .collect::<Vec<_>>()
        .join(", ");
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}-1, namespace: shop, \
         labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{{{port}}}]\nendpoints: [{all}]\n"
    )
}

/// A mesh whose objects a test writes and removes.
#[derive(Default)]
struct World {
    loader: Loader,
    store: Store,
    builder: Option<MeshBuilder>,
}

impl World {
    /// Writes a file; one without a text is gone.
    fn write(&mut self, file: &str, text: &str) -> Mesh {
        let mut dirty = BTreeSet::new();
        let content =
            if text.is_empty() { Content::Gone } else { Content::Bytes(text.as_bytes().to_vec()) };
        for change in self.loader.update([(PathBuf::from(file), content)]) {
            self.store.apply(change, &mut dirty);
        }
        let rejected: Vec<_> = self.store.rejected().collect();
        assert!(rejected.is_empty(), "{rejected:?}");
        self.builder
            .get_or_insert_with(|| MeshBuilder::new(MeshConfig::default()))
            .update(&self.store, &dirty)
    }
}

/// What a proxy gets.
struct Got {
    clusters: BTreeMap<String, Value>,
    endpoints: BTreeMap<String, Value>,
    listeners: BTreeMap<String, Value>,
    routes: BTreeMap<String, Value>,
}

impl Got {
    fn of(mesh: &Mesh, namespace: &str, metadata: &Value) -> Self {
        let id = format!("sidecar~10.9.0.1~client-0.{namespace}~{namespace}.svc.cluster.local");
        let proxy =
            Proxy::new(&id, NodeMetadata::from_json(metadata), Locality::default()).unwrap();
        let snapshot = SnapshotBuilder::default().snapshot(mesh, &mesh.scope(&proxy));
        assert!(snapshot.omitted.is_empty(), "{:?}", snapshot.omitted);
        let all = |kind, name: &str| {
            let all = weir::cli::translate::to_json(&snapshot, kind).unwrap();
            all.into_iter()
                .map(|item| (item[name].as_str().unwrap_or_default().to_owned(), item))
                .collect()
        };
        Self {
            clusters: all(ResourceType::Cluster, "name"),
            endpoints: all(ResourceType::Endpoints, "clusterName"),
            listeners: all(ResourceType::Listener, "name"),
            routes: all(ResourceType::Route, "name"),
        }
    }

    /// What a pod in `shop` gets whose traffic is redirected.
    fn in_shop(text: &str) -> Self {
        Self::of(&World::default().write("all.yaml", text), "shop", &json!({}))
    }

    /// What a proxy in `shop` gets that binds the services' ports.
    fn bound(text: &str) -> Self {
        Self::of(
            &World::default().write("all.yaml", text),
            "shop",
            &json!({"INTERCEPTION_MODE": "NONE"}),
        )
    }

    /// The listener that takes connections to an address and port.
    fn listener(&self, address: &str, port: u16) -> &Value {
        let names =
            [format!("{address}_{port}"), format!("0.0.0.0_{port}"), format!("127.0.0.1_{port}")];
        let found = names.iter().find_map(|name| self.listeners.get(name));
        found.unwrap_or_else(|| {
            panic!("nothing listens on {address}:{port}: {:?}", self.listeners.keys())
        })
    }

    /// The name of the routes of what is HTTP there.
    fn table(&self, address: &str, port: u16) -> Option<&str> {
        let filters = filters(self.listener(address, port));
        filters
            .into_iter()
            .find_map(|filter| filter["typedConfig"]["rds"]["routeConfigName"].as_str())
    }

    /// The cluster that a request goes to, and the timeout of its route.
    fn route(&self, address: &str, port: u16, host: &str) -> (String, String) {
        let table =
            self.table(address, port).unwrap_or_else(|| panic!("{address}:{port} takes no HTTP"));
        let hosts = self.routes[table]["virtualHosts"].as_array().unwrap();
        let covers = |domain: &str| {
            let ending = domain.strip_prefix('*');
            domain == host
                || ending.is_some_and(|ending| host.len() > ending.len() && host.ends_with(ending))
        };
        let matching = hosts.iter().flat_map(|host| {
            let domains =
                host["domains"].as_array().unwrap().iter().map(|domain| domain.as_str().unwrap());
            domains
                .filter(|domain| covers(domain))
                .map(move |domain| ((!domain.starts_with('*'), domain.len()), host))
        });
        let (_, found) =
            matching.max_by_key(|(rank, _)| *rank).unwrap_or_else(|| panic!("nobody is {host}"));
        let action = &found["routes"][0]["route"];
        (
            action["cluster"].as_str().unwrap_or("none").to_owned(),
            action["timeout"].as_str().unwrap_or("").to_owned(),
        )
    }

    fn cluster_of(&self, address: &str, port: u16, host: &str) -> String {
        self.route(address, port, host).0
    }

    /// Where what is not HTTP goes: the clusters of the chains that tell nothing apart, and of those for a server name.
    fn connections(&self, address: &str, port: u16) -> Vec<(String, String)> {
        let listener = self.listener(address, port);
        let chains = listener["filterChains"]
            .as_array()
            .unwrap()
            .iter()
            .chain(listener.get("defaultFilterChain"));
        let tcp =
            chains.filter(|chain| chain["name"] != "PassthroughFilterChain").filter_map(|chain| {
                let cluster = chain["filters"][0]["typedConfig"]["cluster"].as_str()?;
                let name = chain["filterChainMatch"]["serverNames"][0].as_str().unwrap_or_default();
                Some((name.to_owned(), cluster.to_owned()))
            });
        tcp.collect()
    }

    /// The addresses of a cluster's endpoints.
    fn addresses(&self, cluster: &str) -> Vec<String> {
        let known = self.clusters.get(cluster).unwrap_or_else(|| panic!("there is no {cluster}"));
        let assignment = if known["type"] == "EDS" {
            &self.endpoints[cluster]
        } else {
            &known["loadAssignment"]
        };
        let groups = assignment["endpoints"].as_array().into_iter().flatten();
        let all = groups.flat_map(|group| group["lbEndpoints"].as_array().unwrap()).map(|item| {
            let address = &item["endpoint"]["address"]["socketAddress"];
            format!("{}:{}", address["address"].as_str().unwrap(), address["portValue"])
        });
        all.collect()
    }

    fn listener_names(&self) -> Vec<&str> {
        self.listeners
            .keys()
            .map(String::as_str)
            .filter(|name| !name.starts_with("virtual"))
            .collect()
    }
}

fn filters(listener: &Value) -> Vec<&Value> {
    let chains = listener["filterChains"].as_array().unwrap();
    chains.iter().flat_map(|chain| chain["filters"].as_array().unwrap()).collect()
}

const API: &str = "outbound|8080||api.shop.svc.cluster.local";
const ANYWHERE: &str = "192.0.2.77";

#[test]
fn requests_go_by_their_host_where_an_entry_does_not_say_its_protocol() {
    let port = "ports: [{number: 8080, name: web}]";
    let endpoints = "endpoints: [{address: 192.0.2.1}]";
    for (host, fields) in [
        (
            "partner.example",
            format!("hosts: [partner.example], resolution: STATIC, {endpoints}, {port}"),
        ),
        ("partner.example", format!("hosts: [partner.example], resolution: NONE, {port}")),
        ("partner.example", format!("hosts: [partner.example], resolution: DNS, {port}")),
        (
            "partner.example",
            format!(
                "hosts: [partner.example], addresses: [10.97.0.0/16], resolution: NONE, {port}"
            ),
        ),
        ("*.partner.example", format!("hosts: ['*.partner.example'], resolution: NONE, {port}")),
        (
            "*.partner.example",
            format!("hosts: ['*.partner.example'], resolution: STATIC, {endpoints}, {port}"),
        ),
    ] {
        let name = host.replace('*', "any");
        for (older, younger) in [(0, 1), (1, 0)] {
            let got = Got::in_shop(&(entry("partner", older, &fields) + &api(younger)));
            assert_eq!(got.table(ANYWHERE, 8080), Some("8080"), "{fields}");
            assert_eq!(got.cluster_of(ANYWHERE, 8080, "api"), API, "{fields}");
            assert_eq!(
                got.cluster_of(ANYWHERE, 8080, &name),
                format!("outbound|8080||{host}"),
                "{fields}"
            );
            assert_eq!(
                got.cluster_of(ANYWHERE, 8080, "nobody.example"),
                "PassthroughCluster",
                "{fields}"
            );
            assert_eq!(got.routes.len(), 1, "nobody asks for others");
        }
        // Alone as well: every address is nobody's.
        let got = Got::in_shop(&entry("partner", 0, &fields));
        assert_eq!(
            got.cluster_of(ANYWHERE, 8080, "nobody.example"),
            "PassthroughCluster",
            "{fields}"
        );
    }
}

#[test]
fn entries_and_services_without_an_address_share_a_port() {
    let text =
        entry("a", 0, "hosts: [a.example], resolution: NONE, ports: [{number: 8080, name: web}]")
            + &entry(
                "b",
                1,
                "hosts: [b.example], resolution: DNS, ports: [{number: 8080, name: web}]",
            )
            + &object("Service", "file", "shop", 2, "ports: [{name: web, port: 8080}]");
    let got = Got::in_shop(&text);
    for (name, host) in [
        ("a.example", "a.example"),
        ("b.example", "b.example"),
        ("file", "file.shop.svc.cluster.local"),
        ("file.shop", "file.shop.svc.cluster.local"),
    ] {
        assert_eq!(got.cluster_of(ANYWHERE, 8080, name), format!("outbound|8080||{host}"));
    }
    // Nothing tells connections apart that are not HTTP: the oldest has them.
    assert_eq!(
        got.connections(ANYWHERE, 8080),
        [(String::new(), "outbound|8080||a.example".to_owned())]
    );
}

#[test]
fn connections_that_are_no_http_go_to_the_entry_that_speaks_of_them() {
    let tcp = |minute| {
        entry("t", minute, "hosts: [t.example], ports: [{number: 8080, name: tcp, protocol: TCP}]")
    };
    let tls = |minute| {
        entry("s", minute, "hosts: [s.example], ports: [{number: 8080, name: tls, protocol: TLS}]")
    };
    let unknown =
        |minute| entry("u", minute, "hosts: [u.example], ports: [{number: 8080, name: web}]");
    let to = |name: &str, host: &str| (name.to_owned(), format!("outbound|8080||{host}.example"));
    for (text, wanted) in [
        (tcp(0) + &unknown(1), vec![to("", "t")]),
        (unknown(0) + &tcp(1), vec![to("", "u")]),
        (tls(0) + &unknown(1), vec![to("s.example", "s"), to("", "u")]),
        (tls(0) + &tcp(1), vec![to("s.example", "s"), to("", "t")]),
    ] {
        let got = Got::in_shop(&(text + &api(2)));
        assert_eq!(got.connections(ANYWHERE, 8080), wanted);
        assert_eq!(got.cluster_of(ANYWHERE, 8080, "api"), API);
        assert_eq!(got.cluster_of(ANYWHERE, 8080, "nobody.example"), "PassthroughCluster");
    }
}

#[test]
fn what_takes_every_connection_is_the_default_of_its_listener() {
    let default = |text: &str, address: &str| {
        let got = Got::in_shop(text);
        let listener = got.listener(address, 8080);
        let chains = listener["filterChains"].as_array().unwrap();
        let default = &listener["defaultFilterChain"]["filters"][0]["typedConfig"]["cluster"];
        (chains.len(), default.as_str().map(str::to_owned))
    };
    let at = |name: &str, minute: u32, addresses: &str, port: &str| {
        entry(
            name,
            minute,
            &format!(
                "hosts: [{name}.example], addresses: [{addresses}], ports: [{{number: 8080, {port}}}]"
            ),
        )
    };
    let (tcp, tls) = ("name: tcp, protocol: TCP", "name: tls, protocol: TLS");
    let to = |host: &str| Some(format!("outbound|8080||{host}.example"));
    // Envoy would look no further once it has seen that bytes are not TLS.
    assert_eq!(default(&(at("t", 0, "", tcp) + &api(1)), ANYWHERE), (1, to("t")));
    assert_eq!(default(&(at("t", 0, "", tcp) + &at("s", 1, "", tls)), ANYWHERE), (1, to("t")));
    assert_eq!(
        default(&(at("t", 0, "", tcp) + &at("s", 1, "10.97.0.0/16", tls)), ANYWHERE),
        (1, to("t"))
    );
    assert_eq!(default(&at("t", 0, "", tcp), ANYWHERE), (1, None));
    // What nothing takes goes where it was meant to go, at the address of a service as well.
    let pass = Some("PassthroughCluster".to_owned());
    assert_eq!(default(&at("s", 0, "", tls), ANYWHERE), (1, pass.clone()));
    let route = "hosts: [s.example], tls: [{match: [{sniHosts: [s.example]}], route: [{destination: {host: s.example}}]}]";
    let named = at("s", 0, "240.0.0.1", tls) + &object("VirtualService", "s", "shop", 1, route);
    assert_eq!(default(&named, "240.0.0.1"), (1, pass));
}

#[test]
fn what_is_sent_to_the_address_of_one_service_is_meant_for_it() {
    let text = object(
        "Service",
        "some",
        "shop",
        0,
        "clusterIP: 10.96.0.20, ports: [{name: web, port: 8080}]",
    ) + &api(1);
    let got = Got::in_shop(&text);
    let some = "outbound|8080||some.shop.svc.cluster.local";
    assert_eq!(got.table("10.96.0.20", 8080), Some("some.shop.svc.cluster.local:8080"));
    assert_eq!(got.cluster_of("10.96.0.20", 8080, "any.name"), some);
    // It is known by its name where its port is shared, too.
    assert_eq!(got.cluster_of(ANYWHERE, 8080, "some"), some);
    assert_eq!(got.cluster_of(ANYWHERE, 8080, "api"), API);
    // So are the pods of a headless service.
    let headless =
        object("Service", "some", "shop", 0, "clusterIP: None, ports: [{name: web, port: 8080}]");
    let got = Got::in_shop(
        &(headless + &slice("some", "name: web, port: 8080", &["10.1.0.5"]) + &api(1)),
    );
    assert_eq!(got.cluster_of("10.1.0.5", 8080, "any.name"), some);
    assert_eq!(got.cluster_of(ANYWHERE, 8080, "pod-0.some"), some);
    assert_eq!(got.cluster_of(ANYWHERE, 8080, "api"), API);
}

#[test]
fn requests_to_an_address_of_two_services_go_by_their_host() {
    let at = |name: &str, minute: u32, port: &str| {
        entry(
            name,
            minute,
            &format!(
                "hosts: [{name}.example], addresses: [240.0.0.1], ports: [{{number: 8080, {port}}}]"
            ),
        )
    };
    let got = Got::in_shop(&(at("a", 0, "name: web") + &at("b", 1, "name: web")));
    for host in ["a.example", "b.example"] {
        assert_eq!(got.cluster_of("240.0.0.1", 8080, host), format!("outbound|8080||{host}"));
    }
    // What an older service has as plain bytes stays whole.
    let got = Got::in_shop(&(at("a", 0, "name: tcp, protocol: TCP") + &at("b", 1, "name: web")));
    assert_eq!(got.table("240.0.0.1", 8080), None);
    assert_eq!(
        got.connections("240.0.0.1", 8080),
        [(String::new(), "outbound|8080||a.example".to_owned())]
    );
}

#[test]
fn bound_ports_are_shared_by_host_and_left_to_a_service_that_is_alone() {
    let some = object(
        "Service",
        "some",
        "shop",
        0,
        "clusterIP: 10.96.0.20, ports: [{name: web, port: 8080}]",
    );
    let entry =
        |minute| entry("e", minute, "hosts: [e.example], ports: [{number: 8080, name: web}]");
    let service = "outbound|8080||some.shop.svc.cluster.local";
    let alone = Got::bound(&some);
    assert_eq!(alone.cluster_of(ANYWHERE, 8080, "any.name"), service);
    for text in
        [some.clone() + &entry(1) + &api(2), api(0) + &entry(1) + &some, entry(0) + &api(1) + &some]
    {
        let got = Got::bound(&text);
        assert_eq!(got.listener_names(), ["127.0.0.1_8080"]);
        assert_eq!(got.cluster_of(ANYWHERE, 8080, "some"), service);
        assert_eq!(got.cluster_of(ANYWHERE, 8080, "api"), API);
        assert_eq!(got.cluster_of(ANYWHERE, 8080, "e.example"), "outbound|8080||e.example");
        assert_eq!(got.cluster_of(ANYWHERE, 8080, "nobody.example"), "PassthroughCluster");
    }
    // Beside a service whose bytes nobody looks at, too.
    let db = object(
        "Service",
        "db",
        "shop",
        0,
        "clusterIP: 10.96.0.21, ports: [{name: tcp, port: 8080}]",
    );
    let got = Got::bound(&(db + &some.replace("00:00:00Z", "00:05:00Z")));
    assert_eq!(got.cluster_of(ANYWHERE, 8080, "some"), service);
    let tcp = got.connections(ANYWHERE, 8080);
    assert_eq!(tcp, [(String::new(), "outbound|8080||db.shop.svc.cluster.local".to_owned())]);
}

#[test]
fn rules_for_a_host_hold_where_its_port_says_no_protocol() {
    let text = entry(
        "partner",
        0,
        "hosts: [partner.example], resolution: DNS, ports: [{number: 8080, name: web}]",
    ) + &api(1)
        + &object(
            "VirtualService",
            "v",
            "shop",
            2,
            "hosts: [partner.example, other.example], http: [{timeout: 7s, route: [{destination: {host: partner.example}}]}]",
        );
    let got = Got::in_shop(&text);
    let to = ("outbound|8080||partner.example".to_owned(), "7s".to_owned());
    // The second is known beside the first.
    assert_eq!(got.route(ANYWHERE, 8080, "partner.example"), to);
    assert_eq!(got.route(ANYWHERE, 8080, "other.example"), to);
}

const FEED: &str = "hosts: [feed.example], location: MESH_EXTERNAL";

#[test]
fn entries_that_agree_are_one_service_with_the_ports_of_all() {
    let text = entry(
        "a",
        0,
        &format!("{FEED}, resolution: DNS, ports: [{{number: 80, name: http, protocol: HTTP}}]"),
    ) + &entry(
        "b",
        1,
        &format!(
            "{FEED}, resolution: DNS, ports: [{{number: 8443, name: tls, protocol: TLS}}, \
                 {{number: 8080, name: http, protocol: HTTP}}]"
        ),
    ) + &entry(
        "c",
        2,
        &format!("{FEED}, resolution: NONE, ports: [{{number: 9093, name: kafka, protocol: TLS}}]"),
    );
    let got = Got::in_shop(&text);
    for port in [80, 8443, 8080] {
        let cluster = format!("outbound|{port}||feed.example");
        // One name for two ports does not mix them up.
        assert_eq!(got.addresses(&cluster), [format!("feed.example:{port}")]);
        assert_eq!(got.clusters[&cluster]["type"], "STRICT_DNS");
    }
    assert_eq!(got.cluster_of(ANYWHERE, 80, "feed.example"), "outbound|80||feed.example");
    assert_eq!(got.cluster_of(ANYWHERE, 8080, "feed.example"), "outbound|8080||feed.example");
    let tls = got.connections(ANYWHERE, 8443);
    assert!(
        tls.contains(&("feed.example".to_owned(), "outbound|8443||feed.example".to_owned())),
        "{tls:?}"
    );
    // The one that differs in resolution has no part in it.
    assert!(!got.clusters.keys().any(|name| name.contains("9093")), "{:?}", got.clusters.keys());
}

#[test]
fn only_entries_that_agree_are_merged() {
    let ports =
        |number: u16| format!("ports: [{{number: {number}, name: p{number}, protocol: HTTP}}]");
    let first = entry("a", 0, &format!("{FEED}, resolution: DNS, {}", ports(80)));
    let second = format!("{FEED}, resolution: DNS, {}", ports(81));
    let has_both = |younger: String| {
        let got = Got::in_shop(&(first.clone() + &younger));
        assert!(got.clusters.contains_key("outbound|80||feed.example"), "{younger}");
        got.clusters.contains_key("outbound|81||feed.example")
    };
    assert!(has_both(entry("b", 1, &second)));
    assert!(has_both(entry("b", 1, &format!("{second}, exportTo: ['*']"))));
    assert!(!has_both(entry("b", 1, &second.replace("DNS", "NONE"))));
    assert!(!has_both(entry("b", 1, &second).replace("name: b,", "name: b, labels: {team: x},")));
    assert!(!has_both(entry(
        "b",
        1,
        &format!("{second}, workloadSelector: {{labels: {{app: x}}}}")
    )));
    assert!(!has_both(object("ServiceEntry", "b", "other", 1, &second)));
}

#[test]
fn what_is_exported_to_a_namespace_by_name_comes_before_what_all_see() {
    let port = |number: u16| format!("ports: [{{number: {number}, name: http, protocol: HTTP}}]");
    let text = entry("all", 0, &format!("{FEED}, resolution: DNS, {}", port(80)))
        + &entry("own", 1, &format!("{FEED}, resolution: DNS, exportTo: [.], {}", port(81)));
    let mesh = World::default().write("all.yaml", &text);
    let seen = |namespace: &str| {
        let got = Got::of(&mesh, namespace, &json!({}));
        [80, 81].map(|port| got.clusters.contains_key(&format!("outbound|{port}||feed.example")))
    };
    assert_eq!((seen("shop"), seen("other")), ([false, true], [true, false]));
}

#[test]
fn endpoints_of_all_entries_of_a_namespace_count() {
    let fixed = |name: &str, minute: u32, namespace: &str, address: &str, port: &str| {
        let spec = format!(
            "{FEED}, resolution: STATIC, endpoints: [{{address: {address}}}], ports: [{{{port}}}]"
        );
        object("ServiceEntry", name, namespace, minute, &spec)
    };
    let first = fixed("a", 0, "shop", "192.0.2.1", "number: 80, name: http, protocol: HTTP");
    let endpoints = |younger: String, port: u16| {
        Got::in_shop(&(first.clone() + &younger))
            .addresses(&format!("outbound|{port}||feed.example"))
    };
    let same = fixed("b", 1, "shop", "192.0.2.2", "number: 80, name: http, protocol: HTTP");
    assert_eq!(endpoints(same.clone(), 80), ["192.0.2.1:80", "192.0.2.2:80"]);
    // The number says which port is meant.
    let named = fixed(
        "b",
        1,
        "shop",
        "192.0.2.2",
        "number: 80, name: other, protocol: HTTP, targetPort: 8000",
    );
    assert_eq!(endpoints(named, 80), ["192.0.2.1:80", "192.0.2.2:8000"]);
    let other = fixed("b", 1, "shop", "192.0.2.2", "number: 8080, name: http, protocol: HTTP");
    assert_eq!(endpoints(other.clone(), 80), ["192.0.2.1:80"]);
    assert_eq!(endpoints(other, 8080), ["192.0.2.2:8080"]);
    // Those of one that is not merged count for the ports that there are.
    let apart = same.replace("name: b,", "name: b, labels: {team: x},");
    assert_eq!(endpoints(apart, 80), ["192.0.2.1:80", "192.0.2.2:80"]);
    assert_eq!(
        endpoints(
            fixed("b", 1, "other", "192.0.2.2", "number: 80, name: http, protocol: HTTP"),
            80
        ),
        ["192.0.2.1:80"]
    );
    // The same endpoint twice is one.
    assert_eq!(
        endpoints(fixed("b", 1, "shop", "192.0.2.1", "number: 80, name: http, protocol: HTTP"), 80),
        ["192.0.2.1:80"]
    );
}

#[test]
fn a_cluster_that_resolves_one_name_takes_the_oldest_entrys() {
    let turns = |name: &str, minute: u32, address: &str| {
        let spec = format!(
            "{FEED}, resolution: DNS_ROUND_ROBIN, endpoints: [{{address: {address}}}], \
             ports: [{{number: 80, name: http, protocol: HTTP}}]"
        );
        entry(name, minute, &spec)
    };
    let got = Got::in_shop(&(turns("b", 0, "z.example") + &turns("a", 1, "a.example")));
    assert_eq!(got.clusters["outbound|80||feed.example"]["type"], "LOGICAL_DNS");
    assert_eq!(got.addresses("outbound|80||feed.example"), ["z.example:80"]);
}

#[test]
fn each_entrys_addresses_are_listened_on_at_its_own_ports() {
    let tcp = |name: &str, minute: u32, addresses: &str, port: u16| {
        let port = format!("ports: [{{number: {port}, name: p{port}, protocol: TCP}}]");
        entry(name, minute, &format!("{FEED}, resolution: DNS, addresses: [{addresses}], {port}"))
    };
    let names = |a: (&str, u16), b: (&str, u16)| {
        let got = Got::in_shop(&(tcp("a", 0, a.0, a.1) + &tcp("b", 1, b.0, b.1)));
        got.listener_names().join(" ")
    };
    assert_eq!(names(("240.0.0.1", 9000), ("240.0.0.2", 9001)), "240.0.0.1_9000 240.0.0.2_9001");
    assert_eq!(names(("240.0.0.1", 9000), ("240.0.0.2", 9000)), "240.0.0.1_9000 240.0.0.2_9000");
    assert_eq!(names(("240.0.0.1", 9000), ("", 9001)), "0.0.0.0_9001 240.0.0.1_9000");
    assert_eq!(names(("", 9000), ("240.0.0.1", 9001)), "0.0.0.0_9000 240.0.0.1_9001");
}

const MORE: &str = "hosts: [api.shop.svc.cluster.local], resolution: STATIC, endpoints: [{address: 192.0.2.9}], \
                    ports: [{number: 1, name: http, protocol: HTTP}, {number: 9999, name: more, protocol: HTTP}]";

#[test]
fn an_entry_for_a_services_host_adds_endpoints_in_its_namespace() {
    let text = api(1) + &slice("api", "name: http, port: 80", &["10.1.0.3"]);
    let with = |namespace: &str| {
        Got::in_shop(&(text.clone() + &object("ServiceEntry", "vm", namespace, 0, MORE)))
    };
    // The port's name says which port is meant; the service keeps its own ports, however young it is.
    assert_eq!(with("shop").addresses(API), ["10.1.0.3:80", "192.0.2.9:1"]);
    assert_eq!(with("other").addresses(API), ["10.1.0.3:80"]);
    assert!(!with("shop").clusters.keys().any(|name| name.contains("9999")));
}

#[test]
fn what_changes_is_merged_anew() {
    let mut world = World::default();
    let addresses = |mesh: &Mesh| {
        let got = Got::of(mesh, "shop", &json!({}));
        got.clusters.contains_key(API).then(|| got.addresses(API))
    };
    let ip = |list: &[&str]| Some(list.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>());
    assert_eq!(addresses(&world.write("vm.yaml", &entry("vm", 0, MORE))), None);
    world.write("api.yaml", &api(1));
    assert_eq!(
        addresses(&world.write("slice.yaml", &slice("api", "name: http, port: 80", &["10.1.0.3"]))),
        ip(&["10.1.0.3:80", "192.0.2.9:1"])
    );
    assert_eq!(
        addresses(
            &world.write("vm.yaml", &entry("vm", 0, &MORE.replace("192.0.2.9", "192.0.2.8")))
        ),
        ip(&["10.1.0.3:80", "192.0.2.8:1"])
    );
    assert_eq!(
        addresses(&world.write("slice.yaml", &slice("api", "name: http, port: 80", &["10.1.0.4"]))),
        ip(&["10.1.0.4:80", "192.0.2.8:1"])
    );
    assert_eq!(addresses(&world.write("vm.yaml", "")), ip(&["10.1.0.4:80"]));
    world.write("vm.yaml", &entry("vm", 0, MORE));
    // Without the service the host is the entry's.
    let got = Got::of(&world.write("api.yaml", ""), "shop", &json!({}));
    assert_eq!(got.addresses("outbound|1||api.shop.svc.cluster.local"), ["192.0.2.9:1"]);
}

#[test]
fn a_proxy_gets_the_ports_at_which_merged_entries_reach_it() {
    let to = |name: &str, minute: u32, port: u16| {
        let spec = format!(
            "{FEED}, resolution: STATIC, endpoints: [{{address: 10.9.0.1}}], \
             ports: [{{number: {port}, name: http, protocol: HTTP}}]"
        );
        entry(name, minute, &spec)
    };
    let got = Got::in_shop(&(to("a", 0, 80) + &to("b", 1, 81)));
    for cluster in ["inbound|80||", "inbound|81||"] {
        assert!(got.clusters.contains_key(cluster), "{:?}", got.clusters.keys());
    }
}

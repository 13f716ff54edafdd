//! Checks the meaning of Istio objects on the resulting proxy configuration.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{ResourceType, Snapshot, SnapshotBuilder, SnapshotCache, SnapshotSubscription};
use crate::mesh::{Locality, Mesh, MeshBuilder, MeshConfig, NodeMetadata, Proxy};
use crate::source::loader::{Content, Loader};
use crate::store::Store;

fn object(kind: &str, name: &str, metadata: &str, spec: &str) -> String {
    let group = if kind == "Service" { "v1" } else { "networking.istio.io/v1" };
    format!(
        "---\napiVersion: {group}\nkind: {kind}\nmetadata: {{name: {name}, {metadata}}}\nspec: {spec}\n"
    )
}

fn service(name: &str, namespace: &str, ip: &str, ports: &str) -> String {
    object(
        "Service",
        name,
        &format!("namespace: {namespace}"),
        &format!("{{clusterIP: {ip}, ports: [{ports}]}}"),
    )
}

fn rule(kind: &str, name: &str, namespace: &str, minute: u32, spec: &str) -> String {
    let metadata =
        format!("namespace: {namespace}, creationTimestamp: '2026-01-01T00:{minute:02}:00Z'");
    object(kind, name, &metadata, spec)
}

/// `web` and `cart` in `shop`, each with port 80.
fn shop() -> String {
    service("web", "shop", "10.0.0.1", "{name: http, port: 80}")
        + &service("cart", "shop", "10.0.0.2", "{name: http, port: 80}")
}

fn mesh(text: &str) -> Mesh {
    let (mut store, mut dirty) = (Store::default(), BTreeSet::new());
    for change in Loader::new()
        .update([(PathBuf::from("mesh.yaml"), Content::Bytes(text.as_bytes().to_vec()))])
    {
        store.apply(change, &mut dirty);
    }
    let rejected: Vec<_> = store.rejected().collect();
    assert!(rejected.is_empty(), "{rejected:?}");
    MeshBuilder::new(MeshConfig::default()).update(&store, &dirty)
}

fn proxy(namespace: &str, pod: &str, labels: Value) -> Proxy {
    let id = format!("sidecar~10.9.0.1~{pod}.{namespace}~{namespace}.svc.cluster.local");
    Proxy::new(&id, NodeMetadata::from_json(&json!({ "LABELS": labels })), Locality::default())
        .unwrap()
}

fn seen_by(mesh: &Mesh, proxy: &Proxy) -> Snapshot {
    SnapshotBuilder::default().snapshot(mesh, &mesh.scope(proxy))
}

/// The configuration of `client-0` in `shop`.
fn seen(text: &str) -> Snapshot {
    seen_by(&mesh(text), &proxy("shop", "client-0", json!({"app": "client"})))
}

fn resource(snapshot: &Snapshot, kind: ResourceType, name: &str) -> Value {
    let all = crate::cli::translate::to_json(snapshot, kind).unwrap();
    all.into_iter().find(|item| item["name"] == name).unwrap_or(Value::Null)
}

/// The routes of a virtual host, `NAME:PORT`.
fn routes(snapshot: &Snapshot, virtual_host: &str) -> Vec<Value> {
    let (_, port) = virtual_host.rsplit_once(':').unwrap();
    let table = resource(snapshot, ResourceType::Route, port);
    let hosts = table["virtualHosts"].as_array().cloned().unwrap_or_default();
    let host = hosts.into_iter().find(|host| host["name"] == virtual_host);
    host.and_then(|host| host["routes"].as_array().cloned()).unwrap_or_default()
}

/// The clusters referenced by the routes of a virtual host, in order.
fn destinations(snapshot: &Snapshot, virtual_host: &str) -> Vec<String> {
    routes(snapshot, virtual_host)
        .iter()
        .map(|route| route["route"]["cluster"].as_str().unwrap_or("-").to_owned())
        .collect()
}

const WEB: &str = "web.shop.svc.cluster.local:80";

fn to(subset: &str) -> String {
    format!(
        "{{hosts: [web], http: [{{route: [{{destination: {{host: web, subset: {subset}}}}}]}}]}}"
    )
}

fn web(subset: &str) -> String {
    format!("outbound|80|{subset}|web.shop.svc.cluster.local")
}

#[test]
fn a_rule_without_a_route_for_a_proxy_has_no_effect() {
    let other = "{hosts: [web], http: [{match: [{sourceLabels: {app: other}}, {port: 81}, {sourceNamespace: pay}, \
                 {gateways: [edge]}], route: [{destination: {host: cart}}]}]}";
    let old = shop() + &rule("VirtualService", "old", "shop", 0, other);
    assert_eq!(destinations(&seen(&old), WEB), [web("")]);
    let both = old + &rule("VirtualService", "young", "shop", 1, &to("v2"));
    assert_eq!(destinations(&seen(&both), WEB), [web("v2")]);
    // Port 0 means unset.
    let any = "{hosts: [web], http: [{match: [{port: 0}], route: [{destination: {host: cart}}]}]}";
    let any = shop() + &rule("VirtualService", "a", "shop", 0, any);
    assert_eq!(destinations(&seen(&any), WEB), ["outbound|80||cart.shop.svc.cluster.local"]);
}

#[test]
fn an_exact_host_without_http_takes_precedence_over_a_wildcard() {
    let wildcard =
        "{hosts: ['*.shop.svc.cluster.local'], http: [{route: [{destination: {host: cart}}]}]}";
    let text = shop() + &rule("VirtualService", "all", "shop", 0, wildcard);
    assert_eq!(destinations(&seen(&text), WEB), ["outbound|80||cart.shop.svc.cluster.local"]);
    let tcp = "{hosts: [web], tcp: [{route: [{destination: {host: web}}]}]}";
    let text = text + &rule("VirtualService", "tcp", "shop", 1, tcp);
    assert_eq!(destinations(&seen(&text), WEB), [web("")]);
}

/// Routes for `web` to a subset, exported to these namespaces.
fn exported(namespaces: &str, subset: &str) -> String {
    format!(
        "{{hosts: [web.shop.svc.cluster.local], exportTo: [{namespaces}], http: [{{route: [{{destination: \
         {{host: web.shop.svc.cluster.local, subset: {subset}}}}}]}}]}}"
    )
}

#[test]
fn private_objects_of_a_namespace_come_first() {
    let all = shop() + &rule("VirtualService", "all", "shop", 0, &exported("'*'", "all"));
    assert_eq!(destinations(&seen(&all), WEB), [web("all")]);
    let named = all + &rule("VirtualService", "named", "pay", 1, &exported("shop", "named"));
    assert_eq!(destinations(&seen(&named), WEB), [web("named")]);
    let own = named + &rule("VirtualService", "own", "shop", 2, &exported("., pay", "own"));
    assert_eq!(destinations(&seen(&own), WEB), [web("own")]);
}

#[test]
fn hosts_besides_a_service_are_routed_on_its_ports() {
    let both = "{hosts: [web, web.example.com], http: [{route: [{destination: {host: web}}]}]}";
    let alone = "{hosts: [alone.example.com], http: [{route: [{destination: {host: web}}]}]}";
    let text = service("web", "shop", "10.0.0.1", "{name: http, port: 8080}, {name: tcp, port: 9}")
        + &service("cart", "shop", "10.0.0.2", "{name: http, port: 80}")
        + &rule("VirtualService", "a", "shop", 0, both)
        + &rule("VirtualService", "b", "shop", 1, alone);
    let snapshot = seen(&text);
    assert_eq!(
        destinations(&snapshot, "web.example.com:8080"),
        ["outbound|8080||web.shop.svc.cluster.local"]
    );
    assert!(destinations(&snapshot, "alone.example.com:8080").is_empty());
    assert_eq!(destinations(&snapshot, "alone.example.com:80").len(), 1);
}

/// The domains of a virtual host in a route configuration, as JSON.
fn domains(table: &Value, virtual_host: &str) -> String {
    let mut hosts = table["virtualHosts"].as_array().unwrap().iter();
    hosts.find(|host| host["name"] == virtual_host).unwrap()["domains"].to_string()
}

#[test]
fn a_rule_for_a_short_name_takes_it_from_the_service() {
    let text = shop()
        + &rule(
            "VirtualService",
            "a",
            "pay",
            0,
            "{hosts: [web.shop], http: [{route: [{destination: {host: cart.shop.svc.cluster.local}}]}]}",
        );
    let snapshot = seen(&text);
    let table = resource(&snapshot, ResourceType::Route, "80");
    assert_eq!(domains(&table, "web.shop:80"), "[\"web.shop\"]");
    let web_domains = domains(&table, WEB);
    assert!(web_domains.contains("\"web\""), "{web_domains}");
    assert!(!web_domains.contains("\"web.shop\""), "{web_domains}");
    // An alias counts as a separate name too.
    let text = shop()
        + &object(
            "Service",
            "alias",
            "namespace: shop",
            "{type: ExternalName, externalName: cart.shop.svc.cluster.local}",
        )
        + &rule(
            "VirtualService",
            "a",
            "shop",
            0,
            "{hosts: [alias], http: [{route: [{destination: {host: web}}]}]}",
        );
    assert_eq!(destinations(&seen(&text), "alias.shop.svc.cluster.local:80"), [web("")]);
}

#[test]
fn a_route_to_an_external_name_resolves_to_its_target() {
    let text = shop()
        + &object(
            "Service",
            "alias",
            "namespace: shop",
            "{type: ExternalName, externalName: cart.shop.svc.cluster.local}",
        )
        + &rule(
            "VirtualService",
            "a",
            "shop",
            0,
            "{hosts: [web], http: [{route: [{destination: {host: alias, port: {number: 80}}}]}], \
             tcp: [{route: [{destination: {host: alias}}]}]}",
        )
        + &object(
            "Sidecar",
            "default",
            "namespace: shop",
            "{egress: [{hosts: [./web.shop.svc.cluster.local]}]}",
        );
    let snapshot = seen(&text);
    let cart = "outbound|80||cart.shop.svc.cluster.local";
    assert_eq!(destinations(&snapshot, WEB), [cart]);
    assert!(snapshot.get(ResourceType::Cluster).contains_key(cart), "the Sidecar hides it");
}

fn only_route(http: &str) -> Value {
    let text = shop()
        + &rule("VirtualService", "a", "shop", 0, &format!("{{hosts: [web], http: [{http}]}}"));
    let mut all = routes(&seen(&text), WEB);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[test]
fn a_redirect_omits_the_default_port_of_its_scheme() {
    for (redirect, port) in [
        ("{authority: a, derivePort: FROM_REQUEST_PORT}", json!(null)),
        ("{authority: a, scheme: https, derivePort: FROM_REQUEST_PORT}", json!(80)),
        ("{authority: a, scheme: https, derivePort: FROM_PROTOCOL_DEFAULT}", json!(null)),
        ("{authority: a, scheme: https, port: 443}", json!(null)),
        ("{authority: a, port: 443}", json!(443)),
        ("{authority: a, port: 80}", json!(null)),
    ] {
        let route = only_route(&format!("{{redirect: {redirect}}}"));
        assert_eq!(
            route["redirect"].get("portRedirect").cloned().unwrap_or_default(),
            port,
            "{redirect}"
        );
    }
}

/// The configuration of Envoy's fault filter for an `HTTPFaultInjection`.
fn fault(text: &str) -> Value {
    let route = only_route(&format!("{{fault: {text}, route: [{{destination: {{host: web}}}}]}}"));
    route["typedPerFilterConfig"]["envoy.filters.http.fault"].clone()
}

#[test]
fn a_fault_without_a_percentage_affects_no_request() {
    let none = fault("{delay: {fixedDelay: 1s}, abort: {httpStatus: 500}}");
    for what in ["delay", "abort"] {
        assert!(none[what]["percentage"].get("numerator").is_none_or(|share| share == 0), "{none}");
    }
    let whole = fault("{delay: {fixedDelay: 1s, percent: 7}}");
    assert_eq!(whole["delay"]["percentage"]["numerator"], 70_000);
}

/// What the route replaces the authority with.
fn authority(http: &str) -> Value {
    only_route(http)["route"]["hostRewriteLiteral"].clone()
}

#[test]
fn the_routes_authority_takes_precedence_over_its_destinations() {
    let to = "route: [{destination: {host: web}, headers: {request: {set: {host: inner}}}}]";
    assert_eq!(authority(&format!("{{{to}}}")), "inner");
    assert_eq!(
        authority(&format!("{{headers: {{request: {{set: {{host: outer}}}}}}, {to}}}")),
        "outer"
    );
    assert_eq!(authority(&format!("{{rewrite: {{authority: outer}}, {to}}}")), "outer");
}

#[test]
fn a_delegates_routes_inherit_unset_fields_from_the_root() {
    let root = "{hosts: [web], http: [{match: [{uri: {prefix: /}}], mirror: {host: cart}, \
                headers: {request: {set: {x-from: root}}}, delegate: {name: leaf, namespace: pay}}]}";
    let leaf = "{http: [{mirrors: [{destination: {host: web.shop.svc.cluster.local}, percentage: {value: 5}}], \
                route: [{destination: {host: web.shop.svc.cluster.local}}]}]}";
    let text = shop()
        + &rule("VirtualService", "root", "shop", 0, root)
        + &rule("VirtualService", "leaf", "pay", 1, leaf);
    let all = routes(&seen(&text), WEB);
    let mirrors = all[0]["route"]["requestMirrorPolicies"].as_array().unwrap();
    let clusters: Vec<_> =
        mirrors.iter().map(|mirror| mirror["cluster"].as_str().unwrap()).collect();
    assert_eq!(
        clusters,
        ["outbound|80||cart.shop.svc.cluster.local", "outbound|80||web.shop.svc.cluster.local"]
    );
    assert_eq!(all[0]["requestHeadersToAdd"][0]["header"]["key"], "x-from");
    // A direct response of the root also replaces the action of its delegate's routes.
    let root = "{hosts: [web], http: [{directResponse: {status: 418}, delegate: {name: leaf, namespace: pay}}]}";
    let text = shop()
        + &rule("VirtualService", "root", "shop", 0, root)
        + &rule("VirtualService", "leaf", "pay", 1, leaf);
    assert_eq!(routes(&seen(&text), WEB)[0]["directResponse"]["status"], 418);
}

#[test]
fn retries_of_a_hashed_request_avoid_hosts_only_on_request() {
    let hash = rule(
        "DestinationRule",
        "web",
        "shop",
        0,
        "{host: web, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}",
    );
    for (retries, count) in
        [("", 0), ("retries: {attempts: 3, retryIgnorePreviousHosts: true},", 1)]
    {
        let spec = format!(
            "{{hosts: [web], http: [{{{retries} route: [{{destination: {{host: web}}}}]}}]}}"
        );
        let text = shop() + &hash + &rule("VirtualService", "a", "shop", 0, &spec);
        let route = &routes(&seen(&text), WEB)[0]["route"];
        assert_eq!(route["hashPolicy"][0]["header"]["headerName"], "x-user");
        let predicates = route["retryPolicy"]["retryHostPredicate"].as_array().map_or(0, Vec::len);
        assert_eq!(predicates, count, "{retries}");
    }
}

/// The connect timeout of `web`'s cluster shows which rule is used.
fn timeout(text: &str, namespace: &str, labels: &Value) -> Value {
    let snapshot = seen_by(&mesh(text), &proxy(namespace, "client-0", labels.clone()));
    resource(&snapshot, ResourceType::Cluster, &web(""))["connectTimeout"].clone()
}

fn timeout_rule(name: &str, namespace: &str, minute: u32, seconds: u32, more: &str) -> String {
    let spec = format!(
        "{{host: web.shop.svc.cluster.local, trafficPolicy: {{connectionPool: {{tcp: {{connectTimeout: {seconds}s}}}}}}{more}}}"
    );
    rule("DestinationRule", name, namespace, minute, &spec)
}

#[test]
fn destination_rules_are_looked_up_like_in_istio() {
    let app = json!({"app": "client"});
    let root = shop() + &timeout_rule("root", "istio-system", 0, 1, "");
    assert_eq!(timeout(&root, "pay", &app), "1s");
    // A rule with a workload selector applies only in its own namespace, so other namespaces continue the lookup.
    let selecting = root.clone()
        + &timeout_rule("some", "shop", 1, 2, ", workloadSelector: {matchLabels: {app: client}}");
    assert_eq!(timeout(&selecting, "pay", &app), "1s");
    assert_eq!(timeout(&selecting, "shop", &app), "2s");
    // Other clients find no rule in that namespace.
    assert_eq!(timeout(&selecting, "shop", &json!({"app": "other"})), "10s");
    let own = root + &timeout_rule("own", "shop", 1, 3, "");
    assert_eq!(timeout(&own, "pay", &app), "3s");
    // An exported rule of the root namespace has no priority for proxies of that namespace.
    assert_eq!(timeout(&own, "istio-system", &app), "3s");
    let private = own + &timeout_rule("private", "istio-system", 2, 4, ", exportTo: [.]");
    assert_eq!(timeout(&private, "istio-system", &app), "4s");
    assert_eq!(timeout(&private, "pay", &app), "3s");
}

#[test]
fn among_rules_with_different_visibility_the_newest_wins() {
    let text = shop()
        + &timeout_rule("all", "shop", 0, 1, "")
        + &timeout_rule("own", "shop", 1, 2, ", exportTo: [.]");
    assert_eq!(timeout(&text, "shop", &json!({})), "2s");
    assert_eq!(timeout(&text, "pay", &json!({})), "1s");
    // Rules with the same visibility are merged.
    let subset = rule("DestinationRule", "more", "shop", 2, "{host: web, subsets: [{name: v1}]}");
    let snapshot = seen_by(&mesh(&(text + &subset)), &proxy("pay", "client-0", json!({})));
    assert_eq!(resource(&snapshot, ResourceType::Cluster, &web("v1"))["connectTimeout"], "1s");
}

#[test]
fn only_the_most_specific_exported_host_applies() {
    let wildcard = "{host: '*.shop.svc.cluster.local', trafficPolicy: {connectionPool: {tcp: {connectTimeout: 5s}}}}";
    let text = shop() + &rule("DestinationRule", "all", "shop", 0, wildcard);
    assert_eq!(timeout(&text, "pay", &json!({})), "5s");
    let text = text + &timeout_rule("exact", "shop", 1, 6, ", exportTo: [third]");
    assert_eq!(timeout(&text, "third", &json!({})), "6s");
    assert_eq!(timeout(&text, "pay", &json!({})), "10s");
}

#[test]
fn a_sidecar_of_the_root_namespace_refers_to_each_proxys_own_namespace() {
    let text = shop()
        + &service("bill", "pay", "10.0.0.3", "{name: http, port: 80}")
        + &object("Sidecar", "default", "namespace: istio-system", "{egress: [{hosts: [./*]}]}");
    let snapshot = seen(&text);
    assert_eq!(destinations(&snapshot, WEB), [web("")]);
    assert!(
        !snapshot
            .get(ResourceType::Cluster)
            .contains_key("outbound|80||bill.pay.svc.cluster.local")
    );
}

#[test]
fn a_port_with_its_own_egress_listener_is_handled_only_by_it() {
    let ports = "{name: http, port: 80}, {name: http-b, port: 81}";
    let text = service("web", "shop", "10.0.0.1", ports)
        + &service("bill", "pay", "10.0.0.3", ports)
        + &rule(
            "VirtualService",
            "a",
            "shop",
            0,
            "{hosts: [bill.pay.svc.cluster.local], http: [{route: [{destination: {host: web}}]}]}",
        )
        + &object(
            "Sidecar",
            "default",
            "namespace: shop",
            "{egress: [{port: {number: 80, protocol: HTTP, name: a}, hosts: [pay/*]}, {hosts: ['*/*']}]}",
        );
    let snapshot = seen(&text);
    assert!(routes(&snapshot, WEB).is_empty(), "shop's hosts are not among those of port 80");
    assert_eq!(destinations(&snapshot, "web.shop.svc.cluster.local:81").len(), 1);
    // The listener of port 80 sees no VirtualService of shop; the listener of all other ports does.
    assert_eq!(
        destinations(&snapshot, "bill.pay.svc.cluster.local:80"),
        ["outbound|80||bill.pay.svc.cluster.local"]
    );
    assert_eq!(
        destinations(&snapshot, "bill.pay.svc.cluster.local:81"),
        ["outbound|81||web.shop.svc.cluster.local"]
    );
    // Routes may reference every service that any listener imports.
    assert!(
        snapshot.get(ResourceType::Cluster).contains_key("outbound|80||web.shop.svc.cluster.local")
    );
}

/// The cluster for HTTP requests and connections to unknown hosts.
fn cluster_for_unknown_hosts(sidecar: &str) -> String {
    let text = shop()
        + &service("out", "edge", "10.0.0.9", "{name: tcp, port: 8443}")
        + &object("Sidecar", "default", "namespace: shop", sidecar);
    let snapshot = seen(&text);
    assert!(!destinations(&snapshot, WEB).is_empty());
    let table = resource(&snapshot, ResourceType::Route, "80");
    let mut hosts = table["virtualHosts"].as_array().unwrap().iter();
    let all = hosts.find(|host| host["name"] == "allow_any").unwrap();
    let http = all["routes"][0]["route"]["cluster"].as_str().unwrap().to_owned();
    for name in ["virtualOutbound", "0.0.0.0_80"] {
        let listener = resource(&snapshot, ResourceType::Listener, name);
        let last = listener.get("defaultFilterChain").unwrap_or(&listener["filterChains"][1]);
        assert_eq!(last["filters"][0]["typedConfig"]["cluster"].as_str(), Some(&*http), "{name}");
    }
    assert!(snapshot.get(ResourceType::Cluster).contains_key(&http));
    http
}

fn sidecar_with_egress_proxy(port: u16) -> String {
    format!(
        "{{egress: [{{hosts: [./*]}}], outboundTrafficPolicy: {{mode: ALLOW_ANY, egressProxy: \
         {{host: out.edge.svc.cluster.local, port: {{number: {port}}}}}}}}}"
    )
}

#[test]
fn unknown_hosts_go_through_the_egress_proxy() {
    for (sidecar, cluster) in [
        ("{egress: [{hosts: [./*]}]}", "PassthroughCluster"),
        (&sidecar_with_egress_proxy(8443), "outbound|8443||out.edge.svc.cluster.local"),
        (&sidecar_with_egress_proxy(1), "BlackHoleCluster"),
    ] {
        assert_eq!(cluster_for_unknown_hosts(sidecar), cluster);
    }
}

/// How many concurrent requests a proxy passes to its own port 8080.
fn max_inbound_requests(text: &str) -> Value {
    let cluster = resource(&seen(text), ResourceType::Cluster, "inbound|8080||");
    cluster["circuitBreakers"]["thresholds"][0]["maxRequests"].clone()
}

#[test]
fn a_workload_applies_the_limits_of_its_clients() {
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-0, namespace: shop, \
                 labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\n\
                 endpoints: [{addresses: [10.9.0.1]}]\n";
    let text = shop() + slice;
    assert_eq!(max_inbound_requests(&text), u32::MAX);
    let pool = "connectionPool: {http: {http2MaxRequests: 7, h2UpgradePolicy: UPGRADE}}";
    let selecting = format!(
        "{{host: web, workloadSelector: {{matchLabels: {{app: client}}}}, trafficPolicy: {{{pool}}}}}"
    );
    assert_eq!(
        max_inbound_requests(
            &(text.clone() + &rule("DestinationRule", "a", "shop", 0, &selecting))
        ),
        u32::MAX
    );
    let text = text
        + &rule(
            "DestinationRule",
            "b",
            "shop",
            1,
            &format!("{{host: web, trafficPolicy: {{{pool}}}}}"),
        );
    assert_eq!(max_inbound_requests(&text), 7);
    // The HTTP version for clients does not affect inbound traffic.
    let cluster = resource(&seen(&text), ResourceType::Cluster, "inbound|8080||");
    assert!(cluster.get("typedExtensionProtocolOptions").is_none(), "{cluster}");
    let own = "{inboundConnectionPool: {http: {http2MaxRequests: 9}}}";
    assert_eq!(
        max_inbound_requests(&(text + &object("Sidecar", "default", "namespace: shop", own))),
        9
    );
}

#[test]
fn a_subset_does_not_inherit_a_tunnel() {
    let policies = "{host: web, trafficPolicy: {tunnel: {targetHost: far.example.com, targetPort: 1}}, \
                    subsets: [{name: v1}, {name: v2, trafficPolicy: \
                    {tunnel: {targetHost: far.example.com, targetPort: 2}}}]}";
    for (subset, end) in
        [("", Some("far.example.com:1")), ("v1", None), ("v2", Some("far.example.com:2"))]
    {
        let route = format!(
            "{{hosts: [web], tcp: [{{route: [{{destination: {{host: web, subset: '{subset}'}}}}]}}]}}"
        );
        let text = service("web", "shop", "10.0.0.1", "{name: tcp, port: 9000}")
            + &rule("DestinationRule", "web", "shop", 0, policies)
            + &rule("VirtualService", "web", "shop", 0, &route);
        let listener = resource(&seen(&text), ResourceType::Listener, "10.0.0.1_9000");
        let proxy = &listener["filterChains"][0]["filters"][0]["typedConfig"];
        assert_eq!(proxy["tunnelingConfig"]["hostname"].as_str(), end, "{listener}");
    }
}

#[test]
fn grpc_web_is_translated_to_grpc() {
    let text = service("web", "shop", "10.0.0.1", "{name: grpc-web, port: 80}");
    let snapshot = seen(&text);
    let cluster = resource(&snapshot, ResourceType::Cluster, &web(""));
    let options = &cluster["typedExtensionProtocolOptions"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
    assert!(options["explicitHttpConfig"]["http2ProtocolOptions"].is_object(), "{cluster}");
    let listener = resource(&snapshot, ResourceType::Listener, "0.0.0.0_80").to_string();
    assert!(listener.contains("envoy.filters.http.grpc_web"), "{listener}");
    let listener = resource(&seen(&shop()), ResourceType::Listener, "0.0.0.0_80").to_string();
    assert!(!listener.contains("envoy.filters.http.grpc_web"), "{listener}");
}

/// Resources of one type that two snapshots have in common in memory, and how many the first has.
fn shared(kind: ResourceType, first: &Snapshot, other: &Snapshot) -> (usize, usize) {
    let (first, other) = (first.get(kind), other.get(kind));
    let same = first
        .iter()
        .filter(|(name, resource)| other.get(name).is_some_and(|same| Arc::ptr_eq(resource, same)));
    (same.count(), first.len())
}

async fn join(
    cache: &SnapshotCache,
    namespace: &str,
    pod: &str,
    labels: Value,
) -> SnapshotSubscription {
    cache.subscribe(proxy(namespace, pod, labels)).await.unwrap()
}

fn latest(subscription: &SnapshotSubscription) -> Arc<Snapshot> {
    subscription.snapshots.borrow().clone().unwrap()
}

#[tokio::test]
async fn proxies_of_one_scope_share_everything_and_other_proxies_share_equal_parts() {
    let (cache, _ended) = SnapshotCache::start().unwrap();
    let text = shop()
        + &rule(
            "DestinationRule",
            "web",
            "shop",
            0,
            "{host: web, subsets: [{name: v1, labels: {version: v1}}]}",
        )
        + &rule(
            "VirtualService",
            "a",
            "shop",
            0,
            "{hosts: [web], http: [{match: [{sourceLabels: {tier: gold}}], \
                 route: [{destination: {host: cart}}]}, {route: [{destination: {host: web, subset: v1}}]}]}",
        );
    let state = mesh(&text);
    cache.publish(state.clone(), 1.into()).await.unwrap();
    // No rule reads `app`, so it cannot distinguish the two.
    let (a, b) = (
        join(&cache, "shop", "a", json!({"app": "a"})).await,
        join(&cache, "shop", "b", json!({"app": "b"})).await,
    );
    assert!(Arc::ptr_eq(&latest(&a), &latest(&b)));
    assert_eq!(cache.stats().scopes, 1);
    let encoded = cache.stats().parts;
    let gold = join(&cache, "shop", "c", json!({"tier": "gold"})).await;
    assert!(!Arc::ptr_eq(&latest(&a), &latest(&gold)));
    let pay = join(&cache, "pay", "d", json!({})).await;
    assert_eq!(cache.stats().scopes, 3);
    for kind in [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Listener] {
        for other in [&gold, &pay] {
            let (same, all) = shared(kind, &latest(&a), &latest(other));
            assert!(same == all && all > 0, "{same} of {all} {kind:?} are shared");
        }
    }
    // The gold client has one more virtual host; for the other namespace both differ, because short names differ.
    assert_eq!(cache.stats().parts, encoded + 1 + 2);
    // The same holds after a change to one of the services.
    cache.publish(state.clone(), 2.into()).await.unwrap();
    assert!(Arc::ptr_eq(&latest(&a), &latest(&b)));
    assert_eq!(cache.stats().scopes, 3);
    drop((gold, pay));
    assert_eq!(cache.stats().proxies, 2);
    // It is answered after unused scopes were dropped.
    drop(join(&cache, "shop", "e", json!({})).await);
    assert_eq!((cache.stats().scopes, cache.stats().parts), (1, encoded));
}

/// A mesh with a VirtualService that is exported to these namespaces.
fn mesh_exporting_to(namespaces: &str) -> Mesh {
    let spec = format!(
        "{{hosts: [a.example.com], exportTo: [{namespaces}], http: [{{redirect: {{uri: /x}}}}]}}"
    );
    mesh(&(shop() + &rule("VirtualService", "a", "shop", 0, &spec)))
}

fn encoded_routes(snapshot: &Snapshot) -> Vec<Vec<u8>> {
    snapshot.get(ResourceType::Route).values().map(|routes| routes.bytes()).collect()
}

#[tokio::test]
async fn namespaces_that_no_object_names_share_one_scope() {
    let (cache, _ended) = SnapshotCache::start().unwrap();
    cache.publish(mesh_exporting_to("'*'"), 1.into()).await.unwrap();
    let mut subscriptions = Vec::new();
    for n in 0..20 {
        let namespace = format!("ghost-{n}");
        subscriptions.push(join(&cache, &namespace, "a", json!({})).await);
    }
    assert_eq!(cache.stats().scopes, 1);
    // An object names one of them, and then no longer does.
    cache.publish(mesh_exporting_to("ghost-7"), 2.into()).await.unwrap();
    assert_eq!(cache.stats().scopes, 2);
    let [a, named, b] = [6, 7, 8].map(|n| encoded_routes(&latest(&subscriptions[n])));
    assert_ne!(a, named);
    assert_eq!(a, b);
    cache.publish(mesh_exporting_to("'*'"), 3.into()).await.unwrap();
    assert_eq!(cache.stats().scopes, 1);
    let [a, named] = [6, 7].map(|n| encoded_routes(&latest(&subscriptions[n])));
    assert_eq!(a, named);
}

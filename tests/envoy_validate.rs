//! Compares the violations reported by `weir::envoy_validate` with a real Envoy, and checks everything that weir sends.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use weir::envoy::EnvoyBinary;
use weir::envoy_validate::{check, re2};
use weir::mesh::{Locality, MeshBuilder, MeshConfig, NodeMetadata, Proxy};
use weir::proto_json::{bytes_to_json, json_to_any};
use weir::snapshot::{ResourceType, Snapshot, SnapshotBuilder};
use weir::store::Store;

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "envoy.config.listener.v3.Listener";
const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";
const MOST: u32 = u32::MAX;

/// A test case: a cluster or a listener, and whether it is valid.
struct Case {
    name: String,
    kind: &'static str,
    resource: Value,
    fine: bool,
}

fn cluster(name: &str, fine: bool, fields: Value) -> Case {
    let mut resource = json!({"name": "c", "connect_timeout": "1s", "type": "STATIC"});
    merge(&mut resource, fields);
    Case { name: name.to_owned(), kind: CLUSTER, resource, fine }
}

fn listener(name: &str, fine: bool, fields: Value) -> Case {
    let mut resource = json!({"name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}});
    merge(&mut resource, fields);
    Case { name: name.to_owned(), kind: LISTENER, resource, fine }
}

fn merge(into: &mut Value, fields: Value) {
    let Value::Object(fields) = fields else { panic!("{fields} is not an object") };
    into.as_object_mut().unwrap().extend(fields);
}

fn routes(name: &str, fine: bool, hosts: Value) -> Case {
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "route_config": {"name": "r", "virtual_hosts": hosts},
        "http_filters": [{"name": "router", "typed_config":
            {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    });
    listener(
        name,
        fine,
        json!({"filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}]}),
    )
}

fn route(name: &str, fine: bool, fields: Value) -> Case {
    let mut route = json!({"match": {"prefix": "/"}});
    merge(&mut route, fields);
    routes(name, fine, json!([{"name": "v", "domains": ["*"], "routes": [route]}]))
}

fn action(name: &str, fine: bool, fields: Value) -> Case {
    route(name, fine, json!({"route": fields}))
}

fn header(name: &str, fine: bool, key: &str, value: &str) -> Case {
    let add = json!([{"header": {"key": key, "value": value}}]);
    route(name, fine, json!({"route": {"cluster": "c"}, "request_headers_to_add": add}))
}

fn chains(name: &str, fine: bool, matches: &[Value]) -> Case {
    let tcp = json!({"name": "tcp", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "t", "cluster": "c"}});
    let chains = matches.iter().map(
        |request_match| json!({"filter_chain_match": request_match, "filters": [tcp.clone()]}),
    );
    listener(name, fine, json!({"filter_chains": chains.collect::<Vec<_>>()}))
}

fn named(name: &str, fine: bool, names: &[&str]) -> Case {
    let mut case = chains(name, fine, &vec![json!({}); names.len()]);
    for (at, name) in names.iter().enumerate() {
        case.resource["filter_chains"][at]["name"] = json!(name);
    }
    case.resource["filter_chain_matcher"] = json!({"on_no_match": {"action": {"name": "action", "typed_config":
        {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "a"}}}});
    case
}

fn endpoints(name: &str, fine: bool, localities: Value) -> Case {
    cluster(name, fine, json!({"load_assignment": {"cluster_name": "c", "endpoints": localities}}))
}

fn endpoint(address: &str) -> Value {
    json!({"endpoint": {"address": {"socket_address": {"address": address, "port_value": 80}}}})
}

fn weights(weights: &[u32]) -> Value {
    let clusters: Vec<_> =
        weights.iter().map(|weight| json!({"name": "c", "weight": weight})).collect();
    json!({"weighted_clusters": {"clusters": clusters}})
}

fn cases() -> Vec<Case> {
    let host = |name: &str, domains: &[&str]| json!({"name": name, "domains": domains});
    let retry = |base: &str, max: &str| json!({"cluster": "c", "retry_policy": {"retry_back_off": {"base_interval": base, "max_interval": max}}});
    let direct = |size: usize| json!({"direct_response": {"status": 200, "body": {"inline_string": "x".repeat(size)}}});
    let range = |ip: &str, length: u32| json!({"prefix_ranges": [{"address_prefix": ip, "prefix_len": length}]});
    let ring = |fields: Value| json!({"lb_policy": "RING_HASH", "ring_hash_lb_config": fields});
    let maglev =
        |size: u32| json!({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": size}});
    let policy = |name: &str, mut fields: Value| {
        let kind = if name == "maglev" { "Maglev" } else { "RingHash" };
        merge(
            &mut fields,
            json!({"@type": format!("type.googleapis.com/envoy.extensions.load_balancing_policies.{name}.v3.{kind}")}),
        );
        let extension = json!({"name": format!("envoy.load_balancing_policies.{name}"), "typed_config": fields});
        json!({"load_balancing_policy": {"policies": [{"typed_extension_config": extension}]}})
    };
    let dns = |hosts: &[&str]| {
        let hosts: Vec<_> = hosts.iter().map(|host| endpoint(host)).collect();
        json!({"type": "LOGICAL_DNS", "load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": hosts}]}})
    };
    vec![
        routes("virtual hosts of one name", true, json!([host("a", &["x"]), host("a", &["y"])])),
        routes("a domain twice", false, json!([host("a", &["x"]), host("b", &["X"])])),
        routes("a domain twice in one host", false, json!([host("a", &["x", "x"])])),
        routes("two catch-alls", false, json!([host("a", &["*"]), host("b", &["*"])])),
        routes("wildcards on either side", true, json!([host("a", &["x*", "*x", "a*b"])])),
        routes("no domain", false, json!([host("a", &[])])),
        routes("no name", false, json!([host("", &["*"])])),
        action("weights of 0", false, weights(&[0, 0])),
        action("one weight of 0", true, weights(&[0, 1])),
        action("weights over 32 bits", false, weights(&[MOST, 1])),
        action("weights of 32 bits", true, weights(&[MOST - 1, 1])),
        action("no weight", false, json!({"weighted_clusters": {"clusters": [{"name": "c"}]}})),
        action(
            "weight without a name",
            false,
            json!({"weighted_clusters": {"clusters": [{"weight": 1}]}}),
        ),
        header("header", true, "a", "b c\u{1}"),
        header("header name with a space", true, "a b", "c"),
        header("header name with a line end", false, "a\nb", "c"),
        header("header value with a line end", false, "a", "b\nc"),
        header("header value with a percent sign", false, "a", "100%"),
        header("header value with two", true, "a", "100%%"),
        header(
            "header value with a command",
            true,
            "a",
            "%REQ(x)% and %DOWNSTREAM_REMOTE_ADDRESS%",
        ),
        header("header value with a command in lower case", false, "a", "%foo%"),
        header("header value with a command that nobody knows", false, "a", "%FOO%"),
        header("header value with a command without what it needs", false, "a", "%REQ%"),
        header("header value with a command with a length too many", false, "a", "%HOSTNAME:3%"),
        header("header :authority", false, ":authority", "a"),
        header("header Host", false, "Host", "a"),
        route(
            "removal of host",
            false,
            json!({"route": {"cluster": "c"}, "request_headers_to_remove": ["hoSt"]}),
        ),
        route(
            "removal of :path",
            false,
            json!({"route": {"cluster": "c"}, "response_headers_to_remove": [":path"]}),
        ),
        action("back-off", true, retry("1s", "1s")),
        action("back-off that shrinks", false, retry("2s", "1s")),
        action("back-off that shrinks within a millisecond", true, retry("0.0019s", "0.0010s")),
        action(
            "mirror to nothing",
            false,
            json!({"cluster": "c", "request_mirror_policies": [{}]}),
        ),
        action(
            "mirror",
            true,
            json!({"cluster": "c", "request_mirror_policies": [{"cluster": "c"}]}),
        ),
        action(
            "two rewrites",
            false,
            json!({"cluster": "c", "prefix_rewrite": "/a", "regex_rewrite": {"pattern": {"regex": "a"}}}),
        ),
        action(
            "an upgrade twice",
            false,
            json!({"cluster": "c", "upgrade_configs": [{"upgrade_type": "a"}, {"upgrade_type": "A"}]}),
        ),
        action("a negative timeout", false, json!({"cluster": "c", "timeout": "-1s"})),
        action("no timeout", true, json!({"cluster": "c", "timeout": "0s"})),
        route("direct response of 4097 bytes", false, direct(4097)),
        route("direct response of 4096 bytes", true, direct(4096)),
        route(
            "direct response with status 700",
            false,
            json!({"direct_response": {"status": 700}}),
        ),
        route("no action", false, json!({})),
        route(
            "path prefix",
            true,
            json!({"match": {"path_separated_prefix": "/a"}, "route": {"cluster": "c"}}),
        ),
        route(
            "path prefix with /",
            false,
            json!({"match": {"path_separated_prefix": "/a/"}, "route": {"cluster": "c"}}),
        ),
        endpoints(
            "priorities with gaps",
            true,
            json!([{"priority": 3, "lb_endpoints": [endpoint("1.1.1.1")]}]),
        ),
        endpoints(
            "priority 129",
            false,
            json!([{"priority": 129, "lb_endpoints": [endpoint("1.1.1.1")]}]),
        ),
        endpoints(
            "an endpoint twice",
            true,
            json!([{"lb_endpoints": [endpoint("1.1.1.1"), endpoint("1.1.1.1")]}]),
        ),
        endpoints(
            "a locality twice",
            true,
            json!([{"lb_endpoints": [endpoint("1.1.1.1")]}, {"lb_endpoints": [endpoint("1.1.1.2")]}]),
        ),
        endpoints(
            "a name for an address",
            false,
            json!([{"lb_endpoints": [endpoint("a.example")]}]),
        ),
        endpoints("no address", false, json!([{"lb_endpoints": [{}]}])),
        cluster("no name", false, json!({"name": ""})),
        cluster("connect timeout 0", false, json!({"connect_timeout": "0s"})),
        cluster("ring", true, ring(json!({"minimum_ring_size": 10, "maximum_ring_size": 10}))),
        cluster(
            "ring with swapped ends",
            false,
            ring(json!({"minimum_ring_size": 100, "maximum_ring_size": 10})),
        ),
        cluster("ring below the default", false, ring(json!({"maximum_ring_size": 100}))),
        cluster("ring above the default", false, ring(json!({"minimum_ring_size": 8_388_609}))),
        cluster("maglev", true, maglev(5_000_011)),
        cluster("maglev without a prime", false, maglev(100)),
        cluster("maglev with too large a prime", false, maglev(5_000_017)),
        cluster(
            "original destination",
            true,
            json!({"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}),
        ),
        cluster("original destination in turn", false, json!({"type": "ORIGINAL_DST"})),
        cluster(
            "a cluster's own policy that it lacks",
            false,
            json!({"lb_policy": "CLUSTER_PROVIDED"}),
        ),
        cluster("logical DNS without a host", false, json!({"type": "LOGICAL_DNS"})),
        cluster(
            "ejection of 101 %",
            false,
            json!({"outlier_detection": {"max_ejection_percent": 101}}),
        ),
        cluster(
            "ejection that is too long",
            false,
            json!({"outlier_detection": {"base_ejection_time": "10s", "max_ejection_time": "1s"}}),
        ),
        cluster(
            "long ejection",
            true,
            json!({"outlier_detection": {"base_ejection_time": "400s"}}),
        ),
        cluster(
            "ejection that ends before its default beginning",
            false,
            json!({"outlier_detection": {"max_ejection_time": "10s"}}),
        ),
        cluster(
            "a ring as an extension",
            true,
            policy("ring_hash", json!({"minimum_ring_size": 10})),
        ),
        cluster(
            "a ring as an extension with swapped ends",
            false,
            policy("ring_hash", json!({"maximum_ring_size": 100})),
        ),
        cluster("maglev as an extension", true, policy("maglev", json!({"table_size": 101}))),
        cluster(
            "maglev as an extension without a prime",
            false,
            policy("maglev", json!({"table_size": 100})),
        ),
        cluster("logical DNS", true, dns(&["a.example"])),
        cluster("logical DNS with two hosts", false, dns(&["a.example", "b.example"])),
        cluster(
            "a policy of another's",
            true,
            json!({"ring_hash_lb_config": {"minimum_ring_size": 1}}),
        ),
        cluster(
            "original destination with endpoints",
            false,
            json!({"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "load_assignment": {"cluster_name": "c"}}),
        ),
        listener("no filter chain", false, json!({})),
        named("chains for a matcher", true, &["a", "b"]),
        named("chains for a matcher of one name", false, &["a", "a"]),
        named("a chain for a matcher without a name", false, &[""]),
        chains("IPv6 ranges", false, &[range("fd00::1", 16), range("fd00::2", 16)]),
        chains("a suffix", false, &[json!({"suffix_len": 1})]),
        chains(
            "two chains by everything",
            true,
            &[
                json!({"server_names": ["a"], "transport_protocol": "tls",
            "application_protocols": ["h2"], "source_type": "EXTERNAL", "source_ports": [1, 2]}),
                json!({"server_names": ["a"], "transport_protocol": "tls", "application_protocols": ["h2"],
            "source_type": "EXTERNAL", "source_ports": [3]}),
            ],
        ),
        chains(
            "two chains by nearly everything",
            false,
            &[
                json!({"server_names": ["a"], "transport_protocol": "tls",
            "application_protocols": ["h2"], "source_type": "EXTERNAL", "source_ports": [1, 2]}),
                json!({"server_names": ["a"], "transport_protocol": "tls", "application_protocols": ["h2", "x"],
            "source_type": "EXTERNAL", "source_ports": [2]}),
            ],
        ),
        route(
            "fault with status 700",
            false,
            json!({"route": {"cluster": "c"}, "typed_per_filter_config": {
            "envoy.filters.http.fault": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
                "abort": {"http_status": 700, "percentage": {"numerator": 1}}}}}),
        ),
        action(
            "a header of a weighted cluster",
            false,
            json!({"weighted_clusters": {"clusters": [{"name": "c", "weight": 1,
            "response_headers_to_remove": ["host"]}]}}),
        ),
        action(
            "redirect that copies host",
            false,
            json!({"cluster": "c", "internal_redirect_policy":
            {"response_headers_to_copy": ["host"]}}),
        ),
        routes(
            "a matcher together with routes",
            false,
            json!([{"name": "a", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c"}}], "matcher": {}}]),
        ),
        chains("one chain", true, &[json!({})]),
        chains("two chains for everything", false, &[json!({}), json!({})]),
        chains(
            "two chains by port",
            true,
            &[json!({"destination_port": 1}), json!({"destination_port": 2})],
        ),
        chains(
            "two chains of one port",
            false,
            &[json!({"destination_port": 1}), json!({"destination_port": 1})],
        ),
        chains(
            "two chains that share a name",
            false,
            &[json!({"server_names": ["a", "b"]}), json!({"server_names": ["B"]})],
        ),
        chains("two chains of one range", false, &[range("10.0.0.0", 8), range("10.1.0.0", 8)]),
        chains("two chains of two ranges", true, &[range("10.0.0.0", 8), range("10.1.0.0", 16)]),
        chains("everything and every address", true, &[json!({}), range("0.0.0.0", 0)]),
        chains("a range that is none", false, &[range("a", 8)]),
        chains("a long range", true, &[range("10.0.0.0", 33)]),
        chains("a partial wildcard", false, &[json!({"server_names": ["a*"]})]),
        chains("a wildcard alone", false, &[json!({"server_names": ["*"]})]),
        chains("a wildcard", true, &[json!({"server_names": ["*.a"]})]),
        chains("port 0 as a source", false, &[json!({"source_ports": [0]})]),
    ]
}

/// Expressions with a small program, because Envoy's size limit is not tested here.
const PATTERNS: &str = r"a** a*+ a++ a*? a?? a??? a{2}{3} a{2}? a{2}?? a{1001} (a{100}){11} (a{2}){600} (a{2,}){600} (a?){1001}
    a{,5} a{5,1} a{01} a{100000000} a{1 a{ { } ] *a |* (*) a|*b ^* () (|a)* ()* (?:)* x{0} (?=a) (?!a) (?<=a) (?<!a) (?>a) (?#a)
    (?P<n>a) (?<n>a) (?P<n>a)(?P<m>b) (?P<1>a) (?P<>a) (?P<é>a) (?P=n) (?'n'a) (?P<n (?P (? (?P<n> (?i)a (?i-s:a) (?-) (?i-) (?) (?x)a
    (?i (?i)* a(?i)* (?U)a+ (?s). (a a) (a)) \ a\ \1 \12 \8 \0 \07 \377 \400 \777 \x4 \x41 \x{41} \x{ff} \x{100} \x{110000} \x{}
    \x{4 \_ \- \< \é é [é] [а-б] \e \cA \Z \z \A \b \B \b* \b{2} \C \G \K \h \R \X \u0041 \Qa*\E* \Qa \E \Q\E* a\Q\E* \Q+\E+
    [a [] []a] [^]a] [^] [b-a] [a-\d] [\d-z] [a-b-c] [a-] [-a] [a-\n] [\n-a] [^\n] [[:alpha:]] [[:^alpha:]] [[:foo:]] [[:alpha
    [[.a.]] [[=a=]] [\b] [\C] [\Q] [\pN] [\pX] \pN \PN \p{N} \p{Nd} \p{^N} \p{n} \p{Foo} \p \p{L \pX \p{LC}
    ((a{2}){3}){4}x a.*b? ^/api/v[0-9]+/.*$ [^a-z]+|(b|c)* .*?";

#[test]
fn envoy_agrees_on_valid_and_invalid_messages() {
    let mut cases = cases();
    let of = |pattern: &str| json!({"match": {"safe_regex": {"regex": pattern}}, "route": {"cluster": "c"}});
    let (fine, rejected): (Vec<_>, Vec<_>) =
        PATTERNS.split_ascii_whitespace().partition(|pattern| re2::check(pattern).is_ok());
    assert!(fine.len() > 50 && rejected.len() > 50, "{} and {}", fine.len(), rejected.len());
    cases.extend(
        rejected
            .into_iter()
            .map(|pattern| route(&format!("the pattern {pattern}"), false, of(pattern))),
    );
    // All at once, because Envoy's error names the pattern.
    let all: Vec<_> = fine.into_iter().map(of).collect();
    cases.push(routes(
        "the patterns that are fine",
        true,
        json!([{"name": "v", "domains": ["*"], "routes": all}]),
    ));

    let envoy = EnvoyBinary::find(None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let bytes = json_to_any(case.kind, &case.resource)
            .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let found = check(case.kind, &bytes);
        let spare = json!({"name": "c", "connect_timeout": "1s", "type": "STATIC"});
        let (clusters, listeners) = match case.kind {
            CLUSTER => (json!([case.resource]), json!([])),
            _ => (json!([spare]), json!([case.resource])),
        };
        let file = folder.path().join(format!("{number}.json"));
        let bootstrap = json!({
            "node": {"id": "a", "cluster": "a"},
            "static_resources": {"clusters": clusters, "listeners": listeners},
        });
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        let envoy = envoy.validate(&file).err().map(|error| error.to_string());
        if case.fine != found.is_empty() || case.fine != envoy.is_none() {
            let expected = if case.fine { "fine" } else { "wrong" };
            wrong.push(format!(
                "{}: expected {expected}\n  weir:  {found:?}\n  Envoy: {envoy:?}",
                case.name
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn full_name(kind: ResourceType) -> &'static str {
    kind.type_url().rsplit('/').next().unwrap()
}

/// Everything that a sidecar gets for the objects of each case.
fn snapshots() -> Vec<(PathBuf, Snapshot)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut inputs: Vec<_> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path().join("input.yaml"))
        .collect();
    inputs.retain(|input| input.exists());
    inputs.sort();
    let mut out = Vec::new();
    for input in inputs {
        let (mut store, mut dirty) = (Store::default(), BTreeSet::new());
        for change in weir::source::directory::load_once(&input).unwrap() {
            store.apply(change, &mut dirty);
        }
        let mesh = MeshBuilder::new(MeshConfig::default()).update(&store, &dirty);
        for metadata in
            [json!({}), json!({"LABELS": {"app": "client"}, "INTERCEPTION_MODE": "NONE"})]
        {
            let id = "sidecar~10.9.0.1~client-0.shop~shop.svc.cluster.local";
            let proxy =
                Proxy::new(id, NodeMetadata::from_json(&metadata), Locality::parse("eu/eu-a"))
                    .unwrap();
            out.push((
                input.clone(),
                SnapshotBuilder::default().snapshot(&mesh, &mesh.scope(&proxy)),
            ));
        }
    }
    out
}

/// The resources of all snapshots, each with its type.
fn resources() -> Vec<(String, &'static str, Vec<u8>)> {
    let mut out = Vec::new();
    for (input, snapshot) in snapshots() {
        for kind in ResourceType::ALL {
            let all = snapshot.get(kind).values();
            out.extend(all.map(|item| {
                (format!("{} {}", input.display(), item.name), full_name(kind), item.bytes())
            }));
        }
    }
    assert!(out.len() > 150, "only {}", out.len());
    out
}

#[test]
fn nothing_that_weir_sends_is_wrong() {
    for (name, kind, bytes) in resources() {
        let found = check(kind, &bytes);
        assert!(found.is_empty(), "{name}: {found:#?}");
    }
}

#[test]
fn corrupted_resources_are_detected() {
    let spoil = |kind, json: &mut Value| -> &'static str {
        match kind {
            CLUSTER => {
                json["connectTimeout"] = json!("0s");
                "connect_timeout"
            }
            LISTENER => {
                let chain = match json["filterChains"].is_array() {
                    true => &mut json["filterChains"][0],
                    false => &mut json["defaultFilterChain"],
                };
                chain["filters"][0]["name"] = json!("");
                ".name"
            }
            ROUTES => {
                json["virtualHosts"][0]["domains"] = json!([]);
                "virtual_hosts[0].domains"
            }
            _ => {
                json["clusterName"] = json!("");
                "cluster_name"
            }
        }
    };
    for (name, kind, bytes) in resources() {
        let mut json = bytes_to_json(kind, &bytes).unwrap();
        let path = spoil(kind, &mut json);
        let found = check(kind, &json_to_any(kind, &json).unwrap());
        assert!(found.iter().any(|item| item.path.ends_with(path)), "{name}: {path}: {found:#?}");
        let cut = check(kind, &bytes[..bytes.len() - 1]);
        assert!(!cut.is_empty(), "{name}: without its last byte");
    }
}

#[test]
fn no_changed_byte_makes_it_panic() {
    let all = resources();
    let strategy = (
        any::<prop::sample::Index>(),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    );
    let mut runner =
        TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(500) });
    let outcome = runner.run(&strategy, |(which, changes)| {
        let (_, kind, bytes) = which.get(&all);
        let mut bytes = bytes.clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        check(kind, &bytes);
        Ok(())
    });
    outcome.unwrap();
}

/// Prints how long checks of increasingly large route configurations take. Run manually: `cargo test --test
/// weir envoy_validate:: -- --ignored --nocapture`
#[test]
#[ignore = "prints times"]
fn print_durations() {
    let host = |at: usize| {
        json!({"name": format!("app-{at}.shop.svc.cluster.local:80"),
            "domains": [format!("app-{at}.shop.svc.cluster.local"), format!("app-{at}.shop"), format!("10.0.{}.{}", at / 256, at % 256)],
            "routes": [{
                "match": {"prefix": "/", "headers": [{"name": "x", "stringMatch": {"safeRegex": {"regex": "^a[0-9]+$"}}}]},
                "route": {
                    "weightedClusters": {"clusters": [
                        {"name": format!("outbound|80|v1|app-{at}.shop.svc.cluster.local"), "weight": 90},
                        {"name": format!("outbound|80|v2|app-{at}.shop.svc.cluster.local"), "weight": 10}]},
                    "timeout": "0s",
                    "retryPolicy": {"retryOn": "connect-failure,refused-stream", "numRetries": 2,
                        "retryHostPredicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typedConfig": {
                            "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}]}}}]})
    };
    check(ROUTES, &[]);
    for count in [250, 500, 1000, 2000] {
        let json = json!({"name": "80", "virtualHosts": (0..count).map(host).collect::<Vec<_>>()});
        let bytes = json_to_any(ROUTES, &json).unwrap();
        let start = Instant::now();
        let found = check(ROUTES, &bytes);
        let took = start.elapsed();
        assert!(found.is_empty(), "{found:?}");
        println!("{count} virtual hosts, {} bytes: {took:?}", bytes.len());
    }
}
